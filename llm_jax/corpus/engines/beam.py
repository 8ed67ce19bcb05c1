"""The pipeline on Apache Beam: Dataflow, Flink, Spark, or a runner on this machine.

The same functions as in local.py, between Beam's own transforms. Records travel as
numpy blocks, one for each shard and range of keys, so that Beam groups thousands of
blocks, not billions of records. Workers read and write shards in the work directory, which all of
them have to see: a bucket, or a shared file system.
"""

from collections.abc import Iterable, Iterator, Sequence
import io
from typing import Any

import numpy as np

from llm_jax.config.schema import ConfigError
from llm_jax.corpus.engines import ExchangeStep, Progress, Step
from llm_jax.corpus.engines.local import RANGE_BYTES
from llm_jax.corpus.exchange import ADDRESSED, in_order

try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
except ImportError as error:
    raise ConfigError(
        f'the Beam engine needs apache-beam ({error}): start it with ./tools/run prepare_data ... --engine beam, '
        'which sets up an environment for it, or install tools/requirements/beam.txt'
    ) from error

# An exchange may emit some times as much as the documents have text.
_RECORDS_PER_TEXT = 4
_ERROR = 'llm_jax.config.schema.ConfigError: '


class Beam:
    """Runs each step as a Beam pipeline."""

    def __init__(self, options: Sequence[str], *, range_bytes: int = RANGE_BYTES):
        """Args:
          options: of Beam, as on its command line.
          range_bytes: records that are resolved at a time, about.

        Raises:
          ConfigError: no runner is named: Beam's default would download one.
        """
        if not any(option == '--runner' or option.startswith('--runner=') for option in options):
            raise ConfigError(
                'name the runner of Beam: --runner=FnApiRunner on this machine, or DataflowRunner, FlinkRunner, '
                'SparkRunner with their options'
            )
        self._options = list(options)
        self._range_bytes = range_bytes

    def map(self, step: Step, items: Sequence[Any], progress: Progress) -> None:
        progress(0, len(items))
        if items:
            self._run(lambda p: p | beam.Create(list(items)) | beam.Reshuffle() | beam.Map(step))
        progress(len(items), len(items))

    def exchange(self, step: ExchangeStep, progress: Progress) -> None:
        n_shards = len(step.shards)
        progress(0, n_shards)
        if not all(map(step.is_applied, range(n_shards))):
            self._run(lambda p: _exchange(p, step, self._ranges(step)))
        progress(n_shards, n_shards)

    def close(self) -> None:
        pass

    def _ranges(self, step: ExchangeStep) -> int:
        size = _RECORDS_PER_TEXT * sum(shard.bytes for shard in step.shards)
        return 1 << max(0, (size // self._range_bytes).bit_length())

    def _run(self, build: Any) -> None:
        try:
            with beam.Pipeline(options=PipelineOptions(self._options)) as pipeline:
                build(pipeline)
        except ConfigError:
            raise
        except Exception as error:  # a runner gives a worker's error as the text of its traceback
            _, found, message = str(error).rpartition(_ERROR)
            if not found:
                raise
            raise ConfigError(message.splitlines()[0].partition(' [while running')[0]) from error


def _exchange(pipeline: Any, step: ExchangeStep, ranges: int) -> None:
    """The rounds of an exchange, then what becomes of each shard."""
    shards = pipeline | 'shards' >> beam.Create([(i, i) for i in range(len(step.shards))])
    received = shards | 'nothing received' >> beam.Map(lambda pair: (pair[0], []))
    for number, one in enumerate(step.make().rounds):
        parts = 1 if one.together else ranges
        messages = (
            received
            | f'{one.name}: spread' >> beam.Reshuffle()
            | f'{one.name}: emit' >> beam.FlatMap(_emit, step, number, parts)
            | f'{one.name}: by key' >> beam.GroupByKey()
            | f'{one.name}: resolve' >> beam.FlatMap(_resolve, step, number)
        )
        received = (
            {'shard': shards, 'messages': messages}
            | f'{one.name}: by shard' >> beam.CoGroupByKey()
            | f'{one.name}: received' >> beam.Map(lambda pair: (pair[0], list(pair[1]['messages'])))
        )
    _ = received | 'apply' >> beam.Map(_apply, step)


# Beam takes annotations for the types of its elements, and compares them; a Protocol it cannot: `step` is Any.


def _emit(item: tuple[int, Sequence[bytes]], step: Any, number: int, parts: int) -> Iterator[tuple[int, bytes]]:
    shard, blocks = item
    one = step.make().rounds[number]
    records = in_order(one.emit(shard, step.documents(shard), _received(blocks)))
    width = 2**64 // parts
    place = (records['key'] // np.uint64(width)).astype(np.int64) if parts > 1 else np.zeros(len(records), np.int64)
    for part in range(parts):
        mine = records[np.searchsorted(place, part) : np.searchsorted(place, part, side='right')]
        if len(mine) or part == 0:  # one block always goes, as it says what fields there are
            yield part, _packed(mine)


def _resolve(item: tuple[int, Iterable[bytes]], step: Any, number: int) -> Iterator[tuple[int, bytes]]:
    part, blocks = item
    records = in_order(np.concatenate([_unpacked(block) for block in blocks]))
    messages = in_order(step.make().rounds[number].resolve(records))
    for shard in range(len(step.shards)) if part == 0 else np.unique(messages['shard']).tolist():
        first, end = (np.searchsorted(messages['shard'], shard, side=side) for side in ('left', 'right'))
        yield shard, _packed(messages[first:end])


def _apply(item: tuple[int, Sequence[bytes]], step: Any) -> None:
    shard, blocks = item
    if not step.is_applied(shard):
        step.apply(shard, _received(blocks))


def _received(blocks: Sequence[bytes]) -> np.ndarray:
    return in_order(np.concatenate([_unpacked(block) for block in blocks])) if blocks else np.empty(0, ADDRESSED)


def _packed(records: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, records, allow_pickle=False)
    return out.getvalue()


def _unpacked(block: bytes) -> np.ndarray:
    return np.lib.format.read_array(io.BytesIO(block), allow_pickle=False)
