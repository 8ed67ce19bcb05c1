"""Log-likelihoods of continuations, in batches of few shapes, so that no score depends on the rows beside it.

Shapes: B batch, L length, Q scored tokens of a row, D model, V vocabulary, N chunks, c scored tokens of a chunk.
"""

from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.config.schema import ConfigError
from llm_jax.dist import mesh
from llm_jax.evals.encode import Encoded
from llm_jax.nn.transformer import Transformer
from llm_jax.ops import pipeline

_SHORTEST = 32
_TOKENS = 4096  # B x L of a batch
_FEW = 128  # scored tokens that a row has room for, unless it has more
_LOGITS = 512  # rows of logits in memory at once

Row = tuple[Sequence[int], int]  # ids, number of scored ids at their end
_Key = tuple[tuple[int, ...], int]


@dataclasses.dataclass(frozen=True)
class Answer:
    """The score of a row.

    Attributes:
      log_likelihood: sum of the log-probabilities of the scored tokens, in nats.
      is_greedy: True if each of them is the likeliest.
    """

    log_likelihood: float
    is_greedy: bool


@dataclasses.dataclass(frozen=True)
class _Read:
    """Tokens that the model reads once, and what is scored on them: target i follows the input at position i."""

    inputs: tuple[int, ...]
    positions: tuple[int, ...]
    targets: tuple[int, ...]


class Scorer:
    """Scores rows of tokens, in float32 whatever the dtype of the model's config, on the mesh that is current."""

    def __init__(self, model: Transformer, params: Any) -> None:
        """Args:
        model: the Transformer.
        params: its parameters, on the current mesh.
        """
        self.model, self.max_seq_len = _scoring_model(model), model.config.max_seq_len
        self._params, self._score = params, jax.jit(functools.partial(_score_rows, self.model))
        self._known: dict[_Read, tuple[np.ndarray, np.ndarray]] = {}
        config = self.model.config
        plan = pipeline.schedule(config.rules, config.pipeline)
        # A batch is a whole number of rows on each shard, and of micro-batches of a pipeline.
        self._multiple = mesh.batch_shard_count(config.rules) * plan.microbatches // plan.stages
        here = jax.sharding.get_mesh()
        self._rows = None if here.empty else mesh.batch_sharding(here, config.rules)

    def take(self, params: Any) -> None:
        """Goes on with other parameters, which are laid out alike; what those before scored is forgotten."""
        self._params, self._known = params, {}

    def score(self, rows: Sequence[Row], names: Sequence[str]) -> list[Answer]:
        """Scores the last tokens of each row.

        Rows of one name share what they read where one's inputs begin another's, as the letters of a question do.
        Equal inputs with equal targets are computed once, also over several calls.

        Args:
          rows: (ids, number of scored ids at their end).
          names: of their items, for sharing and for errors.

        Raises:
          ConfigError: a score that is not finite; it names the item.
        """
        keys = [(tuple(ids), count) for ids, count in rows]
        groups: dict[str, dict[_Key, None]] = {}
        for key, name in zip(keys, names, strict=True):
            groups.setdefault(name, {})[key] = None
        name_of: dict[_Read, str] = {}
        places = {}
        for name, members in groups.items():
            for read, inside in _share_inputs(list(members)):
                name_of.setdefault(read, name)
                places |= {(name, key): (read, span) for key, span in inside.items()}
        self._run_all([read for read in name_of if read not in self._known])
        answers = []
        for key, name in zip(keys, names, strict=True):
            read, (start, end) = places[name, key]
            log_probs, greedy = self._known[read]
            total = float(log_probs[start:end].sum(dtype=np.float64))
            if not math.isfinite(total):
                raise ConfigError(
                    f'{name}: the log-likelihood is {total}: the weights hold NaN or infinities; take another '
                    'checkpoint'
                )
            answers.append(Answer(total, bool(greedy[start:end].all())))
        return answers

    def _run_all(self, reads: Sequence[_Read]) -> None:
        """Adds to what is known: log-probability, and whether it is the likeliest, of each scored token."""
        buckets: dict[tuple[int, int], list[_Read]] = {}
        for read in reads:
            length = self._bucket(len(read.inputs))
            n_scored = min(_FEW, length) if len(read.positions) <= _FEW else length
            buckets.setdefault((length, n_scored), []).append(read)
        sent: list[tuple[list[_Read], tuple[jax.Array, jax.Array]]] = []
        for (length, n_scored), members in sorted(buckets.items(), reverse=True):
            size = -(-max(1, _TOKENS // length) // self._multiple) * self._multiple
            for start in range(0, len(members), size):
                part = members[start : start + size]
                sent.append((part, self._send(part, size, length, n_scored)))
                if len(sent) > 2:  # the device works while the host prepares the next
                    self._receive(*sent.pop(0))
        for part, results in sent:
            self._receive(part, results)

    def _receive(self, part: Sequence[_Read], results: tuple[jax.Array, jax.Array]) -> None:
        log_probs_BQ, greedy_BQ = jax.device_get(results)
        for row, read in enumerate(part):
            n = len(read.positions)
            self._known[read] = log_probs_BQ[row, :n].copy(), greedy_BQ[row, :n].copy()

    def _bucket(self, length: int) -> int:
        """Returns the least of 32, 64, 128, 192, 256, 384, 512, ... that holds a row, or the model's context."""
        power = max(_SHORTEST, 1 << (length - 1).bit_length())
        bucket = power * 3 // 4 if power > 128 and length <= power * 3 // 4 else power
        return min(bucket, self.max_seq_len)

    def _send(self, part: Sequence[_Read], size: int, length: int, n_scored: int) -> tuple[jax.Array, jax.Array]:
        tokens_BL = np.zeros((size, length), np.int32)
        positions_BQ, targets_BQ = np.zeros((2, size, n_scored), np.int32)
        for row, read in enumerate(part):
            n = len(read.positions)
            tokens_BL[row, : len(read.inputs)] = read.inputs
            positions_BQ[row, :n], targets_BQ[row, :n] = read.positions, read.targets
        return self._score(self._params, *map(self._place, (tokens_BL, positions_BQ, targets_BQ)))

    def _place(self, rows: np.ndarray) -> np.ndarray | jax.Array:
        """Rows as an array that is split over the mesh; every process makes its part."""
        if self._rows is None:
            return rows
        return jax.make_array_from_callback(rows.shape, self._rows, rows.__getitem__)


def score_all(scorer: Scorer, encoded: Sequence[Sequence[Encoded]], names: Sequence[str]) -> list[list[Answer]]:
    """Scores the requests of items, in order; of a continuation that is read in windows, all of them together.

    Args:
      scorer: of the model.
      encoded: the requests of each item.
      names: of the items; see `Scorer.score`.

    Raises:
      ConfigError: as `Scorer.score`.
    """
    flat = [
        (window, name)
        for several, name in zip(encoded, names, strict=True)
        for one in several
        for window in one.windows
    ]
    answers = iter(scorer.score([window for window, _ in flat], [name for _, name in flat]))

    def join(one: Encoded) -> Answer:
        parts = [next(answers) for _ in one.windows]
        return Answer(sum(part.log_likelihood for part in parts), all(part.is_greedy for part in parts))

    return [[join(one) for one in several] for several in encoded]


def _share_inputs(keys: Sequence[_Key]) -> list[tuple[_Read, dict[_Key, tuple[int, int]]]]:
    """Reads for the rows of one item, each with the spans of its rows among its targets."""
    open_reads: list[tuple[tuple[int, ...], list[_Key]]] = []
    for key in sorted(keys, key=lambda key: len(key[0]), reverse=True):
        inputs = key[0][:-1]
        for longer, members in open_reads:
            room = max(len(longer), 1) - sum(count for _, count in members)
            if longer[: len(inputs)] == inputs and key[1] <= room:
                members.append(key)
                break
        else:
            open_reads.append((inputs, [key]))
    out = []
    for inputs, members in open_reads:
        positions, targets, spans = [], [], {}
        for ids, count in members:
            spans[ids, count] = len(targets), len(targets) + count
            positions += range(len(ids) - 1 - count, len(ids) - 1)
            targets += ids[-count:]
        out.append((_Read(inputs, tuple(positions), tuple(targets)), spans))
    return out


def _scoring_model(model: Transformer) -> Transformer:
    """The model as it scores: float32, rows whole on each device, and experts that take all tokens.

    So no score depends on the dtype of training, on how a mesh splits rows, or on the tokens beside a row's.
    """
    config = model.config
    changes: dict[str, Any] = {'dtype': 'float32', 'moe': dataclasses.replace(config.moe, dropless=True)}
    if mesh.shard_count(config.rules, 'length') * mesh.shard_count(config.rules, 'residual_length') > 1:
        changes['rules'] = mesh.whole_rows(config.rules)
    return Transformer(dataclasses.replace(config, **changes))


def _score_rows(
    model: Transformer, params: Any, tokens_BL: jax.Array, positions_BQ: jax.Array, targets_BQ: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(log-probabilities float32[B, Q], likeliest bool[B, Q]) of the targets after the inputs at some positions."""
    B, Q = positions_BQ.shape
    c = math.gcd(Q, 1 << max(_LOGITS // B, 1).bit_length() - 1)
    x_BLD = model.apply({'params': params}, tokens_BL, method='features')
    x_BQD = _pick_positions(x_BLD, positions_BQ)

    def score_chunk(chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x_BcD, targets_Bc = chunk
        logits_BcV = model.apply({'params': params}, x_BcD, method='head').astype(jnp.float32)
        # A comparison, not a lookup: it stays local when the vocabulary is split over devices.
        is_target_BcV = jnp.arange(logits_BcV.shape[-1]) == targets_Bc[..., None]
        picked_Bc = jnp.sum(jnp.where(is_target_BcV, logits_BcV, 0), axis=-1)
        return picked_Bc - jax.nn.logsumexp(logits_BcV, axis=-1), picked_Bc >= jnp.max(logits_BcV, axis=-1)

    chunks = (jnp.moveaxis(x.reshape(B, Q // c, c, *x.shape[2:]), 1, 0) for x in (x_BQD, targets_BQ))
    log_probs_NBc, greedy_NBc = jax.lax.map(score_chunk, tuple(chunks))
    found = (jnp.moveaxis(x, 0, 1).reshape(B, Q) for x in (log_probs_NBc, greedy_NBc))
    return tuple(map(_replicate, found))


def _pick_positions(x_BLD: jax.Array, positions_BQ: jax.Array) -> jax.Array:
    """The features at some positions of each row, [B, Q, D]; each device picks from its rows."""
    pick = lambda x_BLD, positions_BQ: jnp.take_along_axis(x_BLD, positions_BQ[:, :, None], axis=1)
    if jax.sharding.get_abstract_mesh().empty:
        return pick(x_BLD, positions_BQ)
    rows = jax.typeof(x_BLD).sharding.spec[0]
    specs = jax.P(rows, None, None), jax.P(rows, None)
    args = (jax.sharding.reshard(x, spec) for x, spec in zip((x_BLD, positions_BQ), specs, strict=True))
    return jax.shard_map(pick, in_specs=specs, out_specs=specs[0])(*args)


def _replicate(x: jax.Array) -> jax.Array:
    """The array whole on every device, so that every process can read it."""
    return x if jax.sharding.get_abstract_mesh().empty else jax.sharding.reshard(x, jax.P())
