"""One batch as a pytree: what an objective sees of some rows, on the device."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.dist import mesh
from llm_jax.ops import zigzag


@flax.struct.dataclass
class Batch:
    """Rows B of length L. Every leaf, those of `extras` too, has the rows as its first dimension.

    Attributes:
      tokens: int[B, L], read by the model.
      targets: int[B, L], the token that follows each.
      loss_weights: float32[B, L], the weight of each target; 0 on padding.
      positions: int[B, L], from 0 in each document (or piece of one) of the row.
      segments: int[B, L], the document of each token within its row; tokens attend within theirs.
      extras: arrays of the objective's own, by name: [B, L, ...] for tokens, [B, ...] for rows. A number that holds
        for the whole batch is repeated over its rows.
    """

    tokens: jax.Array
    targets: jax.Array
    loss_weights: jax.Array
    positions: jax.Array
    segments: jax.Array
    extras: dict[str, Any] = flax.struct.field(default_factory=dict)


def unpack_rows(rows: jax.Array, bos_id: int) -> Batch:
    """The batch of packed documents, made from int[B, L+1]: every document led by BOS, -1 for padding."""
    inputs, targets = rows[:, :-1], rows[:, 1:]
    loss_weights = ((inputs >= 0) & (targets >= 0)).astype(jnp.float32)
    starts = inputs == bos_id
    index = jnp.broadcast_to(jnp.arange(inputs.shape[1]), inputs.shape)
    positions = index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)
    segments = jnp.cumsum(starts, axis=1)
    return Batch(jnp.maximum(inputs, 0), jnp.maximum(targets, 0), loss_weights, positions, segments)


def unpack_examples(rows: jax.Array, columns: int = 3, part: int = 0) -> Batch:
    """The batch of packed examples, made from int[B, C (L+1)] as `data.example_rows` stores them.

    A target's weight is that of its token; the first token of a segment, and padding, are no targets.

    Args:
      rows: as above.
      columns: C.
      part: which of the parts of a stored row to take.
    """
    tokens, segments, bits = jnp.split(rows, columns, axis=1)[3 * part : 3 * part + 3]
    inside = (segments[:, :-1] == segments[:, 1:]) & (segments[:, 1:] > 0)
    weights = jax.lax.bitcast_convert_type(bits, jnp.float32)[:, 1:]
    segments = jnp.maximum(segments[:, :-1], 0)  # rows of an evaluation that are all padding hold -1
    index = jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)
    starts = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    positions = index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)
    tokens = jnp.maximum(tokens, 0)
    return Batch(tokens[:, :-1], tokens[:, 1:], jnp.where(inside, weights, 0.0), positions, segments)


def split_length(batch: Batch, rules: tuple) -> Batch:
    """The batch in the order in which the model reads it where the current mesh splits the length; see `zigzag`.

    Arrays [B, L, ...] are split and put into that order, but for the segments, which stay whole; arrays of `extras`
    that have no length stay as they are.
    """

    def split(x: jax.Array) -> jax.Array:
        return zigzag.split(x, rules) if x.shape[:2] == batch.tokens.shape else x

    changed = jax.tree.map(split, batch.replace(segments=None))
    return changed.replace(segments=batch.segments)


def split_rows(batch: Any, n: int) -> Any:
    """The batch in n micro-batches: every leaf [B, ...] becomes [B / n, n, ...].

    Rows stay on the devices that hold them: micro-batch i takes every n-th row.
    """

    def split(x: jax.Array) -> jax.Array:
        spec = None
        if not jax.sharding.get_abstract_mesh().empty:
            rows, *rest = jax.typeof(x).sharding.spec
            spec = jax.P(rows, None, *rest)
        return x.reshape(x.shape[0] // n, n, *x.shape[1:], out_sharding=spec)

    return jax.tree.map(split, batch)


def take_micro_batch(batch: Any, index: jax.Array) -> Any:
    """Micro-batch `index` of what `split_rows` gives: every leaf [B / n, n, ...] becomes [B / n, ...]."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, axis=1, keepdims=False), batch)


def place_rows(rows: Any, rules: tuple) -> Any:
    """Arrays [B, ...] split by rows over the devices of the current mesh, as the step takes them."""
    return jax.tree.map(lambda x: mesh.shard(x, rules, ('batch', *(None for _ in x.shape[1:]))), rows)
