"""Zigzag order: the order of tokens that balances causal attention when rows are split over devices.

If a row were split over c devices in text order, the last device would have the most keys to
read: nearly twice the mean. So the row is cut into 2c chunks, and device i holds chunks i and
2c - 1 - i: an early one and a late one (Brandon et al. 2023, "Striped Attention",
arXiv:2311.09431, shows the imbalance; the pairing is that of Llama 3, arXiv:2407.21783,
§3.3.2).

Tokens are brought into this order once, where they enter the model. Positions, targets and
weights are permuted likewise and a loss is a sum, so the order is never undone; only logits
that are returned by position are restored.
"""

import jax
import jax.numpy as jnp

from llm_jax.dist import mesh


def split(x: jax.Array, rules: tuple) -> jax.Array:
    """Permutes [B, L, ...] from text order to zigzag order and splits it by length.

    It moves nothing between devices if the rows were whole, and is the identity if the mesh
    does not split the length.
    """
    parts = mesh.shard_count(rules, 'length')
    rest = (None,) * (x.ndim - 2)
    if parts > 1:
        x = mesh.shard(x, rules, ('batch', None, *rest))
        chunks = _cut_rows(x, 2 * parts)
        x = jnp.stack([chunks[:, :parts], chunks[:, : parts - 1 : -1]], 2).reshape(x.shape)
    return mesh.shard(x, rules, (*mesh.TOKENS, *rest))


def restore(x: jax.Array, rules: tuple, axes: tuple[str | None, ...]) -> jax.Array:
    """Permutes [B, L, ...] back to text order, the inverse of `split`; the result is still split by length.

    Args:
      x: array in zigzag order.
      rules: logical-axis table.
      axes: logical axes of the dimensions after (B, L).
    """
    parts = mesh.shard_count(rules, 'length')
    if parts == 1:
        return x
    x = mesh.shard(x, rules, ('batch', None, *axes))
    pairs = _cut_rows(x, 2 * parts)
    whole = jnp.concatenate([pairs[:, ::2], pairs[:, ::-2]], 1).reshape(x.shape)
    return mesh.shard(whole, rules, (*mesh.TOKENS, *axes))


def _cut_rows(x: jax.Array, n: int) -> jax.Array:
    """[B, L, ...] -> [B, n, L / n, ...]."""
    return x.reshape(x.shape[0], n, -1, *x.shape[2:])
