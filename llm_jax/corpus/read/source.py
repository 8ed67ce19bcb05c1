"""From an entry of `sources` to its units of work."""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import itertools
import posixpath
import re

from llm_jax.config import parts
from llm_jax.config.schema import ConfigError
from llm_jax.corpus.digest import digest
from llm_jax.corpus.read import (
    archive,
    content,
    hub,
    licences,
    parquet,
    python,
    rows,
    tfds,
    tree,
    unit,
    warc,
    wikipedia,
)
from llm_jax.corpus.read.unit import Input, Record, Skipped, Source
from llm_jax.data import files

__all__ = ['Input', 'Record', 'Skipped', 'Source', 'open_source']

FORMATS = (
    'auto', 'warc', 'wet', 'html', 'text', 'gutenberg', 'markdown', 'code', 'jsonl', 'parquet', 'wikipedia', 'tfds',
)  # fmt: skip
KINDS = ('text', 'html', 'gutenberg', 'markdown', 'code', 'notebook')
_HELD_OUT = re.compile(r'(^|[/_.-])(test|validation|valid|val|dev)([/_.-]|$)', re.I)
_COMPRESSION = r'(\.(gz|zst|bz2|xz))?'
# Formats of records by file name, in the order they are tried.
_BY_NAME = (
    ('wet', re.compile(rf'(\.warc)?\.wet{_COMPRESSION}$', re.I)),
    ('warc', re.compile(rf'\.warc{_COMPRESSION}$', re.I)),
    ('jsonl', re.compile(rf'\.(jsonl|ndjson|jsonlines|jl){_COMPRESSION}$', re.I)),
    ('parquet', re.compile(r'\.(parquet|pq)$', re.I)),
)
_JSON = re.compile(rf'\.json{_COMPRESSION}$', re.I)
_READERS = {
    'warc': warc.inputs,
    'wet': warc.inputs,
    'jsonl': rows.inputs,
    'parquet': parquet.inputs,
    'wikipedia': wikipedia.inputs,
}
# What lies beside the files of a data set: cards, licences, indices.
_BESIDE = re.compile(
    r'(readme|licen[cs]e|copying|citation|dataset_infos?|manifest|\.git).*|.*\.(json|ya?ml|lock|txt|md)', re.I
)


def open_source(name: str, source: Source) -> list[Input]:
    """Units of work of a source: what there is to read, and in which pieces, whoever reads them.

    'auto' reads each file by its name. A directory is a tree of single documents, or a
    data set if it has Parquet, WARC or JSONL files and beside them only what comes with
    such; then its validation and test files are left out if there are others.

    Args:
      name: key of the source in the config.
      source: its options.

    Raises:
      ConfigError: a path where nothing is, options that exclude each other, or a field
        that the first record does not have.
    """
    _check(name, source)
    if source.path == 'stdlib':
        found = python.standard_library(name, source)
    elif source.path == 'site-packages':
        found = python.site_packages(name, source)
    elif source.format == 'tfds' or source.path.startswith('tfds:'):
        found = tfds.inputs(name, source)
    elif source.path.startswith('hf:'):
        found = hub.inputs(name, source)
    else:
        found = _inputs_of_files(name, source)
    if source.limit:
        mark = digest(source.limit, *(one.fingerprint for one in found))
        read = functools.partial(_first, tuple(found), source.limit)
        found = [Input(f'first {source.limit}', mark, sum(one.bytes for one in found), read)]
    return found


def _first(inputs: Sequence[Input], limit: int) -> Iterator[Record]:
    return unit.first(itertools.chain.from_iterable(one.read() for one in inputs), limit)


def _check(name: str, source: Source) -> None:
    if not source.path:
        raise ConfigError(f'sources.{name}.path is empty; name a file, glob, directory, "stdlib" or "tfds:NAME"')
    for option, known in (('format', FORMATS), ('kind', KINDS)):
        value = getattr(source, option)
        if value not in known:
            near = parts.nearest(value, known)
            raise ConfigError(f'sources.{name}.{option} = {value!r} does not exist{near} There are: {", ".join(known)}')
    for option in ('limit', 'max_bytes'):
        if getattr(source, option) < 0:
            raise ConfigError(f'sources.{name}.{option} = {getattr(source, option)} is below 0')


def _inputs_of_files(name: str, source: Source) -> list[Input]:
    fs, path = files.filesystem(source.path)
    if fs.isdir(path):
        return _inputs_of_directory(name, source)
    root = posixpath.dirname(re.split(r'[*?\[{]', path)[0])
    found = [(posixpath.relpath(file.path, root), file) for file in files.find(source.path, f'sources.{name}.path')]
    formats = [_format(source, path, is_named=True) for path, _ in found]
    place = content.Place(name, source, named=True)
    if not any(fmt or content.is_meant(place, path) for fmt, (path, _) in zip(formats, found, strict=True)):
        raise ConfigError(
            f'sources.{name}.format = "auto": the name {found[0][0]!r} does not say what it is; set the format: '
            + ', '.join(FORMATS[1:])
        )
    singles = [entry for entry, fmt in zip(found, formats, strict=True) if not fmt]
    out = tree.inputs(name, source, singles, named=True) if singles else []
    return out + _inputs_of_records(name, source, [(fmt, *e) for e, fmt in zip(found, formats, strict=True) if fmt])


def _inputs_of_directory(name: str, source: Source) -> list[Input]:
    found, passed = tree.listing(source.path)
    if not found:
        raise ConfigError(f'sources.{name}.path = {source.path!r} is a directory without files')
    formats = {path: _format(source, path, is_named=False) for path, _ in found}
    records = [(formats[path], path, file) for path, file in found if formats[path]]
    if source.format in _READERS and not records:
        raise ConfigError(
            f'sources.{name}: no file in {source.path!r} is {source.format} by its name (the first is '
            f'{found[0][0]!r}); name the files with a glob'
        )
    is_data_set = all(formats[path] or _BESIDE.fullmatch(posixpath.basename(path)) for path, _ in found)
    if source.format == 'auto' and (not is_data_set or not records):
        return tree.inputs(name, source, found, passed)
    if source.format in ('auto', *_READERS):
        card = next((file for path, file in found if path.lower() == 'readme.md'), None)
        if card and not source.licence:
            source = dataclasses.replace(
                source, licence=licences.of_card(b''.join(card.blocks()).decode(errors='replace'))
            )
        wanted = [(fmt, path, file) for fmt, path, file in records if unit.matches(path, source.include)]
        return _inputs_of_records(name, source, wanted if source.include else _without_held_out(wanted))
    singles = [(path, file) for path, file in found if not formats[path]]
    return tree.inputs(name, source, singles, passed) + _inputs_of_records(name, source, records)


def _without_held_out(found: list[tuple[str, str, files.File]]) -> list[tuple[str, str, files.File]]:
    """Files of a data set that are not of its validation or test split, if there are others."""
    return [entry for entry in found if not _HELD_OUT.search(posixpath.splitext(entry[1])[0])] or found


def _format(source: Source, path: str, is_named: bool) -> str:
    """Which reader a file of records needs; '' for a file that is one document."""
    by_name = next((fmt for fmt, pattern in _BY_NAME if pattern.search(path)), '')
    if source.format in _READERS:
        is_meant = is_named or by_name == source.format or (source.format == 'jsonl' and _JSON.search(path))
        is_extract = source.format == 'wikipedia' and not posixpath.basename(path).startswith('.')
        return source.format if is_meant or is_extract else ''
    if archive.is_archive(path):
        return 'archive' if is_named or source.format not in ('auto', 'code') else ''
    if source.format == 'auto':
        return by_name or ('jsonl' if is_named and _JSON.search(path) else '')
    return ''


def _inputs_of_records(name: str, source: Source, found: Sequence[tuple[str, str, files.File]]) -> list[Input]:
    out = []
    checks = {'jsonl': rows.check_json, 'parquet': parquet.check}
    for fmt, path, file in found:
        if check := checks.pop(fmt, None):  # mistakes in the options show in the first file
            check(name, source, path, file)
        out += (archive.inputs if fmt == 'archive' else _READERS[fmt])(name, source, path, file)
    return out
