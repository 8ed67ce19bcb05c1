"""Cache of the tokens so far for decoding, slot = position."""

import functools

import jax
import jax.numpy as jnp

from llm_jax.dist import mesh
from llm_jax.ops.quantised import Quantised, quantise


def write(
    slots_BGSK: jax.Array | Quantised, new_BLGK: jax.Array, positions_BL: jax.Array, rules: tuple, heads: str | None
) -> jax.Array | Quantised:
    """The cache with `new` at `positions`, distinct in each row; positions past its end are dropped.

    Heads stand before slots, so that a decoding step reads each head's slots in one
    contiguous run; slots before heads made its products ten times slower on CPU.

    Args:
      slots_BGSK: the cache.
      new_BLGK: what is to be written.
      positions_BL: int, the slot of each token.
      rules: logical-axis table.
      heads: logical axis of G.
    """
    if isinstance(slots_BGSK, Quantised):
        each = lambda held, new: write(held, new, positions_BL, rules, heads)
        return jax.tree.map(each, slots_BGSK, quantise(new_BLGK, slots_BGSK.kind))

    def put(slots_BGSK: jax.Array, new_BLGK: jax.Array, positions_BL: jax.Array) -> jax.Array:
        rows_B1 = jnp.arange(slots_BGSK.shape[0])[:, None]
        return slots_BGSK.at[rows_B1, :, positions_BL].set(new_BLGK, unique_indices=True)

    if not jax.sharding.get_abstract_mesh().empty:
        # Each device writes into the rows and heads that it holds.
        spec = functools.partial(mesh.spec, rules)
        held, new = spec(axes(heads)), spec(('batch', 'length', heads, 'd_head'))
        put = jax.shard_map(put, in_specs=(held, new, spec(mesh.TOKENS)), out_specs=held)
    return put(slots_BGSK, new_BLGK.astype(slots_BGSK.dtype), positions_BL)


def empty(shape_BGSK: tuple[int, ...], dtype: str, rules: tuple, heads: str | None) -> jax.Array:
    """An empty cache on the current mesh. For use under jit."""
    return mesh.shard(jnp.zeros(shape_BGSK, dtype), rules, axes(heads))


def axes(heads: str | None) -> tuple[str | None, ...]:
    """The logical axes of a cache [B, G, S, K]."""
    return ('batch', heads, 'length', 'd_head')
