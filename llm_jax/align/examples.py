"""Packed examples on the device: sums over the segments of a row, and the numbers that examples come with.

S segments of a part of a row, E examples of it, k segments of an example: S = k E. Arrays over segments are [B, S], in
the order of the segments, 0 for those that a row does not have.
"""

import jax
import jax.numpy as jnp

from llm_jax.data.batch import Batch


def segment_sums(values_BL: jax.Array, segments_BL: jax.Array, n_segments: int) -> jax.Array:
    """Sums of each segment's values, float32[B, S]; a value that is 0 or of padding (segment 0) adds nothing."""
    # A comparison and not a scatter: it stays local where devices share the tokens of a row.
    is_in_BLS = segments_BL[..., None] == jnp.arange(1, n_segments + 1)
    return jnp.sum(jnp.where(is_in_BLS, values_BL[..., None], 0), axis=1)


def weighted_sums(values_BL: jax.Array, weights_BL: jax.Array, segments_BL: jax.Array, n_segments: int) -> jax.Array:
    """Sums of values times weights, float32[B, S]; a value whose weight is 0 does not count, be it infinite or NaN."""
    # Two selections: the gradient of a product with NaN is NaN, also where the other factor is 0.
    counts = weights_BL != 0
    products_BL = jnp.where(counts, jnp.where(counts, values_BL, 0) * weights_BL, 0)
    return segment_sums(products_BL, segments_BL, n_segments)


def column(rows: jax.Array, columns: int, index: int) -> jax.Array:
    """A column of stored rows int[B, C (L+1)] as the float32[B, L+1] whose bits it holds."""
    return jax.lax.bitcast_convert_type(jnp.split(rows, columns, axis=1)[index], jnp.float32)


def example_values(rows: jax.Array, columns: int, index: int, per_example: int, n_examples: int) -> jax.Array:
    """The value of each example, float32[B, E], which stands at the first token of its first segment.

    Args:
      rows: int[B, C (L+1)].
      columns: C.
      index: of the column that holds the values.
      per_example: segments of an example in the first part of the row.
      n_examples: E.
    """
    segments = jnp.split(rows, columns, axis=1)[1]
    before = jnp.pad(segments[:, :-1], ((0, 0), (1, 0)))
    starts = (segments != before) & (segments > 0)
    values = jnp.where(starts, column(rows, columns, index), 0.0)
    return segment_sums(values, jnp.maximum(segments, 0), per_example * n_examples)[:, ::per_example]


def ends_of_segments(batch: Batch) -> jax.Array:
    """1 at the last token of each segment, float32[B, L]; rows end in a token of padding, which the model reads not.

    Args:
      batch: in the order of the text, from `unpack_examples`.
    """
    after_BL = jnp.pad(batch.segments[:, 1:], ((0, 0), (0, 1)))
    return ((batch.segments != after_BL) & (batch.segments > 0)).astype(jnp.float32)
