"""Files of text: local or in the cloud, plain or compressed, read in pieces."""

import bz2
import codecs
from collections.abc import Callable, Iterator
import dataclasses
import lzma
import os
from typing import Any, BinaryIO
import zlib

import fsspec
import zstandard

from llm_jax.config.schema import ConfigError

_BLOCK_BYTES = 1 << 20
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
        """The content, decompressed if the name ends in .gz, .zst, .bz2 or .xz, about a MiB at a time.

        Raises:
          Damaged: a file that is cut off or not what its name says.
        """
        start = _DECOMPRESSORS.get(os.path.splitext(self.path)[1])
        with self.open() as stream:
            raw = iter(lambda: stream.read(_BLOCK_BYTES), b'')
            yield from _decompressed(raw, start, self.path) if start else raw

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
        return fsspec.core.url_to_fs(os.path.expanduser(url))
    except (ImportError, ValueError) as error:
        package = {'gs': 'gcsfs', 'gcs': 'gcsfs', 's3': 's3fs'}.get(url.partition('://')[0])
        fix = f'; pip install {package}' if package else ''
        raise ConfigError(f'cannot read {url!r}: {error}{fix}') from error


def find(pattern: str, field: str) -> list[File]:
    """Files that a path or glob names, in order of their path.

    Raises:
      ConfigError: naming `field`, when there are none.
    """
    fs, path = filesystem(pattern)
    found = [path] if fs.isfile(path) else [p for p in fs.glob(path) if fs.isfile(p)]
    if not found:
        hint = f'; it is a directory: write {pattern.rstrip("/")}/*' if fs.isdir(path) else ''
        raise ConfigError(f'{field}: no file matches {pattern!r} (from {os.getcwd()}){hint}')
    return [File.of(fs, fs.info(p)) for p in sorted(found)]


def _stamp(info: dict[str, Any]) -> str:
    tag = next(
        (info[key] for key in ('etag', 'ETag', 'md5Hash', 'mtime', 'LastModified', 'created') if key in info), ''
    )
    return f'{info["size"]} {tag}'


def _gzip() -> Any:
    return zlib.decompressobj(wbits=31)


def _zstd() -> Any:
    return zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()


# .tgz is .tar.gz.
_DECOMPRESSORS = {'.gz': _gzip, '.tgz': _gzip, '.zst': _zstd, '.bz2': bz2.BZ2Decompressor, '.xz': lzma.LZMADecompressor}


def _decompressed(raw: Iterator[bytes], start: Callable[[], Any], path: str) -> Iterator[bytes]:
    """Decompresses frames that follow each other; unlike file objects, notices a cut-off one."""
    decompressor = None
    for block in raw:
        while block:
            decompressor = decompressor or start()
            try:
                piece = decompressor.decompress(block)
            except (zlib.error, zstandard.ZstdError, lzma.LZMAError, OSError) as error:  # OSError: of bz2
                raise Damaged(f'{path} cannot be decompressed: {error}') from error
            yield piece
            block = b''
            if decompressor.eof:
                block, decompressor = decompressor.unused_data, None
    if decompressor is not None:
        raise Damaged(f'{path} is cut off: its compressed data ends in the middle')


def _not_utf8(path: str, start: int, error: UnicodeDecodeError) -> ConfigError:
    byte = error.object[error.start]
    return ConfigError(
        f'{path} is not UTF-8: byte 0x{byte:02X} at offset {start + error.start} (of the decompressed content); '
        'convert it, for example with iconv -t UTF-8'
    )
