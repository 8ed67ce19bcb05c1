"""Which targets count, and sums over those of a row.

Log-probability t of a row of L + 1 tokens is that of token t + 1. Arrays over tokens are [B, L + 1], arrays over
targets [B, L].
"""

import jax
import jax.numpy as jnp

# (sum over a batch or micro-batch, divisor of the sum over all of them)
LossSum = tuple[jax.Array, jax.Array]


def target_weights(
    trained: jax.Array, segments: jax.Array | None = None, length_B: jax.Array | None = None
) -> jax.Array:
    """Weights of the targets, float32[B, L], from the weights of the tokens.

    Padding is known by segment or by length, never by the id of a token: the padding may be the token that ends a turn.

    Args:
      trained: [B, L + 1], the weight of each token as a target: 1 where the assistant wrote it, the end of its turn
        included.
      segments: int[B, L + 1], the document or conversation of each token, 0 on padding. The first token of one is no
        target of the one before.
      length_B: int[B], tokens of each row before its padding.
    """
    weights_BL = jnp.asarray(trained)[:, 1:].astype(jnp.float32)
    if segments is not None:
        same = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
        weights_BL = jnp.where(same, weights_BL, 0)
    if length_B is not None:
        weights_BL = jnp.where(jnp.arange(1, trained.shape[1]) < length_B[:, None], weights_BL, 0)
    return weights_BL


def segment_positions(segments: jax.Array) -> jax.Array:
    """Positions of tokens, int[B, L], from 0 in each run of equal segments."""
    index = jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)
    starts = jnp.concatenate([jnp.ones_like(segments[:, :1], bool), segments[:, 1:] != segments[:, :-1]], 1)
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)


def masked_sum(values_BL: jax.Array, weights_BL: jax.Array, axis: int | None = None) -> jax.Array:
    """Sum of values times weights; a value whose weight is 0 does not count, be it infinite or NaN."""
    # Two selections: the gradient of a product with NaN is NaN, also where the other factor is 0.
    counts = weights_BL != 0
    return jnp.sum(jnp.where(counts, jnp.where(counts, values_BL, 0) * weights_BL, 0), axis)


def row_sums(log_probs_BL: jax.Array, weights_BL: jax.Array) -> jax.Array:
    """Log-probability of each row's weighted targets, summed, [B]."""
    return masked_sum(log_probs_BL, weights_BL, 1)


def row_lengths(weights_BL: jax.Array) -> jax.Array:
    """Targets of each row, [B], at least 1 so that an empty row can be divided by it."""
    return jnp.maximum(jnp.sum(weights_BL, 1), 1)


def token_nll(log_probs_BL: jax.Array, weights_BL: jax.Array) -> LossSum:
    """Negative log-likelihood of the weighted targets, per target: supervised fine-tuning."""
    return -masked_sum(log_probs_BL, weights_BL), jnp.sum(weights_BL)


def dynamic_nll(log_probs_BL: jax.Array, weights_BL: jax.Array) -> LossSum:
    """Negative log-likelihood of each target times its own probability, a constant (DFT, arXiv:2508.05629, eq. 9)."""
    probs_BL = jax.lax.stop_gradient(jnp.exp(log_probs_BL))
    return -masked_sum(probs_BL * log_probs_BL, weights_BL), jnp.sum(weights_BL)
