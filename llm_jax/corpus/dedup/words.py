"""The words of many texts at once, as 64-bit hashes: what duplicates are told by.

A word is a run of letters, marks, digits and operators, in lower case. Spaces and other
punctuation separate words and count for nothing, so that quotes, dashes, hyphens,
brackets and line breaks may differ. Operators count, or '3 * 5' would equal '3 / 5'.
In scripts that are written without spaces each character is a word.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import unicodedata

import numpy as np

from llm_jax.corpus.document import Document

# Punctuation by Unicode's categories that still makes a difference of meaning.
_OPERATORS = '*/%_&@#\\'
_HAN = (0x20000, 0x32400)
# Thai and Lao; Myanmar; Khmer; kana, Bopomofo and Han with its extensions; half-width kana.
_UNSPACED = (
    (0x0E00, 0x0F00), (0x1000, 0x10A0), (0x1780, 0x1800), (0x3005, 0x3008), (0x3040, 0x3130), (0x31A0, 0x31C0),
    (0x31F0, 0x3200), (0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00), (0xFF66, 0xFFA0), _HAN,
)  # fmt: skip
# Base of the polynomial: odd, so that its powers have inverses modulo 2^64; 3 modulo 8, so that
# 1 - base^n keeps all but a few of the 64 bits and words in another order have another hash.
_BASE = 0x9E3779B97F4A7C13
_INVERSE = pow(_BASE, -1, 2**64)
_ROW = 4096
_BLOCK = 1 << 17


@dataclasses.dataclass(frozen=True, slots=True)
class Words:
    """The words of some texts, which stand one after the other, each on a new line.

    Attributes:
      hashes: uint64[words], evenly spread.
      starts, stops: int64[words], first character of a word, and the one past it.
      offsets: int64[texts + 1], the words of text t are offsets[t] to offsets[t + 1].
      codes: uint32[characters], code points of the joined texts.
    """

    hashes: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    offsets: np.ndarray
    codes: np.ndarray

    def owners(self) -> np.ndarray:
        """int64[words], the text that each word is of."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


def mix(values: np.ndarray) -> np.ndarray:
    """uint64, a permutation of 64 bits after which all bits depend on all (SplitMix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def hash_spans(values: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """uint64[spans], hashes of values[start:stop], each a polynomial of what stands in it, in order.

    Args:
      values: uint64, evenly spread; 0 adds nothing.
    """
    rows, row = _tables(_BASE, len(values))
    powers = np.multiply.outer(rows[: len(values) // _ROW + 1], row).reshape(-1)[: len(values)]
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values * powers, out=sums[1:])
    rows, row = _tables(_INVERSE, len(values))
    return mix((sums[stops] - sums[starts]) * rows[starts // _ROW] * row[starts % _ROW])


def runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where runs of equal values begin and end."""
    borders = np.flatnonzero(values[1:] != values[:-1]) + 1
    edges = np.concatenate([[0], borders, [len(values)]]) if len(values) else np.zeros(1, np.int64)
    return edges[:-1], edges[1:]


def find_words(texts: Sequence[str], *, operators: bool = True) -> Words:
    """All words of some texts.

    Args:
      texts: any number of them.
      operators: whether operators and signs make a difference; else they only separate words.
    """
    codes = np.frombuffer('\n'.join(texts).encode('utf-32-le', 'surrogatepass'), '<u4')
    values = np.take(_values(operators), codes, mode='clip')
    inside = np.zeros(len(codes) + 2, bool)
    np.not_equal(values, 0, out=inside[1:-1])
    if len(codes) and codes.max() >= _UNSPACED[0][0]:
        alone = np.zeros_like(inside)
        alone[1:-1] = np.take(_alone(), codes, mode='clip')
        border = (inside[1:] != inside[:-1]) | (alone[1:] | alone[:-1])
        starts = np.flatnonzero(border[:-1] & inside[1:-1])
        stops = np.flatnonzero(border[1:] & inside[1:-1]) + 1
    else:
        borders = np.flatnonzero(inside[1:] != inside[:-1])
        starts, stops = borders[::2], borders[1::2]
    begins = np.cumsum([0] + [len(text) + 1 for text in texts])
    return Words(hash_spans(values, starts, stops), starts, stops, np.searchsorted(starts, begins), codes)


def in_blocks(documents: Sequence[Document]) -> Iterator[tuple[int, Sequence[str]]]:
    """Texts of consecutive documents, enough at a time for arrays to pay and few enough to stay in the cache.

    Yields:
      the number of the first document, and the texts from there on.
    """
    first, size = 0, 0
    for i, document in enumerate(documents):
        size += len(document.text)
        if size >= _BLOCK or i + 1 == len(documents):
            yield first, [d.text for d in documents[first : i + 1]]
            first, size = i + 1, 0


def folded(text: str) -> bytes:
    """What counts of a text: its words in lower case, one separator between them.

    A text without any word (only punctuation, say) counts as it is.
    """
    codes = np.frombuffer(text.encode('utf-32-le', 'surrogatepass'), '<u4')
    fold = np.take(folding(), codes, mode='clip')
    kept = fold != 0
    if not kept.any():
        return text.encode('utf-8', 'surrogatepass')
    # The first separator after a word stays.
    stays = kept.copy()
    stays[1:] |= kept[:-1]
    stays[len(fold) - np.argmax(kept[::-1]) :] = False
    return fold[stays].tobytes()


@functools.cache
def folding() -> np.ndarray:
    """uint32[0x110000], the lower case of each code point; 0 for those that separate words."""
    table = np.zeros(0x110000, np.uint32)
    table[_HAN[0] : _HAN[1]] = np.arange(*_HAN)
    for code in range(_HAN[0]):  # above there are only Han, tags and private signs
        character = chr(code)
        category = unicodedata.category(character)
        if category[0] in 'LMN' or category in ('Sm', 'Sc') or character in _OPERATORS:
            table[code] = ord(character.lower()[0])
    return table


@functools.cache
def _values(operators: bool) -> np.ndarray:
    """uint64[0x110000], what each code point adds to the hash of a word; 0 for separators."""
    table = mix(folding().astype(np.uint64))
    if not operators:
        table[[code for code in range(0x20000) if unicodedata.category(chr(code))[0] not in 'LMN']] = 0
    return table


@functools.cache
def _alone() -> np.ndarray:
    """bool[0x110000], whether a code point is a word by itself."""
    table = np.zeros(0x110000, bool)
    for first, stop in _UNSPACED:
        table[first:stop] = folding()[first:stop] != 0
    return table


@functools.cache
def _powers(base: int, count: int) -> np.ndarray:
    """uint64[count], base^0, base^1, ... modulo 2^64."""
    return np.cumprod(np.append(np.uint64(1), np.full(count - 1, base, np.uint64)))


def _tables(base: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Two small tables, so that base^i is rows[i // _ROW] * row[i % _ROW] for all i up to `count`."""
    rows = 1 << (count // _ROW).bit_length()
    return _powers(pow(base, _ROW, 2**64), rows), _powers(base, _ROW)
