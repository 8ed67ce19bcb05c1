"""Files that are one document each: single ones, and all below a directory.

Below a directory, these are no documents: what version control, environments and build
tools keep (`content.NO_SOURCES`), links (their target is read where it is), licence files
(which give the licence of what is beside and below them), files whose name or content
is none of the formats', and those over `max_bytes`. All are counted as `Skipped`.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import os
import posixpath

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from llm_jax.corpus.digest import digest
from llm_jax.corpus.read import content, licences
from llm_jax.corpus.read.content import NO_SOURCES
from llm_jax.corpus.read.encoding import decode
from llm_jax.corpus.read.unit import Input, Record, Skipped, Source, groups, matches, numbered
from llm_jax.data import files

_MARK_OF_ENVIRONMENT = 'pyvenv.cfg'


def listing(url: str) -> tuple[list[tuple[str, files.File]], list[tuple[str, str]]]:
    """All files below a directory, in order of their paths.

    Returns:
      ((path within the directory, file) of each, (path, rule) of what is passed over whole).
    """
    fs, root = files.filesystem(url)
    if not isinstance(fs, LocalFileSystem):
        return _cloud_listing(fs, root)
    kept, passed = [], []
    for directory, subdirectories, names in os.walk(root):
        inside = lambda name, at=directory: os.path.relpath(os.path.join(at, name), root).replace(os.sep, '/')
        links = [n for n in (*subdirectories, *names) if os.path.islink(os.path.join(directory, n))]
        passed += [(inside(n), 'link') for n in links]
        for name in sorted(set(subdirectories) - set(links)):
            if name in NO_SOURCES or os.path.exists(os.path.join(directory, name, _MARK_OF_ENVIRONMENT)):
                passed.append((inside(name), 'no_sources'))
                links.append(name)
        subdirectories[:] = set(subdirectories) - set(links)
        for name in sorted(set(names) - set(links)):
            path = os.path.join(directory, name)
            if os.path.isfile(path):  # no socket, no pipe
                kept.append((inside(name), files.File.of(fs, fs.info(path))))
    return sorted(kept, key=lambda entry: entry[0]), sorted(passed)


def _cloud_listing(fs: AbstractFileSystem, root: str) -> tuple[list, list]:
    kept, passed = [], set()
    for path, info in fs.find(root, detail=True).items():
        inside = posixpath.relpath(path, root)
        parents = inside.split('/')[:-1]
        depth = next((i for i, parent in enumerate(parents) if parent in NO_SOURCES), None)
        if depth is None:
            kept.append((inside, files.File.of(fs, info)))
        else:
            passed.add(('/'.join(parents[: depth + 1]), 'no_sources'))
    return sorted(kept, key=lambda entry: entry[0]), sorted(passed)


def inputs(
    name: str,
    source: Source,
    found: Sequence[tuple[str, files.File]],
    passed: Sequence[tuple[str, str]] = (),
    named: bool = False,
) -> list[Input]:
    """Units of files that are one document each.

    Args:
      name: of the source.
      source: its options.
      found: (path within the source, file), as `listing` gives them.
      passed: (path, rule) of what is not read.
      named: as in `content.Place`.
    """
    place = content.Place(name, source, named=named or bool(source.include))
    wanted, notes = [], [place.skipped(path, rule) for path, rule in passed]
    stated = {path: file for path, file in found if licences.is_licence_file(posixpath.basename(path))}
    for path, file in found:
        if source.include and not matches(path, source.include):
            continue
        refused = content.passed_over(place, path, file.size)
        if refused:
            notes.append(refused)
        else:
            wanted.append((path, file))
    groups_ = list(groups(wanted, lambda entry: entry[1].size)) or [[]]
    out = []
    for i, group in enumerate(groups_):
        label = group[0][0] if len(group) == 1 else numbered('files', i, len(groups_))
        above = {posixpath.dirname(path) for path, _ in group}
        near = {path: file for path, file in stated.items() if _is_above(posixpath.dirname(path), above)}
        stamps = [item for path, file in (*group, *near.items()) for item in (path, file.stamp)]
        read = functools.partial(_read, place, tuple(group), near, tuple(notes) if i == 0 else ())
        out.append(Input(label, digest(*stamps), sum(file.size for _, file in group), read))
    return out


def _is_above(directory: str, paths: set[str]) -> bool:
    return not directory or any(f'{path}/'.startswith(f'{directory}/') for path in paths)


def _read(
    place: content.Place,
    group: Sequence[tuple[str, files.File]],
    stated: dict[str, files.File],
    notes: Sequence[Skipped],
) -> Iterator[Record]:
    yield from notes
    if not place.source.licence:
        found = {path: _licence(file) for path, file in stated.items()}
        place = dataclasses.replace(place, licences=licences.of_directories(found))
    for path, file in group:
        try:
            data = content.bounded(file.blocks(), content.longest(place, path))
        except (files.Damaged, PermissionError, FileNotFoundError) as error:
            rule = 'damaged' if isinstance(error, files.Damaged) else 'unreadable'
            yield place.broken(path, rule, str(error))
            continue
        yield content.record(place, path, data, f'{path}#0')


def _licence(file: files.File) -> str:
    try:
        return licences.recognise(decode(content.bounded(file.blocks(), 1 << 16))[0])
    except (files.Damaged, PermissionError, FileNotFoundError):
        return ''
