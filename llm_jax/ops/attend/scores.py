"""Attention scores, shared by the XLA paths: soft-cap, ALiBi and masks.

Shapes: B rows, G key/value heads, R query heads of each, l queries, s keys, K width of a head.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from llm_jax.ops.quantised import Quantised, multiply_vectors

# Finite, so that the softmax of a row without any visible key is a mean and not NaN.
MASKED = -1e30


class Scores(NamedTuple):
    """Options of the attention scores, apart from segments and cache slots.

    Attributes:
      scale: factor of q·k; 0 means 1/√K (Vaswani et al. 2017, arXiv:1706.03762).
      softcap: scores s become c tanh(s / c) (Gemma 2, arXiv:2408.00118); 0 leaves them.
      window: slots that a query sees, its own included; 0 means all up to its own
        (sliding window: Beltagy et al. 2020, arXiv:2004.05150).
      dropout: rate at which attention weights are zeroed.
    """

    scale: float = 0.0
    softcap: float = 0.0
    window: int = 0
    dropout: float = 0.0


PLAIN = Scores()


class Operands(NamedTuple):
    """Arrays of one attention, whole or this device's shards of them; see `attend` for each.

    V is the width of the values; S = L without a cache.
    """

    q_BLHK: jax.Array
    k_BSGK: jax.Array
    v_BSGV: jax.Array
    segments_BL: jax.Array | None
    slots_BL: jax.Array | None
    slopes_H: jax.Array | None
    sinks_H: jax.Array | None
    dropout_key: jax.Array | None


def apply_softcap(options: Scores, scores_BGRls: jax.Array) -> jax.Array:
    """c tanh(s / c) of the scores; the scores themselves without a soft-cap."""
    return options.softcap * jnp.tanh(scores_BGRls / options.softcap) if options.softcap else scores_BGRls


def mask_scores(
    options: Scores,
    scores_BGRls: jax.Array,
    distance_Bls: jax.Array,
    same_Bls: jax.Array | None,
    slopes_1GR11: jax.Array | None,
) -> jax.Array:
    """Adds the ALiBi bias and sets disallowed positions to MASKED.

    Args:
      options: the window.
      scores_BGRls: scores, after the soft-cap.
      distance_Bls: slot of the query minus slot of the key; B may be 1.
      same_Bls: True where query and key belong to one document; None if all do.
      slopes_1GR11: slope of ALiBi for each query head, or None.
    """
    mask_Bls = distance_Bls >= 0
    if options.window:
        mask_Bls &= distance_Bls < options.window
    if same_Bls is not None:
        mask_Bls &= same_Bls
    if slopes_1GR11 is not None:
        scores_BGRls = scores_BGRls - slopes_1GR11 * distance_Bls[:, None, None]
    return jnp.where(mask_Bls[:, None, None], scores_BGRls, MASKED)


def matmul_groups(equation: str, a: jax.Array, b: jax.Array | Quantised) -> jax.Array:
    """Multiplies one matrix per (B, G) and returns float32.

    Args:
      equation: einsum of the two trailing dimensions, as 'xk,sk->xs'. The letter 'x' stands
        for (R, l), the queries of all heads of a group, which become the rows of one matrix.
      a: left operand, [B, G, R, l, ...] if it has an 'x', else [B, G, s, ...].
      b: right operand, likewise; or keys or values [B, G, s, ...] of a quantised cache.
    """
    flatten_x = lambda x, letters: x.reshape(*x.shape[:2], -1, x.shape[-1]) if 'x' in letters else x
    inputs, output = equation.split('->')
    left, right = inputs.split(',')
    if isinstance(b, Quantised):
        y = multiply_vectors(flatten_x(a, left), b, sums_width=left[-1] == 'k')
        return y.reshape(*a.shape[:4], y.shape[-1])
    batched = f'bg{left},bg{right}->bg{output}'
    # XLA's CPU backend has no bfloat16 product into float32 with a transposed left side.
    out_type = jnp.float32 if 'x' in output else None
    y = jnp.einsum(batched, flatten_x(a, left), flatten_x(b, right), preferred_element_type=out_type)
    return y.reshape(*a.shape[:4], y.shape[-1]) if 'x' in output else y.astype(jnp.float32)
