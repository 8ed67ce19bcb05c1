"""Softmax attention itself: queries, keys and values in, weighted values out.

The one place that knows kernels. Which pairs may attend is described (causal by slot,
within a segment), not given as a matrix, so that a kernel can skip what is masked.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from llm_jax import mesh

# Finite, so that a row with nothing to attend to gives a mean and not NaN.
MASKED = -1e30
# Queries that share one slice of the keys: with causal masking the keys after them are
# never multiplied, which saves nearly half of the work at long lengths.
QUERY_CHUNK = 128


def attend(
    q_BLHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    *,
    rules: tuple,
    segments_BL: jax.Array | None = None,
    slots_BL: jax.Array | None = None,
    dropout: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Causal attention, scaled by 1/√K (Vaswani et al. 2017); softmax in float32.

    Args:
      q_BLHK: queries; head h reads key/value head h // (H / G).
      k_BSGK: keys of S slots and G <= H heads.
      v_BSGK: values, likewise.
      rules: logical-axis table, for the mesh.
      segments_BL: document of each token; attention stays within it. Needs S == L.
      slots_BL: slot of each query, for a cache: it sees slots up to and including its
        own. None means that queries and keys are the same tokens (S == L).
      dropout: rate at which attention weights are zeroed.
      dropout_key: needed if `dropout` is not 0.

    Returns:
      [B, L, H, K] in the dtype of q.
    """
    core = functools.partial(_attend_xla, dropout=dropout)
    if not jax.sharding.get_abstract_mesh().empty:
        # Heads and rows are independent, so each device attends to its own; what a
        # kernel sees is plain local arrays.
        table = dict(rules)
        if table['kv_heads'] != table['heads']:
            # A device has some of the query heads but not just their key/value heads
            # (e.g. one of those, or fewer than devices): give each query head its own.
            k_BSGK, v_BSGK = (_repeat_heads(x, q_BLHK.shape[2], table) for x in (k_BSGK, v_BSGK))
            table['kv_heads'] = table['heads']
        heads = lambda name: P(table['batch'], None, table[name], None)
        rows = lambda x: None if x is None else P(table['batch'], None)
        core = _per_device_key(core, table) if dropout else core
        core = jax.shard_map(
            core,
            in_specs=(heads('heads'), heads('kv_heads'), heads('kv_heads'), rows(segments_BL), rows(slots_BL), P()),
            out_specs=heads('heads'),
        )
    return core(q_BLHK, k_BSGK, v_BSGK, segments_BL, slots_BL, dropout_key if dropout else None)


def _repeat_heads(x_BSGK: jax.Array, n_heads: int, table: dict) -> jax.Array:
    """[B, S, G, K] -> [B, S, H, K], split as the query heads are."""
    B, S, G, K = x_BSGK.shape
    x_BSGK = jax.sharding.reshard(x_BSGK, P(table['batch'], None, None, None))
    repeated = jnp.broadcast_to(x_BSGK[:, :, :, None], (B, S, G, n_heads // G, K))
    whole = repeated.reshape(B, S, n_heads, K)
    return jax.sharding.reshard(whole, P(table['batch'], None, table['heads'], None))


def _per_device_key(core, table: dict):
    axes = [a for name in ('batch', 'heads') for a in mesh.mesh_axes(table[name])]

    def with_own_key(q, k, v, segments, slots, key):
        for axis in axes:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis))
        return core(q, k, v, segments, slots, key)

    return with_own_key


def _attend_xla(q_BLHK, k_BSGK, v_BSGK, segments_BL, slots_BL, dropout_key, *, dropout):
    """One slice of queries after another, each against the keys it can see."""
    B, L, H, K = q_BLHK.shape
    S, G = k_BSGK.shape[1:3]
    # (B, G) lead, so that each product is one batched matrix product over contiguous
    # slices; the H / G query heads of a group stand above one another.
    q = (q_BLHK * K**-0.5).reshape(B, L, G, H // G, K).transpose(0, 2, 3, 1, 4)  # [B, G, H/G, L, K]
    k = k_BSGK.transpose(0, 2, 1, 3)  # [B, G, S, K]
    v = v_BSGK.transpose(0, 2, 1, 3)
    chunk = QUERY_CHUNK if L % QUERY_CHUNK == 0 else L
    out = []
    for start in range(0, L, chunk):
        stop = start + chunk
        seen = S if slots_BL is not None else stop
        slots = jnp.arange(start, stop)[None] if slots_BL is None else slots_BL[:, start:stop]
        mask = slots[:, :, None] >= jnp.arange(seen)  # [B or 1, l, s]
        if segments_BL is not None:
            mask &= segments_BL[:, start:stop, None] == segments_BL[:, None, :seen]
        q_rows = q[:, :, :, start:stop].reshape(B, G, -1, K)
        scores = jnp.einsum('bgqk,bgsk->bgqs', q_rows, k[:, :, :seen], preferred_element_type=jnp.float32)
        scores = scores.reshape(B, G, H // G, chunk, seen)
        weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, MASKED), axis=-1)
        if dropout:
            keep = jax.random.bernoulli(jax.random.fold_in(dropout_key, start), 1 - dropout, weights.shape)
            weights = jnp.where(keep, weights / (1 - dropout), 0)
        weights = weights.astype(v.dtype).reshape(B, G, -1, seen)
        out.append(jnp.einsum('bgqs,bgsk->bgqk', weights, v[:, :, :seen]).reshape(B, G, H // G, chunk, K))
    out = jnp.concatenate(out, axis=3) if len(out) > 1 else out[0]
    return out.transpose(0, 3, 1, 2, 4).reshape(B, L, H, K)
