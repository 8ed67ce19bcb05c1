"""Documents to tokens, counted: what a corpus with stages and plain sources share on the way to rows."""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
from typing import TypeVar
import zlib

from llm_jax.corpus.batch import batches
from llm_jax.tokenizer import Tokenizer

# Validation text that gzip compresses, at most.
GZIP_BYTES = 32_000_000
_BATCH_CHARS = 1 << 20
T = TypeVar('T')


@dataclasses.dataclass
class Counts:
    """Size of one split of one source; a document has one token more than its text, for BOS."""

    documents: int = 0
    bytes: int = 0
    tokens: int = 0
    rows: int = 0

    def add(self, n_bytes: int, n_tokens: int) -> None:
        """Counts one document of so many bytes and tokens of text."""
        self.documents += 1
        self.bytes += n_bytes
        self.tokens += n_tokens + 1


def tokenise(
    items: Iterable[T], text_of: Callable[[T], str], tokenizer: Tokenizer, num_threads: int = 1
) -> Iterator[list[tuple[T, list[int]]]]:
    """Yields batches of (item, tokens of its text without BOS), in order; a batch is about a megabyte of text."""
    for batch in batches(items, lambda item: len(text_of(item)), _BATCH_CHARS):
        ids = tokenizer.encode_batch([text_of(item) for item in batch], num_threads=num_threads)
        yield list(zip(batch, ids, strict=True))


class GzipMeasure:
    """Bits per byte that `gzip -9` needs for the first bytes of a text: what a model's are compared with."""

    def __init__(self, limit: int = GZIP_BYTES):
        """Measures at most `limit` bytes."""
        self._compressor = zlib.compressobj(9, wbits=31)
        self._limit, self._size, self.bytes = limit, 0, 0

    def add(self, data: bytes) -> None:
        """Appends text; what is beyond the limit is ignored."""
        data = data[: self._limit - self.bytes]
        self._size += len(self._compressor.compress(data))
        self.bytes += len(data)

    @property
    def is_full(self) -> bool:
        """Whether the limit is reached."""
        return self.bytes >= self._limit

    def bits_per_byte(self) -> float | None:
        """Ends the stream and returns its bits per byte of text; None without text."""
        self._size += len(self._compressor.flush())
        return 8 * self._size / self.bytes if self.bytes else None
