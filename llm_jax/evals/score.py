"""Log-likelihoods of continuations: rows in buckets of equal length and batch, so that no score depends on the others.

Shapes: B batch, L length, D model, V vocabulary, c positions with logits in memory at once.
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
from llm_jax.nn.transformer import Transformer

_SHORTEST = 32
_TOKENS = 4096  # B x L of a bucket
_POSITIONS = 256


@dataclasses.dataclass(frozen=True)
class Answer:
    """The score of a row.

    Attributes:
      log_likelihood: sum of the log-probabilities of the scored tokens, in nats.
      is_greedy: True if each of them is the likeliest.
    """

    log_likelihood: float
    is_greedy: bool


class Scorer:
    """Scores rows of tokens, in float32 whatever the dtype of the model's config."""

    def __init__(self, model: Transformer, params: Any) -> None:
        """Args:
        model: the Transformer.
        params: its parameters.
        """
        self.model = Transformer(dataclasses.replace(model.config, dtype='float32'))
        self.max_seq_len = model.config.max_seq_len
        self._params, self._score = params, jax.jit(functools.partial(_score_rows, self.model))

    def score(self, rows: Sequence[tuple[Sequence[int], int]], names: Sequence[str]) -> list[Answer]:
        """Scores the last tokens of each row; equal rows once.

        Args:
          rows: (ids, number of scored ids at their end).
          names: of the items, for errors.

        Raises:
          ConfigError: a score that is not finite; it names the item.
        """
        keys = [(tuple(ids), count) for ids, count in rows]
        name_of = dict(zip(reversed(keys), reversed(list(names)), strict=True))
        buckets: dict[int, list[tuple[tuple[int, ...], int]]] = {}
        for key in dict.fromkeys(keys):
            buckets.setdefault(self._bucket(len(key[0]) - 1), []).append(key)
        found: dict[tuple[tuple[int, ...], int], Answer] = {}
        for length, members in sorted(buckets.items(), reverse=True):
            size = max(1, _TOKENS // length)
            for start in range(0, len(members), size):
                part = members[start : start + size]
                for key, answer in zip(part, self._run(part, size, length), strict=True):
                    if not math.isfinite(answer.log_likelihood):
                        raise ConfigError(
                            f'{name_of[key]}: the log-likelihood is {answer.log_likelihood}: the weights hold NaN or '
                            'infinities; take another checkpoint'
                        )
                    found[key] = answer
        return [found[key] for key in keys]

    def _bucket(self, length: int) -> int:
        """Returns the least power of two that holds a row, or the model's context."""
        bucket = _SHORTEST
        while bucket < length:
            bucket *= 2
        return min(bucket, self.max_seq_len)

    def _run(self, part: Sequence[tuple[tuple[int, ...], int]], size: int, length: int) -> list[Answer]:
        tokens_BL, targets_BL = np.zeros((2, size, length), np.int32)
        scored_BL = np.zeros((size, length), bool)
        for row, (ids, count) in enumerate(part):
            n = len(ids) - 1
            tokens_BL[row, :n], targets_BL[row, :n] = ids[:-1], ids[1:]
            scored_BL[row, n - count : n] = True
        sums_B, greedy_B = jax.device_get(self._score(self._params, tokens_BL, targets_BL, scored_BL))
        return [Answer(float(sums_B[i]), bool(greedy_B[i])) for i in range(len(part))]


def _score_rows(
    model: Transformer, params: Any, tokens_BL: jax.Array, targets_BL: jax.Array, scored_BL: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(sum of log-probabilities float32[B], all likeliest bool[B]) of the scored targets of each row."""
    x_BLD = model.apply({'params': params}, tokens_BL, method='features')
    (B, L), c = tokens_BL.shape, math.gcd(tokens_BL.shape[1], _POSITIONS)

    def score_chunk(chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x_cD, targets_c = chunk
        logits_cV = model.apply({'params': params}, x_cD[None], method='head')[0].astype(jnp.float32)
        picked_c = jnp.take_along_axis(logits_cV, targets_c[:, None], axis=1)[:, 0]
        return picked_c - jax.nn.logsumexp(logits_cV, axis=1), jnp.argmax(logits_cV, axis=1) == targets_c

    chunks = x_BLD.reshape(B * L // c, c, -1), targets_BL.reshape(B * L // c, c)
    log_probs, greedy = jax.lax.map(score_chunk, chunks)
    log_probs_BL, greedy_BL = log_probs.reshape(B, L), greedy.reshape(B, L)
    return jnp.sum(jnp.where(scored_BL, log_probs_BL, 0), axis=1), jnp.all(greedy_BL | ~scored_BL, axis=1)
