"""Shards: the documents that one worker holds at a time, as lines of JSON under zstandard."""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import dataclasses
import hashlib
import io
import json
from typing import Any, BinaryIO

import zstandard

from llm_jax.config.schema import ConfigError
from llm_jax.corpus.document import Document
from llm_jax.corpus.storage import Store

_LEVEL = 3
_TEXTS = ('id', 'source', 'where', 'text', 'kind', 'language', 'licence', 'title', 'cluster')


@dataclasses.dataclass(frozen=True)
class Shard:
    """What is known of one shard without reading it.

    Attributes:
      source: of all its documents.
      file: its name in the store.
      documents: how many.
      bytes: of their texts.
      digest: of its content; shards with the same one are equal.
    """

    source: str
    file: str
    documents: int
    bytes: int
    digest: str


def to_json(document: Document) -> dict[str, Any]:
    """The fields of a document that are not empty."""
    out = {name: value for name in _TEXTS if (value := getattr(document, name))}
    if document.signals:
        out['signals'] = {name: float(value) for name, value in document.signals.items()}
    return out


def from_json(fields: dict[str, Any]) -> Document:
    return Document(**{'text': '', 'where': ''} | fields)


class _Writer:
    def __init__(self, stream: BinaryIO):
        self._stream = stream
        self._hash = hashlib.blake2b(digest_size=16)
        self.documents = self.bytes = 0

    def add(self, document: Document, n_bytes: int) -> None:
        line = json.dumps(to_json(document), ensure_ascii=False).encode() + b'\n'
        self._hash.update(line)
        self._stream.write(line)
        self.documents += 1
        self.bytes += n_bytes

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


def write(store: Store, file: str, source: str, documents: Iterable[tuple[Document, int]]) -> Shard:
    """Writes one shard.

    Args:
      store: where to.
      file: its name there.
      source: of all the documents.
      documents: each with the bytes of its text.
    """
    with store.writing(file) as out, _compressor().stream_writer(out, closefd=False) as stream:
        writer = _Writer(stream)
        for document, n_bytes in documents:
            writer.add(document, n_bytes)
    return Shard(source, file, writer.documents, writer.bytes, writer.digest)


def write_parts(
    store: Store, name: Callable[[int], str], source: str, documents: Iterable[tuple[Document, int]], max_bytes: int
) -> list[Shard]:
    """Writes documents as shards of about `max_bytes` of text each; no document makes no shard.

    Args:
      name: the name of the shard of that number.
    """
    shards: list[Shard] = []
    rest = iter(documents)
    for first in rest:
        shards.append(write(store, name(len(shards)), source, _up_to(first, rest, max_bytes)))
    return shards


def _up_to(first: tuple[Document, int], rest: Iterator, max_bytes: int) -> Iterator[tuple[Document, int]]:
    yield first
    size = first[1]
    while size < max_bytes and (item := next(rest, None)) is not None:
        yield item
        size += item[1]


def read(store: Store, shard: Shard) -> Iterator[Document]:
    """Documents of a shard, one at a time.

    Raises:
      ConfigError: the file is missing or damaged.
    """
    with store.reading(shard.file) as stream:
        with _damage(store, shard):
            lines = io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(stream), 1 << 20)
        count = 0
        while True:
            with _damage(store, shard):
                line = lines.readline()
                document = from_json(json.loads(line)) if line else None
            if document is None:
                break
            count += 1
            yield document
    if count != shard.documents:
        raise _damaged(store, shard, f'it ends after {count} of {shard.documents} documents')


@contextlib.contextmanager
def _damage(store: Store, shard: Shard) -> Iterator[None]:
    try:
        yield
    except (zstandard.ZstdError, json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise _damaged(store, shard, str(error)) from error


def _damaged(store: Store, shard: Shard, what: str) -> ConfigError:
    return ConfigError(
        f'{store.path(shard.file)} is damaged: {what}; remove the work directory {store.path("")} '
        'and run the same command again'
    )


def _compressor() -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
