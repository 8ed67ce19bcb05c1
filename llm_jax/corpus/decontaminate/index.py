"""The index of what to look for: hashes of runs of words, sorted, on disk, shared by all workers.

Two tables of n-grams lead from a document to the texts of benchmarks:
    exact   every run of `ngram` words. One that occurs says that the text is in the document.
    seeds   every run of 4 words. Several near one another say where to compare closely: they find
            what was changed on its way, and texts that are too short for the first table.
Not in the tables: n-grams that more than `common` items share (the wording of a task, of
choices), as they say nothing of a single item; runs of numbers or of very few different words.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
import unicodedata

import numpy as np

from llm_jax.corpus.decontaminate import benchmarks
from llm_jax.corpus.dedup.words import find_words, hash_spans

SEED = 4
# Longer texts are compared in pieces, of this many words at most: a page may have part of them.
_PIECE = 40
# A seed that more pieces than this have leads to none of them, unless they have no rarer one.
_COMMON_SEED = 24
# What must be in it to tell anything: (share of words of two letters or more, share of different words, how many
# different ones are enough). What is looked for word by word is not to be a row of numbers; what may be changed
# needs more: x, y and 1 stand in all mathematics and code.
_EXACT_NEEDS, _NEAR_NEEDS = (0.15, 0.35, 5), (0.7, 0.6, 8)
# Their characters are words: one letter is enough.
_EAST_ASIAN = 0x2E80
# Texts whose words are found at a time.
_BLOCK = 4096
# Changes when what is stored does.
_FORMAT = 6
_ARRAYS = (
    'words', 'text_item', 'text_grams', 'piece_text', 'piece_start', 'piece_length', 'piece_seeds',
    'exact_keys', 'exact_texts', 'exact_bits', 'seed_keys', 'seed_pieces', 'seed_offsets', 'seed_bits',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Index:
    """What to look for; arrays are memory-mapped.

    Attributes:
      names: of the items: their benchmark, and 'FILE#RECORD'.
      skipped: how many items cannot be looked for, by benchmark.
      words: uint64, hashes of the words of all texts.
      text_item: int32[texts], index into `names`.
      text_grams: int32[texts], how many different n-grams of the text are in the exact table.
      piece_text, piece_start, piece_length: int32[pieces], a run of `words`.
      piece_seeds: int32[pieces], how many of its seeds are in the table.
      exact_keys: uint64, sorted hashes; exact_texts: int32, the text that each is of.
      seed_keys: uint64, sorted hashes; seed_pieces: int32, and seed_offsets: int16, where each is.
      exact_bits, seed_bits: uint8, bit h >> (64 - log2 of bits) is set for each key h: most words of
        a document end here, in a table that stays in the cache.
    """

    names: Sequence[tuple[str, str]]
    skipped: dict[str, int]
    words: np.ndarray
    text_item: np.ndarray
    text_grams: np.ndarray
    piece_text: np.ndarray
    piece_start: np.ndarray
    piece_length: np.ndarray
    piece_seeds: np.ndarray
    exact_keys: np.ndarray
    exact_texts: np.ndarray
    exact_bits: np.ndarray
    seed_keys: np.ndarray
    seed_pieces: np.ndarray
    seed_offsets: np.ndarray
    seed_bits: np.ndarray


def normalised(text: str) -> str:
    """The text in Unicode's NFKC: full-width letters, ligatures and no-break spaces are plain ones. Keeps lines."""
    return text if text.isascii() else unicodedata.normalize('NFKC', text)


def grams(words: np.ndarray, n: int) -> np.ndarray:
    """uint64[len(words) - n + 1], hashes of the runs of n words."""
    starts = np.arange(max(0, len(words) - n + 1))
    return hash_spans(words, starts, starts + n)


def lookup(keys: np.ndarray, bits: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All (position in `wanted`, position in the sorted `keys`) of equal hashes."""
    slot = wanted >> np.uint64(64 - _log2_bits(bits))
    maybe = np.flatnonzero((bits[slot >> np.uint64(3)] >> (slot & np.uint64(7)).astype(np.uint8)) & 1)
    maybe = maybe[np.argsort(wanted[maybe])]  # neighbours among the keys are found faster one after the other
    values = wanted[maybe]
    low = np.searchsorted(keys, values, 'left')
    found = np.flatnonzero(keys[np.minimum(low, len(keys) - 1)] == values) if len(keys) else np.zeros(0, int)
    maybe, low = maybe[found], low[found]
    counts = np.searchsorted(keys, values[found], 'right') - low
    ends = np.cumsum(counts)
    within = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
    return np.repeat(maybe, counts), np.repeat(low, counts) + within


def load(options, cache_dir: str) -> Index:
    """The index of the benchmarks that options name, out of the cache if it is there.

    Args:
      options: a `Decontaminate`.
      cache_dir: of all indices; each has a directory of its own, named by a hash of all it depends on.

    Raises:
      ConfigError: a benchmark that cannot be read.
    """
    parts = (
        _FORMAT,
        options.rule,
        options.ngram,
        options.min_words,
        options.common,
        benchmarks.fingerprint(options.benchmarks),
    )
    directory = pathlib.Path(cache_dir) / hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
    if not directory.exists():
        names, skipped, arrays = build(
            (item for name, where in options.benchmarks.items() for item in benchmarks.read(name, where)),
            ngram=options.ngram, min_words=options.min_words,
            common=None if options.rule == 'gpt3' else options.common,
        )  # fmt: skip
        _write(directory, names, skipped, arrays)
    about = json.loads((directory / 'items.json').read_text())
    arrays = {name: np.load(directory / f'{name}.npy', mmap_mode='r').view(np.ndarray) for name in _ARRAYS}
    return Index(about['names'], about['skipped'], **arrays)


def _write(directory: pathlib.Path, names: list, skipped: dict, arrays: dict[str, np.ndarray]) -> None:
    """Whole or not at all; of several processes that build the same one, the first wins."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(tempfile.mkdtemp(dir=directory.parent, prefix='.partial-'))
    for name in _ARRAYS:
        np.save(partial / f'{name}.npy', arrays[name])
    (partial / 'items.json').write_text(json.dumps({'names': names, 'skipped': skipped}))
    try:
        os.rename(partial, directory)
    except OSError:
        shutil.rmtree(partial)
        if not directory.exists():
            raise


def build(
    items: Iterable[benchmarks.Item], *, ngram: int, min_words: int, common: int | None
) -> tuple[list, dict, dict]:
    """(names, skipped, arrays) of an `Index`; with `common` None, every n-gram of every text counts."""
    names, texts, owners = [], [], []
    for item in items:
        names.append((item.benchmark, item.name))
        texts += [normalised(text) for text in item.texts]
        owners += [len(names) - 1] * len(item.texts)
    words, letters, lengths = _all_words(texts)
    owners = np.array(owners, np.int32)
    # Texts that are long enough, and tell something.
    text = np.repeat(np.arange(len(texts)), lengths)
    again = _previous(words, text) >= 0
    with_letters, different = (np.bincount(text, flags, len(texts)) for flags in (letters, ~again))
    good = lengths >= min_words
    if common is not None:
        good &= _telling(with_letters, different, lengths, _EXACT_NEEDS)
    words, letters = words[good[text]], letters[good[text]]
    lengths, owners = lengths[good], owners[good]
    skipped: dict[str, int] = {}
    for item in sorted(set(range(len(names))) - set(owners.tolist())):
        skipped[names[item][0]] = skipped.get(names[item][0], 0) + 1

    keys, key_texts = _exact(words, letters, lengths, owners, ngram, common)
    pieces, seed_keys, seed_pieces, seed_offsets = _seeds(words, letters, lengths, ngram)
    arrays = {
        'words': words,
        'text_item': owners,
        'text_grams': np.bincount(key_texts, minlength=len(lengths)).astype(np.int32),
        'piece_text': pieces[0], 'piece_start': pieces[1], 'piece_length': pieces[2],
        'piece_seeds': np.bincount(seed_pieces, minlength=len(pieces[0])).astype(np.int32),
        'exact_keys': keys, 'exact_texts': key_texts, 'exact_bits': _bits(keys),
        'seed_keys': seed_keys, 'seed_pieces': seed_pieces, 'seed_offsets': seed_offsets, 'seed_bits': _bits(seed_keys),
    }  # fmt: skip
    return names, skipped, arrays


def _all_words(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(uint64[words] hashes, bool[words] whether a word has two letters, int64[texts] words of each)."""
    weight = np.array([chr(code).isalpha() * (1 + (code >= _EAST_ASIAN)) for code in range(0x20000)], np.int8)
    hashes, letters, lengths = [np.zeros(0, np.uint64)], [np.zeros(0, bool)], [np.zeros(0, int)]
    for start in range(0, len(texts), _BLOCK):
        words = find_words(texts[start : start + _BLOCK], operators=False)
        if len(words.hashes):
            # No letter stands between words: from the start of one to that of the next there are only its own.
            count = np.add.reduceat(np.take(weight, words.codes, mode='clip'), words.starts, dtype=np.int32)
            letters.append(count >= 2)
        hashes.append(words.hashes)
        lengths.append(np.diff(words.offsets))
    return np.concatenate(hashes), np.concatenate(letters), np.concatenate(lengths)


def _previous(words: np.ndarray, text: np.ndarray) -> np.ndarray:
    """int64[words], where the same word stood before in the same text; -1 if nowhere."""
    order = np.lexsort((np.arange(len(words)), words, text))
    same = (words[order[1:]] == words[order[:-1]]) & (text[order[1:]] == text[order[:-1]])
    previous = np.full(len(words), -1)
    previous[order[1:][same]] = order[:-1][same]
    return previous


def _telling(
    with_letters: np.ndarray, different: np.ndarray, length: np.ndarray | int, needs: tuple[float, float, int]
) -> np.ndarray:
    """Whether so many words with letters and so many different ones say more than a count or a chorus does."""
    letters, share, enough = needs
    return (with_letters >= letters * length) & (different >= np.minimum(share * length, enough))


def _exact(
    words: np.ndarray, letters: np.ndarray, lengths: np.ndarray, owners: np.ndarray, n: int, common: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """(sorted hashes of n-grams, text of each), once for each text, without the common ones."""
    text = np.repeat(np.arange(len(lengths)), lengths)
    ends = np.cumsum(lengths)
    starts = np.flatnonzero(np.arange(len(words)) + n <= ends[text])
    previous = _previous(words, text)
    different = sum((previous[starts + k] < starts).astype(int) for k in range(n))
    sums = np.concatenate([[0], np.cumsum(letters)])
    if common is not None:
        starts = starts[_telling(sums[starts + n] - sums[starts], different, n, _EXACT_NEEDS)]
    keys, texts = hash_spans(words, starts, starts + n), text[starts]
    order = np.lexsort((texts, keys))
    keys, texts = keys[order], texts[order]
    first = _changes(keys) | _changes(texts)
    keys, texts = keys[first], texts[first]
    if common is None:
        return keys, texts.astype(np.int32)
    # Texts of an item follow each other, so here do the n-grams that they share.
    group = np.cumsum(_changes(keys)) - 1
    items = np.bincount(group, _changes(keys) | _changes(owners[texts]))
    keep = items[group] <= common if len(keys) else np.zeros(0, bool)
    return keys[keep], texts[keep].astype(np.int32)


def _seeds(
    words: np.ndarray, letters: np.ndarray, lengths: np.ndarray, ngram: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(int32[3, pieces] text, start and length, sorted hashes of seeds, piece and offset of each)."""
    counts = -(-lengths // _PIECE)
    text = np.repeat(np.arange(len(lengths)), counts)
    which = np.arange(len(text)) - np.repeat(np.cumsum(counts) - counts, counts)
    border = lambda i: lengths[text] * i // counts[text]
    start = (np.cumsum(lengths) - lengths)[text] + border(which)
    length = border(which + 1) - border(which)

    piece = np.repeat(np.arange(len(text)), length)
    different = np.bincount(piece, _previous(words, piece) < 0, len(text))
    # A text in one piece that is too short for n-grams is looked for word by word as well.
    telling = _telling(np.bincount(piece, letters, len(text)), different, length, _NEAR_NEEDS) | (length < ngram)
    at = np.flatnonzero(telling[piece] & (np.arange(len(words)) + SEED <= (start + length)[piece]))
    keys, pieces = hash_spans(words, at, at + SEED), piece[at]
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    count = counts[inverse] if len(keys) else np.zeros(0, int)
    rarest = np.full(len(text), np.iinfo(np.int64).max)
    np.minimum.at(rarest, pieces, count)
    keep = (count <= _COMMON_SEED) | (count == rarest[pieces])
    order = np.flatnonzero(keep)[np.argsort(keys[keep], kind='stable')]
    where = (at - start[pieces])[order].astype(np.int16)
    return np.stack([text, start, length]).astype(np.int32), keys[order], pieces[order].astype(np.int32), where


def _changes(values: np.ndarray) -> np.ndarray:
    """Whether a value differs from the one before it; the first does."""
    return np.concatenate([np.ones(min(1, len(values)), bool), values[1:] != values[:-1]])


def _bits(keys: np.ndarray) -> np.ndarray:
    """A bit for each key, of at least 32 times as many bits as keys."""
    log2 = max(10, int(np.ceil(np.log2(32 * max(1, len(keys))))))
    bits = np.zeros(1 << log2, bool)
    bits[keys >> np.uint64(64 - log2)] = True
    return np.packbits(bits, bitorder='little')


def _log2_bits(bits: np.ndarray) -> int:
    return len(bits).bit_length() + 2
