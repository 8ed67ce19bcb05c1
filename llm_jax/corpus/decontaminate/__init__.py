"""Documents that hold items of benchmarks, found and taken out.

Words are compared in lower case, Unicode's NFKC, and without punctuation. An item is in a document
  - if `ngram` (13) words of it stand there in a row (Brown et al. 2020, appendix C), and of a long one
    `min_share` of its n-grams: encyclopaedias share a phrase with the passages of many a question; or
  - if of a piece of it (13 to 40 words) at least `similarity` of the words stand close together there
    in their order: so words may have been dropped, changed or put between; or
  - if it has fewer than `ngram` words, but at least `min_words`: if all of them stand there in a row.
`index` says what is not looked for.

With `rule = 'gpt3'` any run of `ngram` words that a document shares with an item gives it away, as in Brown et al.
2020, appendix C: no share of the item is asked for, no wording is too common or too plain, and nothing that was
changed is looked for.
"""

from collections.abc import Iterator, Sequence
import dataclasses

import numpy as np

from llm_jax.config.schema import ConfigError, field
from llm_jax.corpus.batch import stage_of
from llm_jax.corpus.decontaminate import index as index_lib
from llm_jax.corpus.decontaminate.index import Index
from llm_jax.corpus.dedup.words import Words, find_words, in_blocks
from llm_jax.corpus.document import Document, Dropped, Stage

# Share of the seeds of a piece that have to be there for it to be compared. At 10 % of words lost,
# 66 % of runs of 4 are left on average.
_SEEDS_THERE = 0.12
# What a document may have lost or gained within a piece, as a share of its words.
_SLACK = 0.15
# More words than a piece has, and what is spare.
_APART = 1 << 10
_SHOWN = 300
_RULES = ('items', 'gpt3')


@dataclasses.dataclass(frozen=True)
class Decontaminate:
    """What is looked for, and what becomes of documents that have it."""

    benchmarks: dict = field(
        {}, 'name -> path or glob of JSONL, JSON, CSV, TSV, Parquet, text or tar; or {"path": ..., "fields": [...]}'
    )
    rule: str = field('items', 'what gives an item away: items (as below), or gpt3: any run of `ngram` words, alone')
    ngram: int = field(13, 'words in a row that give an item away')
    min_words: int = field(8, 'items of fewer words are not looked for')
    similarity: float = field(0.75, 'share of the words of an item, in order, that gives it away when some are changed')
    common: int = field(10, 'n-grams that more items than this have are the wording of a task and do not count')
    min_share: float = field(0.1, 'share of the n-grams of an item that have to be there; 0: any one')
    max_cut: float = field(
        0.01, 'share of its characters up to which the lines of items are cut out of a document, a book, say; '
        'with more it is dropped. 0 always drops'
    )  # fmt: skip
    cache_dir: str = field('.cache/decontaminate', 'where the index is kept between runs')


@dataclasses.dataclass(frozen=True)
class Match:
    """An item of a benchmark in a document.

    Attributes:
      benchmark: its name.
      item: 'FILE#RECORD'.
      share: of the n-grams of the item's text, how many are in the document; 0 if it was found by
        `similarity`, or is too short to have any.
      words: how many words of the document it covers.
      start, stop: characters of the normalised document.
    """

    benchmark: str
    item: str
    share: float
    words: int
    start: int
    stop: int


def make(options: Decontaminate) -> Stage:
    """The stage: drops documents with items as 'decontaminate.BENCHMARK', or cuts the lines that they are in.

    What is dropped says which item, and the text that matched. Of several, the one that
    covers the most words; the others are counted. A long document that loses little
    (`max_cut`) only loses those lines; its signals say how many items of each benchmark
    it had ('decontaminate.BENCHMARK').

    Raises:
      ConfigError: an option out of range, or a benchmark that cannot be read.
    """
    _check(options)
    index = index_lib.load(options, options.cache_dir)

    def many(documents: Sequence[Document]) -> list[Document | Dropped]:
        out: list[Document | Dropped] = []
        for _, block in in_blocks(documents):
            texts = [index_lib.normalised(text) for text in block]
            for text, matches in zip(texts, find(texts, index, options), strict=True):
                out.append(_judge(documents[len(out)], text, matches, options))
        return out

    return stage_of(many)


def find(texts: Sequence[str], index: Index, options: Decontaminate) -> list[list[Match]]:
    """All items that are in each text, each once, the one that covers most words first.

    Args:
      texts: normalised (`index.normalised`).
      index: of the benchmarks.
      options: `ngram` and `similarity`.
    """
    words = find_words(texts, operators=False)
    best: dict[tuple[int, int], Match] = {}
    for number, share, first, last in (*_exact(words, index, options), *_near(words, index, options)):
        where = int(np.searchsorted(words.offsets, first, 'right')) - 1
        item = int(index.text_item[number])
        before = sum(len(text) + 1 for text in texts[:where])
        match = Match(
            *index.names[item], share, last - first,
            int(words.starts[first]) - before, int(words.stops[last - 1]) - before,
        )  # fmt: skip
        old = best.get((where, item))
        if old is None or (match.share, match.words) > (old.share, old.words):
            best[where, item] = match
    out: list[list[Match]] = [[] for _ in texts]
    for (where, _), match in best.items():
        out[where].append(match)
    return [sorted(some, key=lambda match: (-match.words, -match.share, match.benchmark, match.item)) for some in out]


def _exact(words: Words, index: Index, options: Decontaminate) -> Iterator[tuple[int, float, int, int]]:
    """(text, share of its n-grams, first word, end) of texts of which a run of `ngram` words is there."""
    where, keys, document = _hits(words, index.exact_keys, index.exact_bits, options.ngram)
    texts = index.exact_texts[keys]
    for number, owner in sorted(set(zip(texts.tolist(), document.tolist(), strict=True))):
        mine = (texts == number) & (document == owner)
        share = len(np.unique(keys[mine])) / index.text_grams[number]
        if share >= options.min_share or options.rule == 'gpt3':
            yield number, float(share), *_longest_run(where[mine], options.ngram)


def _hits(words: Words, keys: np.ndarray, bits: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(first word, index into `keys`, document) of each n-gram that is among the keys."""
    where, found = index_lib.lookup(keys, bits, index_lib.grams(words.hashes, n))
    document = np.searchsorted(words.offsets, where, 'right') - 1
    inside = where + n <= words.offsets[document + 1]  # and not partly in the next document
    return where[inside], found[inside], document[inside]


def _longest_run(starts: np.ndarray, n: int) -> tuple[int, int]:
    """(first word, end) of the longest stretch that n-grams cover without a gap."""
    starts = np.unique(starts)
    breaks = np.flatnonzero(np.diff(starts) > n)
    firsts, lasts = starts[np.r_[0, breaks + 1]], starts[np.r_[breaks, len(starts) - 1]] + n
    longest = np.argmax(lasts - firsts)
    return int(firsts[longest]), int(lasts[longest])


def _near(words: Words, index: Index, options: Decontaminate) -> Iterator[tuple[int, float, int, int]]:
    """The same of texts of which a piece is there, perhaps changed; the share is not known then."""
    where, keys, document = _hits(words, index.seed_keys, index.seed_bits, index_lib.SEED)
    if not len(where):
        return
    pieces = index.seed_pieces[keys]
    length = index.piece_length[pieces]
    short = length < options.ngram
    slack = np.where(short, 0, np.ceil(_SLACK * length).astype(int) + 1)
    needed = np.where(short, 1, np.ceil(_SEEDS_THERE * index.piece_seeds[pieces]))
    if options.rule == 'gpt3':
        needed[~short] = np.inf
    # Where the piece would begin if all of it were there; seeds of one copy agree but for what was lost.
    begin = where - index.seed_offsets[keys]
    # Documents lie apart, so that seeds in two of them do not add up.
    line = begin + _APART * document
    key = (pieces.astype(np.int64) << 33) + line + _APART
    order = np.argsort(key, kind='stable')
    key = key[order]
    there = np.searchsorted(key, key + slack[order], 'right') - np.arange(len(key))
    done: dict[int, int] = {}
    for i in order[there >= needed[order]].tolist():
        piece, at, spare = int(pieces[i]), int(begin[i]), int(slack[i])
        if line[i] <= done.get(piece, -_APART):  # looked at already
            continue
        n, start = int(index.piece_length[piece]), int(index.piece_start[piece])
        mine = index.words[start : start + n].tolist()
        first = max(int(words.offsets[document[i]]), at - spare)
        theirs = words.hashes[first : min(int(words.offsets[document[i] + 1]), at + n + 2 * spare)].tolist()
        # Of a short one, all: idioms have as many words.
        if common_words(mine, theirs) >= (n if n < options.ngram else options.similarity * n):
            done[piece] = int(line[i]) + n
            covered = np.flatnonzero(np.isin(theirs, mine))
            yield int(index.piece_text[piece]), 0.0, first + int(covered[0]), first + int(covered[-1]) + 1
        else:
            done[piece] = int(line[i]) + spare


def common_words(a: list[int], b: list[int]) -> int:
    """Length of the longest common subsequence, by bits in parallel (Hyyrö 2004): a step for each of b."""
    places: dict[int, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    everywhere = (1 << len(a)) - 1
    open_ = everywhere
    for word in b:
        met = open_ & places.get(word, 0)
        open_ = ((open_ + met) | (open_ - met)) & everywhere
    return len(a) - open_.bit_count()


def _judge(document: Document, text: str, matches: list[Match], options: Decontaminate) -> Document | Dropped:
    """What becomes of a document with these matches."""
    if not matches:
        return document
    if options.max_cut:
        left = _without(document.text, text, matches)
        if len(left) >= (1 - options.max_cut) * len(document.text):
            return dataclasses.replace(document, text=left, signals={**document.signals, **_counts(matches)})
    return _dropped(document, text, matches)


def _dropped(document: Document, text: str, matches: list[Match]) -> Dropped:
    first, *others = matches
    matched = ' '.join(text[first.start : first.stop].split())
    matched = matched if len(matched) <= _SHOWN else matched[:_SHOWN] + ' ...'
    more = f'; and {len(others)} other items' if others else ''
    share = f'{first.share:.0%} of its n-grams' if first.share else 'nearly'
    return Dropped(document, f'decontaminate.{first.benchmark}', f'{first.item}, {share}: "{matched}"{more}')


def _counts(matches: list[Match]) -> dict[str, float]:
    counts: dict[str, float] = {}
    for match in matches:
        name = f'decontaminate.{match.benchmark}'
        counts[name] = counts.get(name, 0.0) + 1.0
    return counts


def _without(text: str, normalised: str, matches: list[Match]) -> str:
    """The text without the lines that matches touch; normalising keeps the number of lines."""
    lines = text.split('\n')
    for match in matches:
        first = normalised.count('\n', 0, match.start)
        for i in range(first, first + normalised.count('\n', match.start, match.stop) + 1):
            lines[i] = None
    return '\n'.join(line for line in lines if line is not None)


def _check(options: Decontaminate) -> None:
    def require(condition: bool, name: str, fix: str) -> None:
        if not condition:
            raise ConfigError(f'decontaminate.{name} = {getattr(options, name)!r}: {fix}')

    require(options.rule in _RULES, 'rule', f'it must be one of {", ".join(_RULES)}')
    require(bool(options.benchmarks), 'benchmarks', 'name at least one, such as {"gsm8k": "gsm8k_test.jsonl.gz"}')
    require(options.ngram >= index_lib.SEED, 'ngram', f'it must be at least {index_lib.SEED}')
    require(index_lib.SEED <= options.min_words <= options.ngram, 'min_words',
            f'it must be {index_lib.SEED} to ngram = {options.ngram}')  # fmt: skip
    require(0.5 <= options.similarity <= 1, 'similarity', 'it must be 0.5 to 1')
    require(options.common >= 1, 'common', 'it must be at least 1')
    require(0 <= options.min_share <= 1, 'min_share', 'it must be 0 to 1')
    require(0 <= options.max_cut <= 1, 'max_cut', 'it must be 0 to 1')
