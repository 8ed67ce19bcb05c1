"""Packing: documents of tokens become rows of fixed length.

`pack`: all documents of a split are one stream, BOS d1 BOS d2 ... Rows take L + 1 tokens of
it and advance by L, so that neighbours share one token and every token but the very
first is a target exactly once.

`best_fit`: a document that a row can hold is never cut (Ding et al. 2024, "Fewer
Truncations Improve Language Modeling", arXiv:2404.10830). Longer ones are cut into pieces
of L tokens, each led by BOS like a document, and the pieces are put into rows, the longest
first, each into the fullest row that still has room. Every token is a target exactly once.
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


def best_fit(
    documents: Iterable[Sequence[int]], *, seq_len: int, bos_id: int, vocab_size: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Rows in which documents stay whole where they fit; holds all of them in memory.

    Args:
      documents: tokens of each document, without BOS; one without tokens makes nothing.
      seq_len: L, the targets of one row.
      bos_id: the token put before each piece.
      vocab_size: V; picks the type of the rows.

    Yields:
      (tokens uint16[L+1] or uint32[L+1], how many of them are real), the longest pieces
      first. The rest of a row is filled with BOS.
    """
    dtype = row_dtype(vocab_size)
    held = [np.asarray(document, dtype) for document in documents]
    # A piece takes one place more than it has tokens, for its BOS.
    pieces = [(i, start) for i, document in enumerate(held) for start in range(0, len(document), seq_len)]
    sizes = np.array([1 + min(len(held[i]) - start, seq_len) for i, start in pieces], np.int64)
    order = np.argsort(-sizes, kind='stable')
    for row in fill_bins(sizes[order].tolist(), seq_len + 1):
        tokens = np.full(seq_len + 1, bos_id, dtype)
        end = 0
        for place in row:
            i, start = pieces[order[place]]
            piece = held[i][start : start + seq_len]
            tokens[end + 1 : end + 1 + len(piece)] = piece
            end += 1 + len(piece)
        yield tokens, end


def fill_bins(sizes: Sequence[int], room: int, most: int = 0) -> list[list[int]]:
    """Which of the items, whose sizes fall, share a bin of that room: each goes where it leaves least.

    Args:
      sizes: of the items, none above `room`.
      room: of a bin.
      most: items in a bin; 0 means as many as there is room for.
    """
    bins: list[list[int]] = []
    by_space: list[list[int]] = [[] for _ in range(room + 1)]
    spaces = 0  # bit s is set where some bin has exactly s places left
    for item, size in enumerate(sizes):
        wide_enough = spaces >> size
        if wide_enough:
            space = size + (wide_enough & -wide_enough).bit_length() - 1
            place = by_space[space].pop()
            if not by_space[space]:
                spaces ^= 1 << space
        else:
            space, place = room, len(bins)
            bins.append([])
        bins[place].append(item)
        left = space - size
        if left and len(bins[place]) != most:
            by_space[left].append(place)
            spaces |= 1 << left
    return bins
