"""The running Python's own sources as a corpus of code: its standard library, and the packages installed beside it."""

from collections.abc import Iterator, Sequence
import functools
import hashlib
from importlib import metadata
import io
import os
import pathlib
import platform
import re
import sysconfig
import tokenize

from llm_jax.config.schema import ConfigError
from llm_jax.corpus.digest import digest
from llm_jax.corpus.document import Raw
from llm_jax.corpus.read import content, licences
from llm_jax.corpus.read.unit import Input, Record, Source, groups, matches, numbered

# Directories of tests and of programs that are no library, and files that a script wrote.
_NOT_LIBRARY = {
    'test',
    'tests',
    'idle_test',
    'idlelib',
    'turtledemo',
    'site-packages',
    'dist-packages',
    'pydoc_data',
}
_GENERATED = re.compile(
    r'_sysconfigdata.*|_opcode_metadata\.py|html/entities\.py|encodings/(cp|iso8859|mac|koi8|hp|kz|pt|tis)[^/]*\.py'
)


def standard_library(name: str, source: Source) -> list[Input]:
    """Units of the standard library's modules, without tests and generated tables.

    Raises:
      ConfigError: a Python that comes without sources.
    """
    root, names = _library()
    if not names:
        raise ConfigError(f'sources.{name}.path = "stdlib": this Python has no library sources in {root}')
    names = [path for path in names if matches(path, source.include)]
    parts = list(groups([(path, (root / path).stat().st_size) for path in names], lambda entry: entry[1]))
    return [
        Input(
            numbered('stdlib', i, len(parts)),
            _library_fingerprint(root, [path for path, _ in part]),
            sum(size for _, size in part),
            functools.partial(_library_records, name, source, root, [path for path, _ in part]),
        )
        for i, part in enumerate(parts)
    ]


def _library_records(name: str, source: Source, root: pathlib.Path, paths: Sequence[str]) -> Iterator[Record]:
    for path in paths:
        text = _module_text(root / path)
        if text.strip():
            key, licence = f'{name}/{path}#0', source.licence or 'PSF-2.0'
            yield Raw(key, name, path, text, 'code', language='python', licence=licence)
        else:
            yield content.Place(name, source).skipped(path, 'empty')


def _library() -> tuple[pathlib.Path, list[str]]:
    """Returns (directory, sorted paths of the library's modules within it)."""
    root = pathlib.Path(sysconfig.get_path('stdlib'))
    names = []
    for directory, subdirectories, entries in os.walk(root):
        subdirectories[:] = [d for d in subdirectories if d not in _NOT_LIBRARY]
        inside = pathlib.Path(directory).relative_to(root)
        names += [(inside / entry).as_posix() for entry in entries if entry.endswith('.py')]
    return root, sorted(name for name in names if not _GENERATED.fullmatch(name))


def _module_text(path: pathlib.Path) -> str:
    """Reads a module's source in the encoding that it declares."""
    data = path.read_bytes()
    encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    return data.decode(encoding)


def _library_fingerprint(root: pathlib.Path, names: list[str]) -> str:
    """Hashes the sources by their content, so that the same Python elsewhere gives the same hash."""
    contents = (hashlib.sha256((root / name).read_bytes()).hexdigest() for name in names)
    return hashlib.sha256('\0'.join([platform.python_version(), *names, *contents]).encode()).hexdigest()


def site_packages(name: str, source: Source) -> list[Input]:
    """Units of the Python files of all installed distributions, each under its own licence.

    Distributions that are installed as links to a working tree (editable) have none.
    """
    found: dict[str, metadata.Distribution] = {}
    for distribution in metadata.distributions():
        found.setdefault((distribution.metadata['Name'] or '').lower(), distribution)  # the first is what is imported
    # (path below site-packages, where it is, size, licence)
    entries = []
    for label in sorted(filter(None, found)):
        distribution = found[label]
        licence = source.licence or licences.of_metadata(distribution.metadata)
        for file in sorted(distribution.files or (), key=str):
            path = file.as_posix()
            if file.suffix == '.py' and not path.startswith('..') and matches(path, source.include):
                entries.append((path, os.fspath(distribution.locate_file(file)), file.size or 0, licence))
    if not entries:
        raise ConfigError(f'sources.{name}.path = "site-packages": no installed package has Python files')
    marks = hashlib.sha256('\0'.join(f'{n} {d.version}' for n, d in sorted(found.items())).encode()).hexdigest()
    parts = list(groups(entries, lambda entry: entry[2]))
    return [
        Input(
            numbered('site-packages', i, len(parts)),
            digest(marks, i, *(entry[0] for entry in part)),
            sum(entry[2] for entry in part),
            functools.partial(_package_records, content.Place(name, source, named=True), tuple(part)),
        )
        for i, part in enumerate(parts)
    ]


def _package_records(place: content.Place, part: Sequence[tuple[str, str, int, str]]) -> Iterator[Record]:
    for path, where, _, licence in part:
        try:
            data = pathlib.Path(where).read_bytes()
        except (FileNotFoundError, PermissionError) as error:  # removed since it was installed
            yield place.broken(path, 'unreadable', str(error))
            continue
        yield content.record(place, path, data, f'{path}#0', licence)
