"""From logits to a token, row by row: bias, penalties, temperature, cuts, draw.

Shapes: B rows, V vocabulary, N biased ids of a row.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from llm_jax.generate.settings import NO_ID, Settings


class Seen(NamedTuple):
    """Tokens of each row so far, for the penalties.

    Attributes:
      prompt_BV: bool, True for the tokens of the prompt.
      counts_BV: int32, times that each token is in the output.
    """

    prompt_BV: jax.Array
    counts_BV: jax.Array


def sample(logits_BV: jax.Array, settings: Settings, keys_B: jax.Array, seen: Seen) -> tuple[jax.Array, jax.Array]:
    """Draws a token for each row.

    A step that no row asks for is skipped when the program runs, so that one program serves all settings.

    Args:
      logits_BV: float32; -inf forbids a token.
      settings: of each row.
      keys_B: random keys.
      seen: tokens so far.

    Returns:
      (tokens int32[B], log-probability of each in the distribution that it was drawn from, float32[B]: 0 where greedy)
    """
    logits_BV = penalise(add_bias(logits_BV, settings), settings, seen)
    greedy_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    is_greedy_B = settings.temperature == 0

    def draw() -> tuple[jax.Array, jax.Array]:
        cut_BV = cut(scale(logits_BV, settings), settings)
        drawn_B = jax.vmap(jax.random.categorical)(keys_B, cut_BV).astype(jnp.int32)
        log_probs_B = jnp.take_along_axis(jax.nn.log_softmax(cut_BV), drawn_B[:, None], axis=-1)[:, 0]
        return jnp.where(is_greedy_B, greedy_B, drawn_B), jnp.where(is_greedy_B, 0.0, log_probs_B)

    return jax.lax.cond(is_greedy_B.all(), lambda: (greedy_B, jnp.zeros(len(greedy_B))), draw)


def add_bias(logits_BV: jax.Array, settings: Settings) -> jax.Array:
    """Adds each row's biases to its logits."""
    add = lambda logits_V, ids_N, values_N: logits_V.at[ids_N].add(values_N, mode='drop')
    has_bias = (settings.bias_ids != NO_ID).any()
    added = lambda: jax.vmap(add)(logits_BV, settings.bias_ids, settings.bias_values)
    return jax.lax.cond(has_bias, added, lambda: logits_BV)


def penalise(logits_BV: jax.Array, settings: Settings, seen: Seen) -> jax.Array:
    """Applies the penalties on tokens that are in the prompt (repetition alone) or in the output."""
    repetition_B1, frequency_B1, presence_B1 = (
        x_B[:, None] for x_B in (settings.repetition_penalty, settings.frequency_penalty, settings.presence_penalty)
    )

    def apply() -> jax.Array:
        is_output_BV = seen.counts_BV > 0
        factor_BV = jnp.where(logits_BV > 0, 1 / repetition_B1, repetition_B1)
        repeated_BV = jnp.where(seen.prompt_BV | is_output_BV, logits_BV * factor_BV, logits_BV)
        return repeated_BV - frequency_B1 * seen.counts_BV - presence_B1 * is_output_BV

    any_B1 = (repetition_B1 != 1) | (frequency_B1 != 0) | (presence_B1 != 0)
    return jax.lax.cond(any_B1.any(), apply, lambda: logits_BV)


def scale(logits_BV: jax.Array, settings: Settings) -> jax.Array:
    """Divides the logits by the temperature; rows of temperature 0, which are not drawn, keep theirs."""
    temperature_B1 = settings.temperature[:, None]
    # The largest logit is 0 before the division, so a tiny temperature cannot overflow.
    logits_BV = logits_BV - logits_BV.max(-1, keepdims=True)
    smallest = jnp.finfo(jnp.float32).tiny
    return logits_BV / jnp.where(temperature_B1 == 0, 1.0, jnp.maximum(temperature_B1, smallest))


def cut(logits_BV: jax.Array, settings: Settings) -> jax.Array:
    """Sets the logits of tokens that top_k, top_p, min_p and typical_p cut, in this order, to -inf."""
    V = logits_BV.shape[-1]
    for is_active_B, kept in (
        ((settings.top_k > 0) & (settings.top_k < V), _top_k),
        (settings.top_p < 1, _top_p),
        (settings.min_p > 0, _min_p),
        (settings.typical_p < 1, _typical),
    ):
        logits_BV = _cut_rows(logits_BV, settings, is_active_B, kept)
    return logits_BV


def _cut_rows(
    logits_BV: jax.Array, settings: Settings, is_active_B: jax.Array, kept: Callable[[jax.Array, Settings], jax.Array]
) -> jax.Array:
    """Applies one cut, bool[B, V] of the tokens kept, to the rows that ask for it."""
    keep = lambda: jnp.where(kept(logits_BV, settings) | ~is_active_B[:, None], logits_BV, -jnp.inf)
    return jax.lax.cond(is_active_B.any(), keep, lambda: logits_BV)


def _top_k(logits_BV: jax.Array, settings: Settings) -> jax.Array:
    order_BV = _orderable(logits_BV)
    return order_BV >= _threshold(order_BV, jnp.ones_like(logits_BV), settings.top_k.astype(jnp.float32))


def _top_p(logits_BV: jax.Array, settings: Settings) -> jax.Array:
    probs_BV = jax.nn.softmax(logits_BV)
    order_BV = _orderable(probs_BV)
    return order_BV >= _threshold(order_BV, probs_BV, settings.top_p)


def _min_p(logits_BV: jax.Array, settings: Settings) -> jax.Array:
    probs_BV = jax.nn.softmax(logits_BV)
    return probs_BV >= settings.min_p[:, None] * probs_BV.max(-1, keepdims=True)


def _typical(logits_BV: jax.Array, settings: Settings) -> jax.Array:
    log_probs_BV = jax.nn.log_softmax(logits_BV)
    probs_BV = jnp.exp(log_probs_BV)
    is_possible_BV = probs_BV > 0
    entropy_B1 = -jnp.sum(jnp.where(is_possible_BV, probs_BV * log_probs_BV, 0), -1, keepdims=True)
    distance_BV = jnp.where(is_possible_BV, jnp.abs(log_probs_BV + entropy_B1), jnp.inf)
    order_BV = _orderable(-distance_BV)
    return order_BV >= _threshold(order_BV, probs_BV, settings.typical_p)


def _orderable(x: jax.Array) -> jax.Array:
    """Maps float32 to uint32 of the same order; -0.0 counts as 0.0."""
    bits = jax.lax.bitcast_convert_type(x + 0.0, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _threshold(order_BV: jax.Array, weights_BV: jax.Array, target_B: jax.Array) -> jax.Array:
    """Finds the largest t for which the entries of order >= t together weigh at least the target, uint32[B, 1].

    Bisection over the 32 bits finds it exactly, in less time than sorting the vocabulary.
    Where all weights together are less than the target, as after rounding, it is 0 and keeps all.
    """

    def narrow(i: jax.Array, low_B1: jax.Array) -> jax.Array:
        middle_B1 = low_B1 | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        mass_B1 = jnp.sum(jnp.where(order_BV >= middle_B1, weights_BV, 0), -1, keepdims=True)
        return jnp.where(mass_B1 >= target_B[:, None], middle_B1, low_B1)

    return jax.lax.fori_loop(0, 32, narrow, jnp.zeros_like(order_BV[:, :1]))
