"""The bytes of one file, or of one member of an archive, to a record."""

from collections.abc import Iterable, Mapping
import dataclasses
import os
import re

from llm_jax.corpus.document import Broken, Raw
from llm_jax.corpus.read import languages, licences, unit
from llm_jax.corpus.read.encoding import decode, is_binary
from llm_jax.corpus.read.unit import Record, Skipped, Source

# Directories that hold no sources of the project they are in.
NO_SOURCES = frozenset((
    '.git', '.hg', '.svn', '.bzr', 'CVS', '__pycache__', 'node_modules', 'bower_components', '.tox', '.nox', '.venv',
    '.mypy_cache', '.pytest_cache', '.ruff_cache', '.ipynb_checkpoints', '.idea', '.eggs', '.gradle', '.terraform',
    '__MACOSX',
))  # fmt: skip
_CODE_BYTES = 1 << 20
# Suffixes of the kinds that are not code; a text without suffix is text.
_KINDS = {
    suffix: kind
    for kind, suffixes in {
        'html': 'html htm xhtml shtml',
        'markdown': 'md markdown mdown mkd mdx',
        'text': 'txt text rst adoc org',
        'notebook': 'ipynb',
    }.items()
    for suffix in suffixes.split()
}
# Suffixes of the files that a format means when they are found in a directory or archive.
_FITTING = {
    'html': {'html', 'htm', 'xhtml', 'shtml', 'php', 'asp', 'aspx', 'jsp', 'cgi', ''},
    'text': {'txt', 'text', ''},
    'gutenberg': {'txt', 'text', ''},
    'markdown': {'md', 'markdown', 'mdown', 'mkd', 'mdx'},
}
_GUTENBERG = re.compile(
    r'\*\*\* ?START OF (THE|THIS) PROJECT GUTENBERG|Project Gutenberg[\w’\' ]{0,20} ?E-?(text|book)', re.I
)
_CODING = re.compile(rb'^[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)')  # PEP 263
_HEAD_CHARS = 20_000


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the files of a unit are.

    Attributes:
      name: of the source.
      source: its options.
      prefix: what stands before a path in ids and places ('books.tar.zst/').
      named: whether the user named these very files; files that were found in a directory or
        archive have to look like the format.
      licences: directory -> licence.
    """

    name: str
    source: Source
    prefix: str = ''
    named: bool = False
    licences: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def skipped(self, path: str, rule: str) -> Skipped:
        return Skipped(self.name, self.prefix + path, f'skip.{rule}')

    def broken(self, path: str, rule: str, detail: str = '') -> Broken:
        return Broken(self.name, self.prefix + path, f'read.{rule}', detail)


def passed_over(place: Place, path: str, size: int) -> Skipped | None:
    """Why a file is not even opened, by its name and size; None if it is."""
    # '._X' is what macOS adds to archives.
    if not NO_SOURCES.isdisjoint(path.split('/')) or os.path.basename(path).startswith('._'):
        return place.skipped(path, 'no_sources')
    kind = _kind_by_name(place, path)
    if not kind:
        return place.skipped(path, 'suffix')
    if kind == 'code' and not place.named and licences.is_licence_file(os.path.basename(path)):
        return place.skipped(path, 'licence')
    if size > longest(place, path):
        return place.skipped(path, 'too_large')
    return None


def is_meant(place: Place, path: str) -> bool:
    """Whether a file is of the source's format, by its name."""
    return bool(_kind_by_name(place, path))


def longest(place: Place, path: str) -> int:
    """How many bytes of a file are read at most."""
    is_code = not place.source.max_bytes and _kind_by_name(place, path) == 'code'
    return _CODE_BYTES if is_code else unit.longest(place.source)


def bounded(blocks: Iterable[bytes], limit: int) -> bytes:
    """The blocks together; of more than `limit` bytes, just over that."""
    held, size = [], 0
    for block in blocks:
        held.append(block)
        size += len(block)
        if size > limit:
            break
    return b''.join(held)


def record(place: Place, path: str, data: bytes, key: str, licence: str = '') -> Record:
    """The record of a file.

    Args:
      path: relative to the place.
      data: what is in the file.
      key: the id within the source: 'FILE#RECORD'.
      licence: where neither the source's options nor the place's licence files say it.
    """
    if refused := passed_over(place, path, len(data)):
        return refused
    kind = _kind_by_name(place, path)
    in_code = kind == 'code' or (place.source.format in ('auto', 'code') and not place.named)
    if is_binary(data):
        return place.skipped(path, 'binary') if in_code else place.broken(path, 'binary', repr(data[:8]))
    if not data.strip():
        return place.skipped(path, 'empty')
    common = {'id': f'{place.name}/{key}', 'source': place.name, 'where': place.prefix + path}
    licence = place.source.licence or licences.nearest(path, place.licences) or licence
    if kind == 'html':
        return Raw(**common, content=data, kind=kind, language=place.source.language, licence=licence)
    text, _, _ = decode(data, _declared(data) if kind == 'code' else '')
    head = text[:_HEAD_CHARS]
    if kind == 'text' and place.source.format == 'auto' and _GUTENBERG.search(head):
        kind = 'gutenberg'
    language = place.source.language
    if kind == 'code':
        language = languages.language_of(path, head) or place.source.language
        licence = licences.tag(head) or licence
        if not language:
            if languages.suffix_of(path):
                return place.skipped(path, 'suffix')
            kind = 'text'
    return Raw(**common, content=text, kind=kind, language=language, licence=licence)


def _kind_by_name(place: Place, path: str) -> str:
    """Kind of a file by its name; '' for a file that the source does not mean."""
    suffix, wanted = languages.suffix_of(path), place.source.format
    if wanted in _FITTING:
        return wanted if place.named or suffix in _FITTING[wanted] else ''
    if languages.is_code_by_name(path):
        return 'code'
    if suffix in _KINDS and (wanted == 'auto' or _KINDS[suffix] != 'html'):  # among code, HTML is code
        return _KINDS[suffix]
    return 'code' if languages.may_be_code(path) else ''


def _declared(data: bytes) -> str:
    lines = data[:1000].split(b'\n', 2)[:2]
    return next((m[1].decode() for m in map(_CODING.match, lines) if m), '')
