"""The order of tokens in which a causal model's work is even when a row is split over devices.

Of a row that is split over c devices, token by token, the last device would have the
longest keys to read: nearly twice the mean. So the row is cut into 2c chunks, and
device i holds chunks i and 2c - 1 - i: an early one and a late one (Brandon et al. 2023,
"Striped Attention", arXiv:2311.09431, shows the imbalance; the pairing is that of
Llama 3, arXiv:2407.21783, §3.3.2).

Tokens are put into this order once, where they enter the model. Positions, targets and
weights travel with them and a loss is a sum, so the order is never undone; only logits
that somebody asks for by position are put back.
"""

import jax
import jax.numpy as jnp

from llm_jax.dist import mesh


def split(x: jax.Array, rules: tuple) -> jax.Array:
    """[B, L, ...] in the order of the text -> the same tokens, each device with its two chunks of each row.

    It moves nothing between devices when the rows were whole. Where the mesh does not
    split the length it changes nothing.
    """
    parts = mesh.shard_count(rules, 'length')
    rest = (None,) * (x.ndim - 2)
    if parts > 1:
        x = mesh.shard(x, rules, ('batch', None, *rest))
        chunks = _cut(x, 2 * parts)
        x = jnp.stack([chunks[:, :parts], chunks[:, : parts - 1 : -1]], 2).reshape(x.shape)
    return mesh.shard(x, rules, (*mesh.TOKENS, *rest))


def restore(x: jax.Array, rules: tuple, axes: tuple[str | None, ...]) -> jax.Array:
    """The inverse of `split`, for [B, L, ...] whose logical axes after (B, L) are `axes`; still split by length."""
    parts = mesh.shard_count(rules, 'length')
    if parts == 1:
        return x
    x = mesh.shard(x, rules, ('batch', None, *axes))
    pairs = _cut(x, 2 * parts)
    whole = jnp.concatenate([pairs[:, ::2], pairs[:, ::-2]], 1).reshape(x.shape)
    return mesh.shard(whole, rules, (*mesh.TOKENS, *axes))


def _cut(x: jax.Array, n: int) -> jax.Array:
    return x.reshape(x.shape[0], n, -1, *x.shape[2:])
