"""Web archives: WARC, of pages as they were sent, and WET, of their text.

Pages are the responses with status 200 that are HTML, XHTML, plain text or Markdown,
and `resource` records of these types that come from the web. Everything else is
counted as `Skipped`: requests and metadata, other answers, other media, robots.txt,
revisits (their page is another record).

A damaged record costs itself alone: reading goes on at the next one. In .warc.gz each
record is a gzip member of its own, which also makes large files readable in parts.
"""

from collections.abc import Iterator
import dataclasses
import functools
import io
import re
import zlib

from fastwarc.stream_io import GzipReader
from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from llm_jax.corpus.document import Broken, Raw
from llm_jax.corpus.read import http
from llm_jax.corpus.read.encoding import decode, is_binary
from llm_jax.corpus.read.unit import Input, Record, Skipped, Source, digest, numbered, ranges
from llm_jax.data import files

_MAX_BYTES = 64 << 20
_BLOCK_BYTES = 1 << 20
_GZIP_MEMBER = re.compile(rb'\x1f\x8b\x08')
_PLAIN_RECORD = re.compile(rb'(?:(?<=\n\r\n)|(?<=\n\n)|\A)WARC/\d\.\d+\r?\n')
_KINDS = {
    'text/html': 'html',
    'application/xhtml+xml': 'html',
    'text/plain': 'text',
    'text/markdown': 'markdown',
    'text/x-markdown': 'markdown',
}


@dataclasses.dataclass(frozen=True)
class _Part:
    """Bytes [start, stop) of a file; the records that start there."""

    name: str
    source: Source
    path: str
    file: files.File
    start: int
    stop: int


def inputs(name: str, source: Source, path: str, file: files.File) -> list[Input]:
    """Units of a web archive: ranges of bytes, each with the records that start in it."""
    # Compressed as one stream, as .zst is, an archive can only be read from its beginning.
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
    """Records that start in the part. Each is held back until the next one shows that it ended where it said."""
    with part.file.open() as stream:
        is_member = part.path.lower().endswith('.gz')
        start = part.start and _next_record(stream, part.start, part.stop, is_member)
        stop = _next_record(stream, part.stop, part.file.size, is_member) if part.stop < part.file.size else None
        stop = part.file.size if stop is None else stop
        while start is not None and start < stop:
            start = yield from _run(part, _Window(stream, start, stop), is_member)


def _run(part: _Part, window: '_Window', is_member: bool) -> Iterator[Record]:
    """Records up to the first damage; returns where to go on, or None at the end."""
    archive = ArchiveIterator(io.BufferedReader(window, 1 << 16), parse_http=False)
    held, last, repeats = None, window.start, 0
    while True:
        try:
            record = next(archive, None)
            if record is None:
                if held:
                    yield held
                return None
            offset = window.start + record.stream_pos
            repeats = repeats + 1 if held and offset == last else 0
            key = f'{offset}.{repeats}' if repeats else f'{offset}'
            last, found = offset, _record(part, record, key)
        except OSError as error:
            if error.errno is not None:  # of the file system
                raise
            break
