"""Files of text: local or in the cloud, plain or compressed, read in pieces."""

import bz2
import codecs
from collections.abc import Callable, Iterator
import dataclasses
import io
import lzma
import os
from typing import Any, BinaryIO
import zlib

import fsspec
import zstandard

from llm_jax.config.schema import ConfigError

_BLOCK_BYTES = 1 << 20
# What zstandard compresses at a time: an error costs no more than the block that it is in.
_ZSTD_BYTES = 1 << 17
# Files of long-range mode (`zstd --long=31`) need a window this large.
_ZSTD_WINDOW = 1 << 31


class Damaged(ConfigError):
    """A compressed file that is cut off or not what its name says."""


@dataclasses.dataclass(frozen=True)
class File:
    """One file of a source.

    Attributes:
      path: as errors name it.
      size: in bytes, as it is stored.
      stamp: what changes when the file does (size and time, or the store's own tag).
    """

    path: str
    size: int
    stamp: str
    _fs: fsspec.AbstractFileSystem = dataclasses.field(repr=False, compare=False)

    @classmethod
    def of(cls, fs: fsspec.AbstractFileSystem, info: dict[str, Any]) -> 'File':
        """The file that an entry of a listing describes."""
        return cls(info['name'], info['size'], _stamp(info), fs)

    def open(self) -> BinaryIO:
        return self._fs.open(self.path, 'rb')

    def blocks(self) -> Iterator[bytes]:
        """The content, decompressed if the name ends in .gz, .zst, .bz2 or .xz, at most a MiB at a time.

        Raises:
          Damaged: a file that is cut off or not what its name says.
        """
        suffix = os.path.splitext(self.path)[1]
        with self.open() as stream:
            if suffix == '.zst':
                yield from _from_zstandard(stream, self.path)
            elif start := _DECOMPRESSORS.get(suffix):
                yield from _decompressed(stream, start, self.path)
            else:
                yield from iter(lambda: stream.read(_BLOCK_BYTES), b'')

    def text(self) -> Iterator[str]:
        """The content as UTF-8, piece by piece, without a byte order mark."""
        decoder = codecs.getincrementaldecoder('utf-8')()
        read, mark = 0, '\ufeff'  # a byte order mark at the beginning is no text
        for block in self.blocks():
            held = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block)
            except UnicodeDecodeError as error:
                raise _not_utf8(self.path, read - held, error) from error
            if text:
                yield text.removeprefix(mark)
                mark = ''
            read += len(block)
        held = len(decoder.getstate()[0])
        try:
            decoder.decode(b'', final=True)
        except UnicodeDecodeError as error:
            raise _not_utf8(self.path, read - held, error) from error

    def lines(self) -> Iterator[str]:
        """Lines without their '\\n'."""
        rest = ''
        for block in self.text():
            first, *others = block.split('\n')
            rest += first
            for line in others:
                yield rest
                rest = line
        if rest:
            yield rest


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a path or URL, and the path within it.

    Raises:
      ConfigError: a scheme that needs a package that is not installed, or is unknown.
    """
    try:
        if '::' in url and not _is_chain(url):  # a name may have colons
            fs = fsspec.filesystem(url.partition('://')[0] if '://' in url else 'file')
            return fs, fs._strip_protocol(os.path.expanduser(url))
        return fsspec.core.url_to_fs(os.path.expanduser(url))
    except (ImportError, ValueError) as error:
        package = {'gs': 'gcsfs', 'gcs': 'gcsfs', 's3': 's3fs'}.get(url.partition('://')[0])
        fix = f'; pip install {package}' if package else ''
        raise ConfigError(f'cannot read {url!r}: {error}{fix}') from error


def _is_chain(url: str) -> bool:
    """Tells if each part between '::' names a file system, as in 'simplecache::s3://...' or 'zip://a.txt::b.zip'."""
    first, *others = url.split('::')
    known = lambda part: '://' in part or part in fsspec.available_protocols()
    return known(first) and (all(map(known, others)) or '://' in first and os.path.exists(others[-1]))


def _literal(fs: fsspec.AbstractFileSystem, path: str) -> str:
    """A glob in which the brackets of directories that exist stand for themselves."""
    if '[' not in path:
        return path
    parts = path.split('/')
    there = max((i for i in range(1, len(parts)) if fs.isdir('/'.join(parts[:i]) or '/')), default=0)
    return '/'.join([*(part.replace('[', '[[]') for part in parts[:there]), *parts[there:]])


def find(pattern: str, field: str) -> list[File]:
    """Files that a path or glob names, in order of their path.

    Raises:
      ConfigError: naming `field`, when there are none.
    """
    fs, path = filesystem(pattern)
    found = [path] if fs.isfile(path) else [p for p in fs.glob(_literal(fs, path)) if fs.isfile(p)]
    if not found:
        hint = f'; it is a directory: write {pattern.rstrip("/")}/*' if fs.isdir(path) else '; name text that is there'
        raise ConfigError(f'{field}: no file matches {pattern!r} (from {os.getcwd()}){hint}')
    return [File.of(fs, fs.info(p)) for p in sorted(found)]


def _stamp(info: dict[str, Any]) -> str:
    tag = next(
        (info[key] for key in ('etag', 'ETag', 'md5Hash', 'mtime', 'LastModified', 'created') if key in info), ''
    )
    return f'{info["size"]} {tag}'


def _gzip() -> Any:
    return zlib.decompressobj(wbits=31)


# .tgz is .tar.gz.
_DECOMPRESSORS = {'.gz': _gzip, '.tgz': _gzip, '.bz2': bz2.BZ2Decompressor, '.xz': lzma.LZMADecompressor}


def _decompressed(stream: BinaryIO, start: Callable[[], Any], path: str) -> Iterator[bytes]:
    """Decompresses frames that follow each other, at most a MiB at a time; notices a cut-off one."""
    frame, data, padding = None, b'', b''
    while True:
        if not data and (frame is None or getattr(frame, 'needs_input', True)):
            data = stream.read(_BLOCK_BYTES)
            if not data:
                break
        if frame is None:
            data = data.lstrip(padding)
            if not data:
                continue
            frame = start()
        try:
            piece = frame.decompress(data, _BLOCK_BYTES)
        except (zlib.error, lzma.LZMAError, OSError) as error:  # OSError: of bz2
            raise Damaged(f'{path} cannot be decompressed: {error}') from error
        if piece:
            yield piece
        data = getattr(frame, 'unconsumed_tail', b'')  # zlib's; the others hold what they have not used
        if frame.eof:
            data, frame, padding = frame.unused_data, None, b'\0'  # tapes and disks fill up their last block
    if frame is not None:
        raise Damaged(_CUT_OFF.format(path))


# A frame of our own behind the last one of a zstandard file is read only if that one is whole.
_MARK = b'whole to the end'
_CUT_OFF = '{} is cut off: its compressed data ends in the middle'


class _Marked(io.RawIOBase):
    """A stream followed by a zstandard frame that holds `_MARK`."""

    def __init__(self, stream: BinaryIO):
        self._stream, self._frame = stream, zstandard.compress(_MARK)

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        if not data:
            data, self._frame = self._frame, b''
        return data

    @property
    def is_read(self) -> bool:
        """Whether nothing is left."""
        return not self._frame


def _from_zstandard(stream: BinaryIO, path: str) -> Iterator[bytes]:
    """Decompresses frames that follow each other, at most a MiB at a time; notices a cut-off one."""
    source, held = _Marked(stream), b''
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    with decompressor.stream_reader(source, read_across_frames=True, closefd=False) as reader:
        try:
            while block := reader.read(_ZSTD_BYTES):
                held += block
                if len(held) > len(_MARK):
                    yield held[: -len(_MARK)]
                    held = held[-len(_MARK) :]
        except zstandard.ZstdError as error:
            if source.is_read:
                raise Damaged(_CUT_OFF.format(path)) from error
            raise Damaged(f'{path} cannot be decompressed: {error}') from error
    if held != _MARK:
        raise Damaged(_CUT_OFF.format(path))


def _not_utf8(path: str, start: int, error: UnicodeDecodeError) -> ConfigError:
    byte = error.object[error.start]
    return ConfigError(
        f'{path} is not UTF-8: byte 0x{byte:02X} at offset {start + error.start} (of the decompressed content); '
        'convert it, for example with iconv -t UTF-8'
    )
