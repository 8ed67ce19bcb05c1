"""The order of training: which rows make the batch of a step, from (seed, step) alone.

Nothing is remembered between batches, so that resuming needs one integer, and any
host can compute its share of any batch.
"""

from collections.abc import Iterator, Mapping, Sequence
import hashlib
import time
from typing import Any, Protocol

import grain
from grain.experimental import index_shuffle
import jax
import numpy as np

from llm_jax.config.schema import ConfigError
from llm_jax.data import array_record, prepare

# Positions after which the mixture repeats its pattern: weights are exact to 1 in 10,000.
_PERIOD = 10_000
_READ_THREADS = 2
_READ_ROWS = 512
# grain's shuffle needs no memory, but for so few rows it takes up to a millisecond a row.
_SMALL = 1024


class BatchSource(Protocol):
    """Rows of each training step on the host: the same, however often and in whatever order they are read.

    Attributes:
      steps_per_read: steps that are worth reading at a time.
    """

    steps_per_read: int

    def read(self, start: int, stop: int) -> Any:
        """A tree of arrays [stop - start, rows of this host, ...] for the steps from `start` to below `stop`."""


def row_width(prepared: prepare.Prepared) -> int:
    """Numbers in a stored row: L+1 tokens, or several arrays of that length one after the other."""
    return prepared.columns * (prepared.manifest['seq_len'] + 1)


class TrainRows:
    """Batches of the training split: `rows[step]` is int32[B, L+1], or this host's share of it.

    Without a mixture, the rows of all sources are one pile that is shuffled anew in each
    epoch. With one, sources take turns in a fixed pattern of these weights, and each is
    shuffled anew whenever it starts over.

    Attributes:
      batch_size: rows B of the global batch.
      rows_per_epoch: all rows of the training split.
    """

    def __init__(
        self,
        prepared: prepare.Prepared,
        mixture: Mapping[str, float],
        seed: int,
        batch_size: int,
        rows: Sequence[int] | None = None,
    ):
        """Opens the training split.

        Args:
          prepared: what `prepare` made.
          mixture: weight per source; empty takes the corpus's own, else by size.
          seed: of the order.
          batch_size: B.
          rows: which rows of the global batch to give; None gives all of them.

        Raises:
          ConfigError: a weight for a source that has no rows.
        """
        self.batch_size = batch_size
        self._rows = np.arange(batch_size) if rows is None else np.asarray(rows, np.int64)
        self._width = row_width(prepared)
        opened = prepared.rows('train')
        self.rows_per_epoch = sum(len(source) for source in opened.values())
        mixture = mixture or prepared.manifest.get('mixture')
        if mixture:
            self._order = _Mixture({name: len(source) for name, source in opened.items()}, mixture, seed)
        else:
            self._order = _Pile([len(source) for source in opened.values()], seed)
        self._sources = list(opened.values())

    def __getitem__(self, step: int) -> np.ndarray:
        return self.read(step, step + 1)[0]

    def read(self, start: int, stop: int) -> np.ndarray:
        """int32[stop - start, B, L+1]: the batches of several steps, at less cost than one by one."""
        steps = np.arange(start, stop)[:, None]
        sources, indices = self._order.at((steps * self.batch_size + self._rows).ravel())
        batches = np.empty((len(indices), self._width), np.int32)
        for k in np.unique(sources):
            places = sources == k
            batches[places] = self._sources[k].read(indices[places])
        return batches.reshape(stop - start, len(self._rows), self._width)

    @property
    def steps_per_read(self) -> int:
        """How many steps make a read large enough that its fixed cost does not show."""
        return -(-_READ_ROWS // max(1, len(self._rows)))


class _Pile:
    """One shuffled pile of the rows of all sources."""

    def __init__(self, sizes: Sequence[int], seed: int):
        self._ends = np.cumsum(sizes)
        self._seed = seed

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source, row of the source) at each position of the endless order."""
        shuffled = _shuffled(positions, int(self._ends[-1]), self._seed, 'rows')
        sources = np.searchsorted(self._ends, shuffled, side='right')
        return sources, shuffled - np.concatenate([[0], self._ends])[sources]


class _Mixture:
    """Sources in turn, each as often as its weight says, each in its own shuffled order."""

    def __init__(self, sizes: Mapping[str, int], weights: Mapping[str, float], seed: int):
        missing = [name for name, weight in weights.items() if weight > 0 and name not in sizes]
        if missing:
            raise ConfigError(
                f'data.mixture gives a weight to {missing}, whose training split has no row; '
                f'add text to it or set its weight to 0 (sources with rows: {sorted(sizes)})'
            )
        shares = np.array([weights.get(name, 0.0) for name in sizes], np.float64)
        if (shares < 0).any() or not shares.any():
            raise ConfigError(f'data.mixture = {dict(weights)}: weights are at least 0, and one is above 0')
        counts = _quotas(shares / shares.sum(), _PERIOD)
        if lost := [name for name, n, w in zip(sizes, counts, shares, strict=True) if w and not n]:
            raise ConfigError(f'data.mixture = {dict(weights)}: raise the weight of {lost} to 1 in {_PERIOD} or more')
        self._names, self._sizes, self._counts, self._seed = list(sizes), list(sizes.values()), counts, seed
        self._source = _pattern(counts)
        self._rank = np.empty(_PERIOD, np.int64)  # how often the source came before, within the pattern
        for k, count in enumerate(counts):
            self._rank[self._source == k] = np.arange(count)

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source, row of the source) at each position of the endless order."""
        period, place = np.divmod(positions, _PERIOD)
        sources = self._source[place]
        drawn = period * self._counts[sources] + self._rank[place]  # rows of the source given before this one
        indices = np.empty_like(drawn)
        for k in np.unique(sources):
            mine = sources == k
            indices[mine] = _shuffled(drawn[mine], self._sizes[k], self._seed, self._names[k])
        return sources, indices


def _quotas(shares: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers that sum to `total`, nearest to `shares` of it (largest remainder)."""
    exact = np.round(shares * total, 6)
    counts = np.floor(exact).astype(np.int64)
    order = np.argsort(counts - exact, kind='stable')
    counts[order[: total - counts.sum()]] += 1
    return counts


def _pattern(counts: np.ndarray) -> np.ndarray:
    """Source at each place of a period, each spread as evenly as it can be."""
    # The j-th of n turns is due in the middle of the j-th n-th of the period.
    due = np.concatenate([(np.arange(n) + 0.5) / max(n, 1) for n in counts])
    return np.repeat(np.arange(len(counts)), counts)[np.argsort(due, kind='stable')]


def _shuffled(positions: np.ndarray, size: int, seed: int, name: str) -> np.ndarray:
    """Position in the endless order -> row below `size`; each epoch is a permutation of its own."""
    epochs, places = np.divmod(positions, size)
    out = np.empty_like(positions)
    for epoch in np.unique(epochs):
        digest = hashlib.blake2b(f'{seed} {name} {epoch}'.encode(), digest_size=4).digest()
        key = int.from_bytes(digest, 'little')
        mine = epochs == epoch
        if size <= _SMALL:
            # The raw bits of PCG64 never change between versions of numpy; its permutation() may.
            out[mine] = np.argsort(np.random.PCG64(key).random_raw(size), kind='stable')[places[mine]]
        else:
            out[mine] = [index_shuffle(int(place), size - 1, key, 4) for place in places[mine]]
    return out


class Loader:
    """Iterator over the batches of `start_step` up to `stop_step - 1`, read ahead by threads.

    To resume, start at another step. `wait_seconds()` says how long `next` has kept its
    caller waiting since it was last asked.
    """

    def __init__(self, source: BatchSource, start_step: int, stop_step: int, prefetch: int):
        """Args: prefetch: batches that are read ahead, at least."""
        group = source.steps_per_read
        starts = grain.MapDataset.range(start_step, max(start_step, stop_step), group)
        read = lambda start: source.read(start, min(start + group, stop_step))
        ahead = max(_READ_THREADS, -(-prefetch // group))
        options = grain.ReadOptions(num_threads=_READ_THREADS, prefetch_buffer_size=ahead)
        self._groups = iter(starts.map(read).to_iter_dataset(options))
        self._batches: Iterator[Any] = iter(())
        self._waited = 0.0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        start = time.perf_counter()
        try:
            batch = next(self._batches, None)
            if batch is None:
                self._batches = _each_step(next(self._groups))
                batch = next(self._batches)
            return batch
        finally:
            self._waited += time.perf_counter() - start

    def wait_seconds(self) -> float:
        """Seconds waited since the last call."""
        waited, self._waited = self._waited, 0.0
        return waited


def _each_step(group: Any) -> Iterator[Any]:
    """The batches of several steps, from a tree of arrays [steps, ...]."""
    leaves, structure = jax.tree.flatten(group)
    return map(structure.unflatten, zip(*leaves, strict=True))


def loader(source: BatchSource, start_step: int, stop_step: int, prefetch: int) -> Loader:
    """Batches of the steps from `start_step` to below `stop_step`; int32[B, L+1] where `source` is `TrainRows`."""
    return Loader(source, start_step, stop_step, prefetch)


def eval_batches(
    prepared: prepare.Prepared,
    split: str,
    batch_size: int,
    max_batches: int = 0,
    rows: Sequence[int] | None = None,
) -> Iterator[np.ndarray]:
    """Batches int32[B, L+1] of a held-out split, every row of it exactly once.

    Args:
      prepared: what `prepare` made.
      split: 'validation' or 'test'.
      batch_size: B of the global batch.
      max_batches: at most so many, their rows spread evenly over the split; 0 means all.
      rows: which rows of the global batch to give; None gives all of them.

    Yields:
      batches with PADDING where a row ends early, and rows of nothing else after the last.
    """
    share = np.arange(batch_size) if rows is None else np.asarray(rows, np.int64)
    opened = list(prepared.rows(split).values())
    ends = np.cumsum([len(source) for source in opened], dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    wanted = min(total, max_batches * batch_size) if max_batches else total
    for start in range(0, wanted, batch_size):
        batch = np.full((len(share), row_width(prepared)), array_record.PADDING, np.int32)
        places = np.flatnonzero(start + share < wanted)
        indices = (start + share[places]) * total // wanted
        sources = np.searchsorted(ends, indices, side='right')
        for k in np.unique(sources):
            mine = sources == k
            batch[places[mine]] = opened[k].read(indices[mine] - (ends[k - 1] if k else 0))
        yield batch
