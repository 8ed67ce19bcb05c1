"""What all ways to compute attention share: how a score is made of a query and a key, and which are masked."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Finite, so that a row with nothing to attend to gives a mean and not NaN.
MASKED = -1e30


class Scores(NamedTuple):
    """How queries and keys become attention weights, besides the masks.

    Attributes:
      scale: what q·k is multiplied by; 0 means 1/√K (Vaswani et al. 2017).
      softcap: scores s become c tanh(s / c) (Gemma 2, arXiv:2408.00118); 0 leaves them.
      window: slots that a query sees, its own included; 0 means all before it
        (sliding window: Beltagy et al. 2020, arXiv:2004.05150).
      dropout: rate at which weights are zeroed.
    """

    scale: float = 0.0
    softcap: float = 0.0
    window: int = 0
    dropout: float = 0.0


PLAIN = Scores()


def capped(options: Scores, scores: jax.Array) -> jax.Array:
    """Scores after the soft-cap."""
    return options.softcap * jnp.tanh(scores / options.softcap) if options.softcap else scores


def masked(
    options: Scores, scores_BGRls: jax.Array, distance_Bls: jax.Array, same_Bls: jax.Array | None,
    slopes: jax.Array | None,
) -> jax.Array:  # fmt: skip
    """Scores with what distance takes off, and MASKED where a query may not look.

    Args:
      options: the window.
      scores_BGRls: capped.
      distance_Bls: slot of the query minus slot of the key; B may be 1.
      same_Bls: whether both are of one document; None where all are.
      slopes: of ALiBi, [1, G, R, 1, 1], or None.
    """
    mask_Bls = distance_Bls >= 0
    if options.window:
        mask_Bls &= distance_Bls < options.window
    if same_Bls is not None:
        mask_Bls &= same_Bls
    if slopes is not None:
        scores_BGRls = scores_BGRls - slopes * distance_Bls[:, None, None]
    return jnp.where(mask_Bls[:, None, None], scores_BGRls, MASKED)


def matmul(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """A product for each (B, G), float32; the heads of a group stand above one another as 'x'."""
    heads = lambda x, letters: x.reshape(*x.shape[:2], -1, x.shape[-1]) if 'x' in letters else x
    inputs, output = equation.split('->')
    left, right = inputs.split(',')
    both = f'bg{left},bg{right}->bg{output}'
    # XLA's CPU backend has no bfloat16 product into float32 with a transposed left side.
    out_type = jnp.float32 if 'x' in output else None
    y = jnp.einsum(both, heads(a, left), heads(b, right), preferred_element_type=out_type)
    return y.reshape(*a.shape[:4], y.shape[-1]) if 'x' in output else y.astype(jnp.float32)
