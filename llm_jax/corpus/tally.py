"""What a step counts and which documents it shows as examples.

Samples are the documents whose id has the smallest hash: the tallies of shards add up
to the same whatever worker made them, in whatever order, and never grow with the corpus.
"""

from collections.abc import Iterable, Mapping
import hashlib
import heapq
from typing import Any

from llm_jax.corpus.document import Broken, Document, Dropped

EXAMPLES = 20  # per reason, and of what is kept
POINTS = 1000  # kept documents, and dropped ones, whose measures are remembered
_EXCERPT = 1200  # characters of an example's text
_DETAIL = 300

KEPT, DROPPED = 'kept', 'dropped'
Counts = list[int]  # documents, bytes of text


class Tally:
    """Counts of one task, or of many.

    Attributes:
      passed: stage -> documents and bytes that left it.
      dropped: stage -> reason -> documents and bytes.
      broken: reason -> records.
      skipped: reason -> what is rightly no document.
      languages: language -> documents and bytes kept.
      lengths: power of two -> documents kept whose text has at least so many bytes.
      clusters: documents kept that are in a cluster with others.
      signals: name -> documents kept that have it, and their sum.
    """

    def __init__(self, seed: int):
        self._key = seed.to_bytes(8, 'little', signed=True)
        self.passed: dict[str, Counts] = {}
        self.dropped: dict[str, dict[str, Counts]] = {}
        self.broken: dict[str, int] = {}
        self.skipped: dict[str, int] = {}
        self.languages: dict[str, Counts] = {}
        self.lengths: dict[str, int] = {}
        self.clusters = 0
        self.signals: dict[str, list[float]] = {}
        self._examples: dict[str, _Smallest] = {}
        self._points: dict[str, _Smallest] = {}

    def arrived(self, stage: str, n_bytes: int) -> None:
        """A document (or record) left a stage and goes on."""
        _add(self.passed, stage, n_bytes)

    def drop(self, stage: str, what: Dropped, n_bytes: int) -> None:
        """A stage took a document out."""
        _add(self.dropped.setdefault(stage, {}), what.reason, n_bytes)
        rank = self._rank(what.document.id)
        self._example(what.reason, rank, lambda: _shown(what.document, what.detail))
        self._point(DROPPED, rank, what.document, n_bytes, what.reason)

    def cannot_read(self, what: Broken) -> None:
        self.broken[what.reason] = self.broken.get(what.reason, 0) + 1
        fields = {'where': what.where, 'detail': what.detail[:_DETAIL]}
        self._example(what.reason, self._rank(f'{what.where} {what.reason}'), lambda: fields)

    def skip(self, reason: str) -> None:
        self.skipped[reason] = self.skipped.get(reason, 0) + 1

    def keep(self, document: Document, n_bytes: int) -> None:
        """A document is in the corpus."""
        rank = self._rank(document.id)
        self._example(KEPT, rank, lambda: _shown(document, ''))
        self._point(KEPT, rank, document, n_bytes, '')
        _add(self.languages, document.language or '?', n_bytes)
        place = str(max(n_bytes, 1).bit_length() - 1)
        self.lengths[place] = self.lengths.get(place, 0) + 1
        self.clusters += bool(document.cluster)
        for name, value in document.signals.items():
            entry = self.signals.setdefault(name, [0, 0.0])
            entry[0] += 1
            entry[1] += float(value)

    def to_json(self) -> dict[str, Any]:
        return {
            'passed': self.passed,
            'dropped': self.dropped,
            'broken': self.broken,
            'skipped': self.skipped,
            'languages': self.languages,
            'lengths': self.lengths,
            'clusters': self.clusters,
            'signals': self.signals,
            'examples': {reason: smallest.items() for reason, smallest in self._examples.items()},
            'points': {outcome: smallest.items() for outcome, smallest in self._points.items()},
        }

    def add(self, other: Mapping[str, Any]) -> None:
        """Adds another tally, as `to_json` gave it."""
        for stage, counts in other['passed'].items():
            _sum(self.passed, stage, counts)
        for stage, reasons in other['dropped'].items():
            for reason, counts in reasons.items():
                _sum(self.dropped.setdefault(stage, {}), reason, counts)
        for mine, theirs in ((self.broken, other['broken']), (self.skipped, other['skipped'])):
            for reason, count in theirs.items():
                mine[reason] = mine.get(reason, 0) + count
        for language, counts in other['languages'].items():
            _sum(self.languages, language, counts)
        for place, count in other['lengths'].items():
            self.lengths[place] = self.lengths.get(place, 0) + count
        self.clusters += other['clusters']
        for name, values in other['signals'].items():
            _sum(self.signals, name, values)
        for mine, size, theirs in (
            (self._examples, EXAMPLES, other['examples']),
            (self._points, POINTS, other['points']),
        ):
            for name, items in theirs.items():
                for rank, value in items:
                    mine.setdefault(name, _Smallest(size)).add(rank, lambda value=value: value)

    def _rank(self, text: str) -> int:
        data = text.encode('utf-8', 'surrogatepass')
        return int.from_bytes(hashlib.blake2b(data, digest_size=6, key=self._key).digest(), 'little')

    def _example(self, reason: str, rank: int, make: Any) -> None:
        self._examples.setdefault(reason, _Smallest(EXAMPLES)).add(rank, make)

    def _point(self, outcome: str, rank: int, document: Document, n_bytes: int, reason: str) -> None:
        make = lambda: {
            'bytes': n_bytes,
            'reason': reason,
            'signals': {name: float(value) for name, value in document.signals.items()},
        }
        self._points.setdefault(outcome, _Smallest(POINTS)).add(rank, make)


class _Smallest:
    """The items of smallest rank; made only when they are wanted."""

    def __init__(self, size: int):
        self._size = size
        self._heap: list[tuple[int, int, Any]] = []  # largest rank first; the second number breaks ties
        self._count = 0

    def add(self, rank: int, make: Any) -> None:
        self._count += 1
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, (-rank, -self._count, make()))
        elif rank < -self._heap[0][0]:
            heapq.heapreplace(self._heap, (-rank, -self._count, make()))

    def items(self) -> list[tuple[int, Any]]:
        return [(-rank, value) for rank, _, value in sorted(self._heap, key=lambda item: (-item[0], -item[1]))]


def total(tallies: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The sum of tallies."""
    out = Tally(0)
    for tally in tallies:
        out.add(tally)
    return out.to_json()


def _add(table: dict[str, Counts], name: str, n_bytes: int) -> None:
    entry = table.setdefault(name, [0, 0])
    entry[0] += 1
    entry[1] += n_bytes


def _sum(table: dict[str, list], name: str, counts: Iterable[float]) -> None:
    entry = table.setdefault(name, [0, 0])
    for i, count in enumerate(counts):
        entry[i] += count


def _shown(document: Document, detail: str) -> dict[str, str]:
    text = document.text
    return {
        'id': document.id,
        'where': document.where,
        'title': document.title,
        'language': document.language,
        'characters': str(len(text)),
        'detail': detail[:_DETAIL],
        'text': text if len(text) <= _EXCERPT else text[:_EXCERPT] + ' […]',
    }
