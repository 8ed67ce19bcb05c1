"""The pipeline on one machine: a pool of processes, and files between them.

An exchange writes what each shard emits as one file, sorted by key. A range of keys is
then a slice of every such file: resolving it reads those slices and writes messages,
sorted by shard, of which a shard reads its slices in turn. A worker holds one shard, or
one range; there are as many ranges as the records need.
"""

from collections.abc import Callable, Sequence
import concurrent.futures
from concurrent.futures.process import BrokenProcessPool
import dataclasses
import functools
import multiprocessing
import os
import signal
import threading
from typing import Any

import numpy as np

from llm_jax.config.schema import ConfigError
from llm_jax.corpus.engines import ExchangeStep, Progress, Step
from llm_jax.corpus.exchange import ADDRESSED, in_order
from llm_jax.corpus.storage import Store

# Records of one range of keys, which one worker sorts: with what resolving them needs, some 5 times this.
RANGE_BYTES = 64 << 20
# Tasks handed to the pool ahead of time, per worker.
_AHEAD = 3


class Local:
    """A pool of processes; one worker is this process itself."""

    def __init__(self, workers: int, *, range_bytes: int = RANGE_BYTES):
        """Args:
        workers: how many.
        range_bytes: records that are resolved at a time.
        """
        self._workers = workers
        self._range_bytes = range_bytes
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None

    def map(self, step: Step, items: Sequence[Any], progress: Progress) -> None:
        progress(0, len(items))
        if self._workers == 1 or len(items) == 1:
            for i, item in enumerate(items):
                step(item)
                progress(i + 1, len(items))
            return
        self._run(step, items, progress)

    def exchange(self, step: ExchangeStep, progress: Progress) -> None:
        if not step.store.is_local:
            raise ConfigError(f'config.work = {step.store.root!r}: the local engine needs a local directory there')
        indices = range(len(step.shards))
        if not all(map(step.is_applied, indices)):
            rounds = step.make().rounds
            n_parts = (len(rounds) + 1) * len(indices)
            done = functools.partial(lambda base, n, _: progress(base + n, n_parts))
            ranges = 0
            for number, one in enumerate(rounds):
                base = number * len(indices)
                emit = _Emit(step, number, ranges)
                self.map(emit, emit.missing(indices), functools.partial(done, base))
                ranges = 1 if one.together else self._ranges(step.store, number, len(indices))
                resolve = _Resolve(step, number, ranges)
                self.map(resolve, resolve.missing(range(ranges)), lambda *_: None)
            last = _Apply(step, len(rounds), ranges)
            waiting = [i for i in indices if not step.is_applied(i)]
            self.map(last, waiting, functools.partial(done, len(rounds) * len(indices)))
        step.store.remove('rounds')

    def close(self) -> None:
        if self._pool:
            self._pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():  # files appear whole, so nothing is half done
                worker.terminate()
            self._pool = None

    def _ranges(self, store: Store, number: int, n_shards: int) -> int:
        """How many ranges the records of a round are resolved in: a power of two."""
        size = sum(os.path.getsize(store.path(_emitted(number, i))) for i in range(n_shards))
        return 1 << max(0, (size // self._range_bytes).bit_length())

    def _run(self, step: Step, items: Sequence[Any], progress: Progress) -> None:
        if self._pool is None:
            self._pool = concurrent.futures.ProcessPoolExecutor(
                self._workers, multiprocessing.get_context('spawn'), initializer=_start_worker
            )
        done, rest = 0, iter(items)
        running: set[concurrent.futures.Future] = set()
        try:
            while True:
                while len(running) < _AHEAD * self._workers and (item := next(rest, running)) is not running:
                    running.add(self._pool.submit(step, item))
                if not running:
                    return
                finished, running = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in finished:
                    future.result()
                    done += 1
                progress(done, len(items))
        except BrokenProcessPool as error:
            self._pool = None
            raise ConfigError(
                'a worker was killed, most likely because memory ran out; take fewer --workers, or smaller shards '
                '(config.shard_bytes). What is finished is kept: the same command goes on from there'
            ) from error
        except BaseException:
            self.close()
            raise


def _start_worker() -> None:
    """Ctrl-C is the parent's business; a worker whose parent was killed ends as well."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


# --- Exchanges -------------------------------------------------------------------------


def _emitted(number: int, shard: int) -> str:
    return f'rounds/{number}-emitted-{shard:06d}.npy'


def _resolved(number: int, part: int, ranges: int) -> str:
    return f'rounds/{number}-resolved-{part:05d}-of-{ranges:05d}.npy'


@dataclasses.dataclass(frozen=True)
class _Part:
    """One kind of task of an exchange.

    Attributes:
      step: the exchange.
      number: of the round.
      ranges: of the keys; of the round before for what shards do.
    """

    step: ExchangeStep
    number: int
    ranges: int

    def received(self, shard: int) -> np.ndarray:
        """Messages of the round before to a shard."""
        if not self.number:
            return np.empty(0, ADDRESSED)
        names = (_resolved(self.number - 1, i, self.ranges) for i in range(self.ranges))
        slices = (_between(self.step.store, name, 'shard', shard, shard + 1) for name in names)
        return in_order(np.concatenate(list(slices)))


class _Emit(_Part):
    def __call__(self, shard: int) -> None:
        one = self.step.make().rounds[self.number]
        records = one.emit(shard, self.step.documents(shard), self.received(shard))
        _save(self.step.store, _emitted(self.number, shard), in_order(records))

    def missing(self, shards: Sequence[int]) -> list[int]:
        return [i for i in shards if not self.step.store.exists(_emitted(self.number, i))]


class _Resolve(_Part):
    def __call__(self, part: int) -> None:
        first, end = part * (2**64 // self.ranges), (part + 1) * (2**64 // self.ranges)
        names = (_emitted(self.number, i) for i in range(len(self.step.shards)))
        slices = [_between(self.step.store, name, 'key', first, end) for name in names]
        records = in_order(np.concatenate(slices))
        del slices
        messages = self.step.make().rounds[self.number].resolve(records)
        _save(self.step.store, _resolved(self.number, part, self.ranges), in_order(messages))

    def missing(self, parts: Sequence[int]) -> list[int]:
        return [i for i in parts if not self.step.store.exists(_resolved(self.number, i, self.ranges))]


class _Apply(_Part):
    def __call__(self, shard: int) -> None:
        self.step.apply(shard, self.received(shard))


def _save(store: Store, name: str, records: np.ndarray) -> None:
    with store.writing(name) as stream:
        np.lib.format.write_array(stream, records, version=(1, 0), allow_pickle=False)


def _between(store: Store, name: str, field: str, first: int, end: int) -> np.ndarray:
    """The records of a sorted file whose field is at least `first` and below `end`; reads little else."""
    records = np.load(store.path(name), mmap_mode='r')
    values = records[field]
    start = _lower_bound(values, first)
    stop = len(values) if end > np.iinfo(values.dtype).max else _lower_bound(values, end)
    return np.array(records[start:stop])


def _lower_bound(values: np.ndarray, wanted: int) -> int:
    """`np.searchsorted`, which would first copy the whole field."""
    low, high = 0, len(values)
    while low < high:
        middle = (low + high) // 2
        if int(values[middle]) < wanted:
            low = middle + 1
        else:
            high = middle
    return low


def default_workers() -> int:
    """As many as there are processors that this process may use."""
    affinity: Callable[[int], set[int]] | None = getattr(os, 'sched_getaffinity', None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
