"""The body of an HTTP answer as the server meant it: without transfer and content codings."""

from collections.abc import Callable
import functools
import re
import zlib

import brotli
import zstandard

from llm_jax.corpus.read.encoding import is_binary

_CHUNK = re.compile(rb'\s*([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n')


class BadBody(ValueError):
    """A body that cannot be decoded.

    Attributes:
      rule: 'truncated', 'content_encoding' or 'too_large'.
    """

    def __init__(self, rule: str, detail: str):
        super().__init__(detail)
        self.rule = rule


def body(data: bytes, transfer_encoding: str, content_encoding: str, limit: int) -> bytes:
    """Decodes a body. Archives often keep the headers of codings that they have undone: such a body stays.

    Args:
      data: as it was stored.
      transfer_encoding, content_encoding: the headers.
      limit: longest body in bytes.

    Raises:
      BadBody: it is cut off, not what the header says, or longer than the limit.
    """
    split = lambda header: re.split(r'[\s,]+', header.strip().lower())
    transfer = [coding for coding in split(transfer_encoding) if coding == 'chunked' or coding in _CODINGS]
    # The last one was applied last; those of the transfer after those of the content.
    for coding in reversed([*split(content_encoding), *transfer]):
        if coding == 'chunked':
            data = _unchunked(data)
        elif coding in _CODINGS and data:
            data = _decoded(data, coding, limit)
        elif coding not in ('', 'identity', 'none', 'utf-8', '8bit', 'binary'):
            raise BadBody('content_encoding', f'unknown: {coding[:40]!r}')
    return data


def _unchunked(data: bytes) -> bytes:
    match = _CHUNK.match(data)
    if not match:
        return data  # undone already
    out, position = [], 0
    while match := _CHUNK.match(data, position):
        size = int(match[1], 16)
        if not size:
            return b''.join(out)
        out.append(data[match.end() : match.end() + size])
        position = match.end() + size
    raise BadBody('truncated', f'its chunks end without the last one, after {sum(map(len, out))} bytes')


def _decoded(data: bytes, coding: str, limit: int) -> bytes:
    try:
        out, is_whole = _CODINGS[coding](data, limit)
    except (zlib.error, zstandard.ZstdError, brotli.error) as error:
        if not is_binary(data):
            return data  # undone already
        raise BadBody('content_encoding', f'{coding}: {error}') from error
    if len(out) > limit:
        raise BadBody('too_large', f'more than {limit} bytes')
    if not is_whole:
        raise BadBody('truncated', f'its {coding} stream ends after {len(out)} bytes of text')
    return out


def _inflated(data: bytes, limit: int, wbits: int) -> tuple[bytes, bool]:
    """(content, whether it is whole) of zlib streams that follow each other."""
    out = b''
    while data:
        stream = zlib.decompressobj(wbits)
        out += stream.decompress(data, limit + 1 - len(out))
        if not stream.eof:
            return out, False
        data = stream.unused_data if stream.unused_data.startswith(_GZIP) else b''
        if len(out) > limit:
            break
    return out, True


def _deflate(data: bytes, limit: int) -> tuple[bytes, bool]:
    # The standard says zlib; some servers send bare deflate.
    has_header = len(data) > 1 and data[0] & 15 == 8 and int.from_bytes(data[:2]) % 31 == 0
    return _inflated(data, limit, zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS)


def _brotli(data: bytes, limit: int) -> tuple[bytes, bool]:
    stream = brotli.Decompressor()
    out = stream.process(data, output_buffer_limit=limit + 1)
    while len(out) <= limit and (more := stream.process(b'', output_buffer_limit=limit + 1)):
        out += more
    return out, stream.is_finished()


def _zstd(data: bytes, limit: int) -> tuple[bytes, bool]:
    with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as stream:
        out = stream.read(limit + 1)
    return out, bool(out)


_GZIP = b'\x1f\x8b'
_CODINGS: dict[str, Callable[[bytes, int], tuple[bytes, bool]]] = {
    'gzip': functools.partial(_inflated, wbits=zlib.MAX_WBITS | 16),
    'x-gzip': functools.partial(_inflated, wbits=zlib.MAX_WBITS | 16),
    'deflate': _deflate,
    'br': _brotli,
    'zstd': _zstd,
}
