"""Packing: documents of tokens become rows of fixed length.

All documents of a split are one stream, BOS d1 BOS d2 ... Rows take L + 1 tokens of
it and advance by L, so that neighbours share one token and every token but the very
first is a target exactly once.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np


def row_dtype(vocab_size: int) -> type[np.unsignedinteger]:
    """The smallest stored type that holds every token: uint16 up to V = 65536."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def pack(
    documents: Iterable[Sequence[int]], *, seq_len: int, bos_id: int, vocab_size: int, keep_tail: bool
) -> Iterator[tuple[np.ndarray, int]]:
    """Rows of a stream of documents.

    Args:
      documents: tokens of each document, without BOS; any number of them.
      seq_len: L, the targets of one row.
      bos_id: the token put before each document.
      vocab_size: V; picks the type of the rows.
      keep_tail: whether the last, incomplete row is given too, its rest filled with BOS.

    Yields:
      (tokens uint16[L+1] or uint32[L+1], how many of them are real). A row has at
      least 2 real tokens: one to see, one to predict.
    """
    dtype = row_dtype(vocab_size)
    pending: list[np.ndarray] = []
    size = 0
    for document in documents:
        pending.append(np.concatenate([[bos_id], np.asarray(document, dtype)]).astype(dtype))
        size += len(pending[-1])
        if size <= seq_len:
            continue
        stream = np.concatenate(pending)
        count = (size - 1) // seq_len
        for i in range(count):
            yield stream[i * seq_len : (i + 1) * seq_len + 1], seq_len + 1
        pending = [stream[count * seq_len :].copy()]
        size = len(pending[0])
    if keep_tail and size > 1:
        tail = np.concatenate(pending)
        yield np.concatenate([tail, np.full(seq_len + 1 - size, bos_id, dtype)]), size
