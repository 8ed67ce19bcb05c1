"""Web archives: WARC, of pages as they were sent, and WET, of their text.

Pages are the responses with status 200 that are HTML, XHTML, plain text or Markdown,
and `resource` records of these types that come from the web. Everything else is
counted as `Skipped`: requests and metadata, other answers, other media, robots.txt,
revisits (their page is another record).

A damaged record costs itself alone: reading goes on at the next one. In .warc.gz each
record is a gzip member of its own, which also makes large files readable in parts.
"""

from collections.abc import Generator, Iterator
import dataclasses
import functools
import io
import re
from typing import BinaryIO
import zlib

from fastwarc.warc import ArchiveIterator, HeaderMap, WarcRecord

from llm_jax.corpus.digest import digest
from llm_jax.corpus.document import Broken, Raw
from llm_jax.corpus.read import http, iso639
from llm_jax.corpus.read.encoding import decode, is_binary
from llm_jax.corpus.read.unit import Input, Record, Skipped, Source, longest, numbered, ranges
from llm_jax.data import files

_BLOCK_BYTES = 1 << 20
_HEADER_BYTES = 1 << 16
_MEMBER = re.compile(rb'\x1f\x8b\x08')
_PLAIN = re.compile(rb'WARC/\d\.\d+\r?\n(?=(?:WARC|Content)-[A-Za-z-]+:)', re.I)
_HEADER_END = re.compile(rb'\r?\n\r?\n')
_TYPES = ('warcinfo', 'response', 'resource', 'request', 'metadata', 'revisit', 'conversion', 'continuation')
# The longest match of both, to find those across blocks.
_OVERLAP = 64
_LENGTH = re.compile(rb'^content-length:\s*(\d+)', re.I | re.M)
_CHARSET = re.compile(r'charset\s*=\s*["\']?\s*([\w:.-]+)', re.I)
_KINDS = {
    'text/html': 'html',
    'application/xhtml+xml': 'html',
    'text/plain': 'text',
    'text/markdown': 'markdown',
    'text/x-markdown': 'markdown',
}


@dataclasses.dataclass(frozen=True)
class _Part:
    """Bytes [start, stop) of a file: the records that start there.

    Attributes:
      marks: what records begin with.
    """

    name: str
    source: Source
    path: str
    file: files.File
    start: int
    stop: int
    marks: re.Pattern = _PLAIN

    def broken(self, offset: int | str, rule: str, detail: str) -> Broken:
        return Broken(self.name, f'{self.path}#{offset}', f'read.{rule}', detail)


def inputs(name: str, source: Source, path: str, file: files.File) -> list[Input]:
    """Units of a web archive: ranges of bytes, each with the records that start in it."""
    # Compressed as one stream, an archive can only be read from its beginning.
    cuts = [(0, file.size)] if path.lower().endswith(('.zst', '.bz2', '.xz')) else ranges(file.size)
    return [
        Input(
            numbered(path, i, len(cuts)),
            digest(path, file.stamp, start, stop),
            stop - start,
            functools.partial(_read, _Part(name, source, path, file, start, stop)),
        )
        for i, (start, stop) in enumerate(cuts)
    ]


def _read(part: _Part) -> Iterator[Record]:
    with part.file.open() as stream:
        # Names may be wrong: a browser unzips what it loads, or a tool zips and keeps the name.
        magic, is_gz = stream.read(2), part.path.lower().endswith('.gz')
        is_member = magic == b'\x1f\x8b' or (is_gz and magic != b'WA')
        part = dataclasses.replace(part, marks=_MEMBER if is_member else _PLAIN)
        start, stop = part.start, part.file.size
        if start:
            start = _next_record(stream, start, part.stop, part.marks)
        if part.stop < stop:
            stop = _next_record(stream, part.stop, stop, part.marks) or stop
        while start is not None and start < stop:
            start = yield from _run(part, stream, start, stop)


def _run(part: _Part, stream: BinaryIO, start: int, stop: int) -> Generator[Record, None, int | None]:
    """Records of [start, stop) up to the first damage; returns where the next record starts, None at the end.

    Each record is held back until the next one shows that it ended where it said.
    """
    archive = ArchiveIterator(_Window(stream, start, stop), parse_http=False)
    held, last, shared = None, start, 0
    while True:
        try:
            entry = next(archive, None)
        except OSError as error:
            _raise_if_of_files(error)
            return (yield from _resume(part, stream, held, last, stop, str(error)))
        if held:
            yield held
        if entry is None:
            return (yield from _finish(part, stream, held, last, stop))
        offset = start + entry.stream_pos
        # Records that share one gzip member have one place, so they are counted.
        shared = shared + 1 if held and offset == last else 0
        last, key = offset, f'{offset}.{shared}' if shared else f'{offset}'
        if 'Content-Length' not in (name for name, _ in entry.headers.to_tuples()):
            entry = _with_usual_header(part, stream, offset, stop) or entry
        length = entry.content_length
        try:
            held, found = _record(part, entry, key)
            complaint = f'{found} of {length} bytes' if found < length else ''
        except OSError as error:
            _raise_if_of_files(error)
            complaint = str(error)
        if 'content-length' not in _by_name(entry.headers):
            complaint = 'its header has no Content-Length'
        if complaint:
            after = _next_record(stream, last + 1, stop, part.marks)
            rule = 'truncated' if after is None else 'damaged'
            yield part.broken(key, rule, complaint + ('' if after is not None else ', and no record after it'))
            return after


def _with_usual_header(part: _Part, stream: BinaryIO, start: int, stop: int) -> WarcRecord | None:
    """Reads the record at `start` again, for FastWARC with usual names and line ends: it sees no 'content-length'."""
    stream.seek(start)
    data = stream.read(min(longest(part.source) + _HEADER_BYTES, stop - start))
    if part.marks is _MEMBER:
        data = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(data, longest(part.source) + _HEADER_BYTES)
    head = data[: gap.start()] if (gap := _HEADER_END.search(data)) else b''
    usual = re.sub(rb'^[\w-]+(?=:)', lambda match: match[0].title().replace(b'Warc', b'WARC'), head, flags=re.M)
    return next(ArchiveIterator(io.BytesIO(usual + data[len(head) :]), parse_http=False, quirks_mode=True), None)


def _finish(
    part: _Part, stream: BinaryIO, held: Record | None, last: int, stop: int
) -> Generator[Record, None, int | None]:
    """Says what follows the last record that the archive gave; returns where the next one starts, None at the end.

    FastWARC takes an empty gzip member, as of an empty file that was joined with others, for the end.
    """
    end = _end(stream, held, last, stop, part.marks is _MEMBER)
    after = _next_record(stream, max(end, last + (held is None)), stop, part.marks)
    edge = stop if after is None else after
    if end < edge and not (part.marks is _MEMBER and _is_empty(stream, end, edge)):
        lost = f'the last {edge - end} bytes are no whole record' if after is None else f'{edge - end} bytes, no record'
        yield part.broken(end, 'truncated' if after is None else 'damaged', lost)
    return after


def _is_empty(stream: BinaryIO, start: int, stop: int) -> bool:
    """Tells whether gzip members of [start, stop) hold nothing, or zeros fill it up."""
    stream.seek(start)
    data = stream.read(min(stop - start, _BLOCK_BYTES))
    while data := data.lstrip(b'\0'):
        inflate = zlib.decompressobj(zlib.MAX_WBITS | 16)
        try:
            if inflate.decompress(data, 1) or not inflate.eof:
                return False
        except zlib.error:
            return False
        data = inflate.unused_data
    return stop - start <= _BLOCK_BYTES


def _raise_if_of_files(error: OSError) -> None:
    if error.errno is not None:  # FastWARC's own have no number
        raise error


def _resume(
    part: _Part, stream: BinaryIO, held: Record | None, last: int, stop: int, complaint: str
) -> Generator[Record, None, int | None]:
    """What an archive that cannot be read beyond the record held says of it; returns where the next one starts."""
    after = _next_record(stream, last + 1, stop, part.marks)
    edge = stop if after is None else after
    lost = '' if after is not None else f'; no record in the {stop - last} bytes from there on'
    if held is None:
        yield part.broken(last, 'damaged', complaint + lost)
        return after
    end = _end_of(stream, last, edge, part.marks is _MEMBER)
    if end is None:
        yield part.broken(last, 'wrong_length', 'it does not end where its Content-Length says' + lost)
        return after
    yield held
    if end < edge:
        yield part.broken(end, 'damaged', f'{edge - end} bytes are no record')
    return after


def _next_record(stream: BinaryIO, start: int, stop: int, marks: re.Pattern) -> int | None:
    """Where the first record that starts in [start, stop) does."""
    stream.seek(start)
    held, at = b'', start
    while at < stop:
        block = stream.read(_BLOCK_BYTES)
        held += block
        for match in marks.finditer(held):
            offset = at + match.start()
            if offset >= stop:
                return None
            if marks is _PLAIN or _opens_record(held[match.start() : match.start() + 1024]):
                return offset
        if not block:
            return None
        at += max(len(held) - _OVERLAP, 0)
        held = held[-_OVERLAP:]
    return None


def _opens_record(member: bytes) -> bool:
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(member, 5).startswith(b'WARC/'[: len(member)])
    except zlib.error:
        return False


def _end(stream: BinaryIO, held: Record | None, last: int, stop: int, is_member: bool) -> int:
    """Where the records of an archive that was read to its end do end."""
    if held is None:
        return last
    end = _end_of(stream, last, stop, is_member)
    return stop if end is None else end  # None: several records in one member


def _end_of(stream: BinaryIO, start: int, stop: int, is_member: bool) -> int | None:
    """Where a record ends that starts at `start`; None if that is not where it says."""
    stream.seek(start)
    head, tail, size, end, inflate = b'', b'', 0, start, zlib.decompressobj(zlib.MAX_WBITS | 16)
    while not inflate.eof and (block := inflate.unconsumed_tail or stream.read(min(_BLOCK_BYTES, stop - end))):
        end += 0 if inflate.unconsumed_tail else len(block)
        try:
            piece = inflate.decompress(block, _BLOCK_BYTES) if is_member else block
        except zlib.error:
            return None
        size += len(piece)
        head, tail = head + piece[: _HEADER_BYTES - len(head)], (tail + piece)[-8:]
    end -= len(inflate.unused_data)
    gap = _HEADER_END.search(head)
    length = _LENGTH.search(head, 0, gap.start()) if gap else None
    if not length or (is_member and not inflate.eof):
        return None
    # Two line ends follow; some writers leave them out, or add to them.
    left = size - gap.end() - int(length[1])
    return end if 0 <= left <= len(tail) and not tail[len(tail) - left :].strip() else None


# --- Records ---------------------------------------------------------------------------


def _record(part: _Part, entry: WarcRecord, key: str) -> tuple[Record, int]:
    """(what a record of the archive is, how many bytes of content it has)."""
    headers = _by_name(entry.headers)
    where = (headers.get('warc-target-uri') or '').strip('<>') or f'{part.path}#{key}'
    skipped = lambda rule: (Skipped(part.name, where, f'skip.{rule}'), entry.reader.consume())
    media, charset, language, has_http = _media_type(headers.get('content-type')), '', '', False
    charset = _charset(headers.get('content-type'))
    kind = headers.get('warc-type', '').strip().lower()
    if kind == 'response':
        if media not in ('application/http', ''):
            return skipped('not_http')  # DNS, FTP
        has_http = True
    elif kind == 'conversion':
        language = iso639.shortest((headers.get('warc-identified-content-language') or '').split(',')[0])
    elif kind != 'resource' or not where.startswith(('http:', 'https:')):
        return skipped(f'warc_{kind if kind in _TYPES else "unknown"}')
    if entry.content_length > longest(part.source):
        return skipped('too_large')
    block = entry.content_length
    before, transfer, content_coding = 0, '', ''
    if has_http:
        entry.parse_http(quirks_mode=True)
        before, answer = block - entry.content_length, entry.http_headers
        status = None if answer is None else answer.status_code
        if status != 200:
            return Skipped(part.name, where, f'skip.status_{status or "none"}'), before + entry.reader.consume()
        fields = _by_name(answer)
        stated = fields.get('content-type')
        media = _media_type(stated) or _media_type(headers.get('warc-identified-payload-type'))
        charset = _charset(stated)
        transfer, content_coding = fields.get('transfer-encoding', ''), fields.get('content-encoding', '')
    if media not in _KINDS or where.endswith('/robots.txt'):
        rule = 'robots' if media in _KINDS else 'media_type'
        return Skipped(part.name, where, f'skip.{rule}'), before + entry.reader.consume()
    data = entry.reader.read()
    size = before + len(data)
    if size < block:
        return part.broken(key, 'truncated', ''), size
    if cut := headers.get('warc-truncated'):
        return Broken(part.name, where, 'read.truncated', f'by its crawler: {cut}'), size
    try:
        data = http.body(data, transfer, content_coding, longest(part.source))
    except http.BadBody as error:
        return Broken(part.name, where, f'read.{error.rule}', str(error)), size
    return _page(part, where, key, data, _KINDS[media], charset, language), size


def _page(part: _Part, where: str, key: str, data: bytes, kind: str, charset: str, language: str) -> Record:
    if not data.strip():
        return Skipped(part.name, where, 'skip.empty')
    if is_binary(data):
        return Broken(part.name, where, 'read.binary', repr(data[:8]))
    return Raw(
        id=f'{part.name}/{part.path}#{key}',
        source=part.name,
        where=where,
        content=data if kind == 'html' else decode(data, charset)[0],
        kind=kind,
        charset=charset,
        language=part.source.language or language,
        licence=part.source.licence,
    )


def _by_name(headers: HeaderMap) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.to_tuples()}


def _media_type(header: str | None) -> str:
    return (header or '').partition(';')[0].strip().lower()


def _charset(header: str | None) -> str:
    match = _CHARSET.search(header or '')
    return match[1] if match else ''


class _Window(io.RawIOBase):
    """Bytes [start, stop) of a stream, as a stream from 0 on."""

    def __init__(self, stream: BinaryIO, start: int, stop: int):
        self._stream, self._start, self._size, self._at = stream, start, stop - start, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(self._size - self._at, 0)
        self._stream.seek(self._start + self._at)
        data = self._stream.read(left if size < 0 else min(size, left))
        self._at += len(data)
        return data
