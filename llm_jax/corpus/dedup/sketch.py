"""Sets of shingles, and small sketches of them from which their Jaccard similarity shows.

Broder, "On the resemblance and containment of documents" (1997): the share of equal
minima of two sets under many orders estimates |A ∩ B| / |A ∪ B|. The minima are found as
in Dahlgaard, Knudsen & Thorup, "Fast similarity sketching" (2017, arXiv:1704.04370):
each shingle is thrown into one of k bins, each bin keeps its minimum, and while a
document has empty bins its shingles are thrown again. That takes n + k log k steps for n
shingles, not n · k, and is at least as well concentrated.
"""

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from llm_jax.corpus.dedup import words

_EMPTY = np.uint64(2**64 - 1)
_LOW = np.uint64(2**32 - 1)
_HALF = np.uint64(32)


def shingles(texts: Sequence[str], ngram: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all runs of `ngram` words of each text, and the number of the text that each is of.

    A text of fewer words is one shingle, so that it is like none but its equals; a text
    without words has none.

    Returns:
      uint64[shingles], int64[shingles], in the order of the texts.
    """
    found = words.find_words(texts)
    begins, ends = found.offsets[:-1], found.offsets[1:]
    owners = found.owners()
    starts = np.arange(len(owners))
    inside = (starts + ngram <= ends[owners]) | (starts == begins[owners])
    starts, owners = starts[inside], owners[inside]
    return words.hash_spans(found.hashes, starts, np.minimum(starts + ngram, ends[owners])), owners


def sample(text: str, ngram: int, most: int) -> tuple[np.ndarray, int]:
    """The smallest `most` of the distinct hashes of a text's shingles, as 32 bits.

    Returns:
      uint32[hashes] in order, and the hash up to which they are all there.
    """
    hashes, _ = shingles([text], ngram)
    hashes = np.sort((hashes >> _HALF).astype(np.uint32))  # np.unique takes twenty times as long
    distinct = hashes[np.append(True, hashes[1:] != hashes[:-1])] if len(hashes) else hashes
    return distinct[:most], int(_LOW) if len(distinct) <= most else int(distinct[most - 1])


def signatures(hashes: np.ndarray, owners: np.ndarray, count: int, size: int) -> np.ndarray:
    """uint64[count, size], the minimum of each bin; documents without shingles have none but 2^64 - 1.

    Args:
      hashes, owners: as `shingles` gives them.
      count: documents.
      size: bins k.
    """
    minima = np.full((count, size), _EMPTY)
    multipliers = words.mix(np.arange(1, 2 * size + 1, dtype=np.uint64)) | np.uint64(1)
    throw = 0
    while len(hashes):
        # Few shingles need many throws: as many again as there have been.
        throws = np.arange(throw, min(max(2 * throw, 1), 2 * size))
        scaled = (hashes[:, None] * multipliers[throws] >> _HALF) * np.uint64(size)
        # After as many throws as there are bins, the rest are filled one by one.
        bins = np.where(throws < size, scaled >> _HALF, throws - size) if throws[-1] >= size else scaled >> _HALF
        # A later throw is worth more than any earlier one: it can only fill what is empty.
        values = (scaled & _LOW) | throws.astype(np.uint64) << _HALF
        np.minimum.at(minima.reshape(-1), (owners[:, None] * size + bins.astype(np.int64)).ravel(), values.ravel())
        unfinished = (minima == _EMPTY).any(axis=1)[owners]
        hashes, owners = hashes[unfinished], owners[unfinished]
        throw = throws[-1] + 1
    return minima


def band_keys(minima: np.ndarray, bands: int) -> np.ndarray:
    """uint64[documents, bands], equal if all minima of the band are; no two bands have the same keys."""
    count, size = minima.shape
    places = words.mix(np.arange(size, dtype=np.uint64)) | np.uint64(1)
    return words.mix((words.mix(minima) * places).reshape(count, bands, size // bands).sum(axis=2, dtype=np.uint64))


def jaccard(groups: np.ndarray, owners: np.ndarray, values: np.ndarray, limits: np.ndarray) -> tuple[np.ndarray, ...]:
    """Jaccard similarities of the documents within each group, of all pairs that share a shingle.

    Of a document with too many shingles only the smallest hashes are given, and two are
    compared on the hashes up to the smaller limit: these are an even sample of both. With
    m hashes in the sample the standard error is √(J (1 - J) / m); without limits it is 0.

    Args:
      groups: int64[documents], the group that each is in.
      owners: int64[hashes], the document that each hash is of; in order.
      values: uint32[hashes], distinct hashes of each document, in order.
      limits: uint32[documents], up to where the hashes of each are given.

    Returns:
      int64[pairs], int64[pairs] (left < right) and float64[pairs].
    """
    columns, places = np.unique(_pack(groups[owners], values), return_inverse=True)
    begins = np.searchsorted(owners, np.arange(len(groups) + 1))
    shape = (len(groups), len(columns))
    member = sparse.csr_array((np.ones(len(owners), np.int32), places, begins), shape)
    common = sparse.triu(member @ member.T, k=1).tocoo()
    left, right = (index.astype(np.int64) for index in common.coords)
    limit = np.minimum(limits[left], limits[right])
    packed = _pack(owners, values)
    size = lambda document: np.searchsorted(packed, _pack(document, limit), side='right') - begins[document]
    return left, right, common.data / (size(left) + size(right) - common.data)


def _pack(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    return high.astype(np.uint64) << _HALF | low
