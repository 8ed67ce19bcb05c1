"""Records with fields: JSON lines, JSON arrays; what they share with Parquet and TFDS."""

import codecs
from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
import functools
import itertools
import json
import re
from typing import Any

from llm_jax.config import parts
from llm_jax.config.schema import ConfigError
from llm_jax.corpus.digest import digest
from llm_jax.corpus.document import Broken, Raw
from llm_jax.corpus.read import languages
from llm_jax.corpus.read.unit import Input, Record, Skipped, Source, longest, numbered, ranges
from llm_jax.data import files

_BLOCK_BYTES = 1 << 20
# A byte order mark and blanks.
_BEFORE = b'\xef\xbb\xbf \t\r\n'
# What stands before the elements of an array: its bracket, commas.
_BETWEEN = re.compile(r'[\s,\[]*')
_CODE_NAMES = {'c++': 'cpp', 'c#': 'csharp', 'f#': 'fsharp', 'shell': 'bash'}
_COMPRESSED = re.compile(r'\.(gz|zst|bz2|xz)$', re.I)


@dataclasses.dataclass(frozen=True)
class RecordFields:
    """The fields of the records of one file, and how a document is made of them.

    Attributes:
      name: of the source.
      source: its options.
      path: of the file within the source.
    """

    name: str
    source: Source
    path: str

    def record(self, row: Any, key: int | str, size: int = 0) -> Record:
        """The record of one row.

        Args:
          row: its fields.
          key: its number or place in the file.
          size: its bytes there; 0 takes those of its text.
        """
        where = f'{self.path}#{key}'
        if not isinstance(row, Mapping):
            return self.broken(key, 'no_object', f'is {type(row).__name__}, not an object with fields')
        text = value_of(row, self.source.text_field)
        if isinstance(text, bytes):
            try:
                text = text.decode()
            except UnicodeDecodeError as error:
                return self.broken(key, 'encoding', f'{self.source.text_field!r} is not UTF-8 at byte {error.start}')
        if not isinstance(text, str):
            field = self.source.text_field
            is_there = text is not None or _has(row, field)
            if text is None and is_there:  # null: a document without text
                return Skipped(self.name, where, 'skip.empty')
            detail = f'{field!r} is {type(text).__name__}, not text' if is_there else f'has {no_field(field, row)}'
            return self.broken(key, 'no_text', detail)
        if not text.strip():
            return Skipped(self.name, where, 'skip.empty')
        if (size or _utf8_bytes(text)) > longest(self.source):
            return self.too_large(key)
        own = _plain(value_of(row, self.source.id_field)) if self.source.id_field else None
        url = _plain(value_of(row, self.source.url_field)) if self.source.url_field else None
        return Raw(
            # The user's ids need not be unique, so they only add to the place.
            id=f'{self.name}/{where}' + (f':{own}' if own is not None else ''),
            source=self.name,
            where=str(url) if url else f'{self.path}#{own if own is not None else key}',
            content=text,
            kind=self.source.kind,
            language=self.source.language or self._language(row, text),
            licence=self.source.licence or _text_of(row, 'licence', 'license'),
            title=_text_of(row, 'title'),
        )

    def _language(self, row: Mapping[str, Any], text: str) -> str:
        stated = _text_of(row, 'language', 'lang').lower()
        if self.source.kind == 'code':
            return _CODE_NAMES.get(stated, stated) or languages.language_of(_text_of(row, 'path'), text[:20_000])
        return stated if re.fullmatch(r'[a-z]{2,3}([-_]\w+)?', stated) else ''

    def too_large(self, key: int | str) -> Skipped:
        return Skipped(self.name, f'{self.path}#{key}', 'skip.too_large')

    def broken(self, key: int | str, rule: str, detail: str) -> Broken:
        return Broken(self.name, f'{self.path}#{key}', f'read.{rule}', detail)


def value_of(row: Mapping[str, Any], field: str) -> Any:
    """Value of a field, or of 'a.b' within a; None if there is none."""
    if field in row:
        return row[field]
    outer, _, inner = field.partition('.')
    within = row.get(outer)
    return value_of(within, inner) if inner and isinstance(within, Mapping) else None


def _has(row: Mapping[str, Any], field: str) -> bool:
    """Tells whether a row has a field, or 'a.b' within a; it has if a is null."""
    if field in row:
        return True
    outer, _, inner = field.partition('.')
    within = row.get(outer, {})
    return bool(inner) and (within is None or isinstance(within, Mapping) and _has(within, inner))


def no_field(wanted: str, names: Iterable[Any]) -> str:
    """Says that there is no such field, with the nearest and all that there are."""
    names = [str(name) for name in names]
    return f'no field {wanted!r}{parts.nearest(wanted, names)} It has: {", ".join(names)}'


def missing_field(option: str, wanted: str, where: str, names: Iterable[Any]) -> ConfigError:
    """Makes the error that a source lacks the field that an option names."""
    return ConfigError(f'{option} = {wanted!r}: {where} has {no_field(wanted, names)}')


def check(name: str, source: Source, where: str, row: Any) -> None:
    """Raises ConfigError if the first record of a source lacks a field that its options name."""
    if not isinstance(row, Mapping):
        kind = type(row).__name__
        raise ConfigError(f'sources.{name}: {where} is {kind}, not an object with fields; it may be another format')
    for option in ('text_field', 'id_field'):
        wanted = getattr(source, option)
        if wanted and value_of(row, wanted) is None and wanted not in row:
            raise missing_field(f'sources.{name}.{option}', wanted, where, row)


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode('utf-8', 'surrogatepass'))


def _plain(value: Any) -> Any:
    """A value whose bytes, as TFDS and unchecked Parquet give texts, are text."""
    return value.decode('utf-8', 'replace') if isinstance(value, bytes) else value


def _text_of(row: Mapping[str, Any], *fields: str) -> str:
    values = (_plain(value_of(row, field)) for field in fields)
    return next((value for value in values if isinstance(value, str)), '')


# --- JSON ------------------------------------------------------------------------------


def inputs(name: str, source: Source, path: str, file: files.File) -> list[Input]:
    """Units of a file of JSON lines, by ranges of bytes if it is not compressed, or of one JSON array."""
    return of_lines(functools.partial(_json_records, RecordFields(name, source, path)), path, file)


def of_lines(read: Callable[[files.File, int, int], Iterator[Record]], path: str, file: files.File) -> list[Input]:
    """Units of a file of lines.

    Args:
      read: records of the lines that start in [start, stop), stop 0 for all.
    """
    whole = _COMPRESSED.search(path) or re.search(r'\.json$', path, re.I)
    cuts = [(0, 0)] if whole else ranges(file.size)
    if len(cuts) == 1:
        cuts = [(0, 0)]
    return [
        Input(
            numbered(path, i, len(cuts)),
            digest(path, file.stamp, start, stop),
            stop - start or file.size,
            functools.partial(read, file, start, stop),
        )
        for i, (start, stop) in enumerate(cuts)
    ]


def check_json(name: str, source: Source, path: str, file: files.File) -> None:
    """Raises ConfigError if the first record of a file lacks a field."""
    try:
        for row, key, _ in json_rows(file, 0, 0, longest(source)):
            if not isinstance(row, NotJson | TooLong):
                check(name, source, f'{path}#{key}', row)
                return
    except files.Damaged:
        return  # counted when it is read


def _json_records(fields: RecordFields, file: files.File, start: int, stop: int) -> Iterator[Record]:
    key = start
    try:
        for row, key, size in json_rows(file, start, stop, longest(fields.source)):
            if isinstance(row, NotJson):
                yield fields.broken(key, 'no_json', row.detail)
            else:
                yield fields.too_large(key) if isinstance(row, TooLong) else fields.record(row, key, size)
    except files.Damaged as error:
        yield fields.broken(key, 'damaged', f'{error}; what follows is lost')


@dataclasses.dataclass(frozen=True)
class NotJson:
    """A line, or what follows in an array, that is not JSON."""

    detail: str


@dataclasses.dataclass(frozen=True)
class TooLong:
    """A line, or an element of an array, longer than any record may be."""


def json_rows(file: files.File, start: int, stop: int, limit: int) -> Iterator[tuple[Any, int, int]]:
    """(row, where it starts in the decompressed file, size) of each, blank lines left out; memory is about `limit`."""
    if re.search(r'\.json(\.(gz|zst|bz2|xz))?$', file.path, re.I):
        blocks, offset, head = file.blocks(), 0, b''
        for head in blocks:
            if head.lstrip(_BEFORE):
                break
            offset += len(head)
        blocks = itertools.chain([head], blocks)
        # An array, or one object over several lines.
        first = head.lstrip(_BEFORE).partition(b'\n')[0].rstrip()
        if first == b'{' or first.startswith(b'['):
            yield from _array(blocks, limit)
            return
        found = _split(blocks, offset, limit)
    else:
        found = lines(file, start, stop, limit)
    for offset, line in found:
        yield _parsed(line) if len(line) <= limit else TooLong(), offset, len(line)


def lines(file: files.File, start: int, stop: int, limit: int, blank: bool = False) -> Iterator[tuple[int, bytes]]:
    """(offset, line without its end) of the lines that start in [start, stop).

    Args:
      stop: 0 for all lines, of a file that may be compressed.
      limit: of a longer line come its first `limit` + 1 bytes.
      blank: whether to give blank lines as well.
    """
    if not stop:
        yield from _split(file.blocks(), 0, limit, blank)
        return
    with file.open() as stream:
        # From the byte before: the line it belongs to starts in another unit.
        origin = max(start - 1, 0)
        stream.seek(origin)
        for offset, line in _split(iter(lambda: stream.read(_BLOCK_BYTES), b''), origin, limit, blank):
            if offset >= stop:
                return
            if offset >= start:
                yield offset, line


def _split(blocks: Iterator[bytes], offset: int, limit: int, blank: bool = False) -> Iterator[tuple[int, bytes]]:
    held, size = bytearray(), 0  # the beginning of a line, and how much of it has been read
    for block in blocks:
        if not size and not blank and block.endswith(b'\n') and block.isspace():
            offset += len(block)
            continue
        start = 0
        while stop := block.find(b'\n', start) + 1:
            line = bytes(held) + block[start : stop - 1] if held else block[start : stop - 1]
            if blank or (line and not line.isspace()):
                yield offset, line.rstrip(b'\r')[: limit + 1]
            offset += size + stop - start
            held, size, start = bytearray(), 0, stop
        # Past the limit nothing more is held.
        held += block[start : start + limit + 1 - len(held)]
        size += len(block) - start
    if held.strip():
        yield offset, bytes(held).rstrip(b'\r')


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.removeprefix(b'\xef\xbb\xbf'))
    except (ValueError, RecursionError) as error:  # ValueError: of JSON, of UTF-8, of an integer of 5000 digits
        return NotJson(f'{error}')


def _array(blocks: Iterator[bytes], limit: int) -> Iterator[tuple[Any, int, int]]:
    """Elements of a JSON array one by one, numbered from 0; one longer than the limit ends it."""
    decoder, scan = codecs.getincrementaldecoder('utf-8-sig')('replace'), json.JSONDecoder().raw_decode
    held, index, ended = '', 0, False
    while not ended:
        block = next(blocks, None)
        ended = block is None
        held += decoder.decode(block or b'', final=ended)
        position = 0
        while True:
            position = _BETWEEN.match(held, position).end()
            if held[position : position + 1] in ('', ']'):
                break
            try:
                row, stop = scan(held, position)
            except (ValueError, RecursionError) as error:
                if ended or len(held) - position > limit or not _is_cut_off(error, held):
                    too_long = f' (an element of more than {limit} bytes)' if len(held) - position > limit else ''
                    yield NotJson(f'{error}{too_long}; what follows is lost'), index, 0
                    return
                break
            if stop == len(held) and not ended:  # a number may go on
                break
            yield row, index, stop - position
            index, position = index + 1, stop
        held = held[position:]


def _is_cut_off(error: Exception, text: str) -> bool:
    """Whether JSON may be wrong only as it goes on in the next block."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith('Unterminated string') or error.pos > len(text) - 20
