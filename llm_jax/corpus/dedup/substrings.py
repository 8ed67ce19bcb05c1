"""Passages of 50 words and more that occur again, anywhere in the corpus: all but the first are cut.

Lee et al., "Deduplicating training data makes language models better" (2022,
arXiv:2107.06499) find them with a suffix array of the whole corpus. Here two rounds of
hashes find the same, exactly:

    prints   Of every window of `length` words, the smallest hash among its runs of 20 words stands
             for the window: "winnowing" (Schleimer, Wilkerson & Aiken 2003). Neighbouring windows
             mostly share it, so one record covers about 16 words; equal windows have equal ones.
    windows  Only windows whose print occurs more than once are compared: each sends the hash of all
             its words.

A window whose words occurred before, in the order of the corpus, is cut; where it
overlaps its own first occurrence ('la la la ...') only what goes beyond. So no window of
`length` words occurs twice in what stays, and every cut one stands, or stood, earlier.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import re

import numpy as np

from llm_jax.config.schema import ConfigError, field
from llm_jax.corpus.dedup import words
from llm_jax.corpus.document import Document, Dropped
from llm_jax.corpus.exchange import ADDRESSED, KEYED, Round


@dataclasses.dataclass(frozen=True)
class Substrings:
    """Which repeated passages are cut."""

    length: int = field(50, 'words of the shortest passage that is cut')
    min_words: int = field(50, 'a document that was cut and has fewer words left goes')
    skip_kinds: tuple = field(('code', 'notebook'), 'kinds of documents that are neither compared nor cut')


_OPENING = re.compile(r'(?:\A|\s)(\S*)\Z')
_CLOSING = re.compile(r'\S*')
_SPACE = re.compile(r'\s*')
_JOINS = [(join, re.compile(space)) for join, space in (('\n\n', r'\n\s*\n'), ('\n', '\n'), (' ', r'\s'), ('', ''))]


def make(options: Substrings) -> 'SubstringsExchange':
    """The exchange that cuts repeated passages.

    Raises:
      ConfigError: an option out of range.
    """
    if options.length < 2:
        raise ConfigError(f'substrings.length = {options.length!r}: it must be at least 2')
    return SubstringsExchange(options, (_Prints(options), _Windows(options)))


@dataclasses.dataclass(frozen=True)
class SubstringsExchange:
    """Cuts passages; drops what is left too short, as 'substrings.mostly_repeated'."""

    options: Substrings
    rounds: Sequence[Round]

    def apply(self, shard: int, documents: Sequence[Document], received: np.ndarray) -> Iterator[Document | Dropped]:
        begins = np.searchsorted(received['doc'], np.arange(len(documents) + 1))
        for i, document in enumerate(documents):
            spans = received[begins[i] : begins[i + 1]]
            yield self._cut(document, spans) if len(spans) else document

    def _cut(self, document: Document, spans: np.ndarray) -> Document | Dropped:
        found = words.find_words([document.text])
        depth = np.zeros(len(found.hashes) + 1, np.int64)
        np.add.at(depth, spans['start'], 1)
        np.add.at(depth, spans['stop'], -1)
        gone = np.cumsum(depth[:-1]) > 0
        left = len(gone) - np.count_nonzero(gone)
        if left < self.options.min_words:
            detail = f'{left} of {len(gone)} words left < {self.options.min_words}'
            return Dropped(document, 'substrings.mostly_repeated', detail)
        begins, ends = words.runs(gone)
        cut = gone[begins]
        return dataclasses.replace(document, text=cut_words(document.text, found, begins[cut], ends[cut]))


@dataclasses.dataclass(frozen=True)
class _Prints:
    """Round 1: which prints occur more than once; 16 bytes for about 16 words."""

    options: Substrings
    name: str = 'prints'
    together: bool = False

    def emit(self, shard: int, documents: Sequence[Document], received: np.ndarray) -> np.ndarray:
        out = [np.zeros(0, KEYED)]
        some = [i for i, document in enumerate(documents) if document.kind not in self.options.skip_kinds]
        for first, texts in words.in_blocks([documents[i] for i in some]):
            found = words.find_words(texts)
            runs, prints = window_prints(found.hashes, self.options.length)
            if not len(prints):
                continue
            # All runs that stand for a window, each where it is: not only once, or 'la la la ...' would not be seen.
            owners = found.owners()
            whole = owners[: len(prints)] == owners[self.options.length - 1 :]
            width = len(runs) - len(prints)
            stands = np.pad(np.where(whole, prints, 0), width)
            stands = np.flatnonzero(_sliding(np.maximum, stands, width + 1) == runs)
            records = np.zeros(len(stands), KEYED)
            records['key'], records['shard'] = runs[stands], shard
            records['doc'] = np.array(some, np.int64)[first + owners[stands]]
            out.append(records)
        return np.concatenate(out)

    def resolve(self, records: np.ndarray) -> np.ndarray:
        begins, ends = words.runs(records['key'])
        records = records[np.repeat(ends - begins > 1, ends - begins)]
        messages = np.zeros(len(records), [*ADDRESSED, ('print', '<u8')])
        messages['shard'], messages['doc'], messages['print'] = records['shard'], records['doc'], records['key']
        return messages


@dataclasses.dataclass(frozen=True)
class _Windows:
    """Round 2: where the windows are whose words occurred before; 20 bytes for each that may have."""

    options: Substrings
    name: str = 'windows'
    together: bool = False

    def emit(self, shard: int, documents: Sequence[Document], received: np.ndarray) -> np.ndarray:
        out = [np.zeros(0, [*KEYED, ('start', '<u4')])]
        begins, ends = words.runs(received['doc'])
        for begin, end in zip(begins, ends, strict=True):
            doc = received['doc'][begin]
            hashes = words.find_words([documents[doc].text]).hashes
            _, prints = window_prints(hashes, self.options.length)
            starts = np.flatnonzero(np.isin(prints, received['print'][begin:end]))
            records = np.zeros(len(starts), out[0].dtype)
            records['key'] = words.hash_spans(hashes, starts, starts + self.options.length)
            records['shard'], records['doc'], records['start'] = shard, doc, starts
            out.append(records)
        return np.concatenate(out)

    def resolve(self, records: np.ndarray) -> np.ndarray:
        begins, ends = words.runs(records['key'])
        again = np.ones(len(records), bool)
        again[begins] = False
        first = records[np.repeat(begins, ends - begins)][again]
        records = records[again]
        messages = np.zeros(len(records), [*ADDRESSED, ('start', '<u4'), ('stop', '<u4')])
        messages['shard'], messages['doc'] = records['shard'], records['doc']
        same = (first['shard'] == records['shard']) & (first['doc'] == records['doc'])
        messages['start'] = np.maximum(records['start'], np.where(same, first['start'] + self.options.length, 0))
        messages['stop'] = records['start'] + self.options.length
        return messages


def window_prints(hashes: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all runs of 2/5 of `length` words, and for each window of `length` words the smallest in it.

    Shorter runs would mean fewer prints, of which more are repeated by chance.

    Returns:
      uint64[words - run + 1] and uint64[words - length + 1].
    """
    run = max(1, length * 2 // 5)
    starts = np.arange(max(0, len(hashes) - run + 1))
    runs = words.hash_spans(hashes, starts, starts + run)
    return runs, _sliding(np.minimum, runs, length - run + 1)


def _sliding(best: np.ufunc, values: np.ndarray, width: int) -> np.ndarray:
    """The best of each `width` neighbours, in log2(width) steps."""
    if len(values) < width:
        return values[:0]
    span = 1
    while 2 * span <= width:
        values, span = best(values[:-span], values[span:]), 2 * span
    return best(values[: len(values) - (width - span)], values[width - span :])


def cut_words(text: str, found: words.Words, begins: np.ndarray, ends: np.ndarray) -> str:
    """A text without some runs of its words, and without the punctuation that clings to them.

    What stays on both sides is joined by the widest space of what goes: a blank line, a line
    break, a space, or none.

    Args:
      found: the words of the text.
      begins, ends: int64[runs], words begin to end - 1 of each run go; in order, none next to another.
    """
    out, place = [], 0
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        start, stop = int(found.starts[begin]), int(found.stops[end - 1])
        before = int(found.stops[begin - 1]) if begin else 0
        after = int(found.starts[end]) if end < len(found.starts) else len(text)
        # Opening quotes and brackets go with the word after them, unless they cling to the word before, too.
        if clinging := _OPENING.search(text, before, start):
            start = clinging.start(1)
        stop = _CLOSING.match(text, stop, after).end()
        kept = text[place:start].rstrip()
        left, place = place + len(kept), _SPACE.match(text, stop, after).end()
        if begin and place < len(text):
            kept += next(join for join, space in _JOINS if space.search(text, left, place))
        out.append(kept)
    return ''.join(out) + text[place:]
