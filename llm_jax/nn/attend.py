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
# Queries are taken in slices: with causal masking the keys after a slice are never
# multiplied, which saves nearly half of the work. At most so many slices, of at least
# so many queries: each is a piece of the program.
MAX_SLICES = 8
MIN_SLICE = 64


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
    """(B, G) lead, so that each product is one batched matrix product over contiguous slices."""
    B, L, H, K = q_BLHK.shape
    G = k_BSGK.shape[2]
    q_BGRLK = (q_BLHK * K**-0.5).reshape(B, L, G, H // G, K).transpose(0, 2, 3, 1, 4)  # R = H / G heads of a group
    k_BGSK, v_BGSK = k_BSGK.transpose(0, 2, 1, 3), v_BSGK.transpose(0, 2, 1, 3)
    out_BGRLK = _softmax_attention(dropout, q_BGRLK, k_BGSK, v_BGSK, segments_BL, slots_BL, dropout_key)
    return out_BGRLK.transpose(0, 3, 1, 2, 4).reshape(B, L, H, K)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _softmax_attention(dropout, q, k, v, segments, slots, key):
    """Attention of queries [B, G, R, L, K], one slice after another, each against the keys it can see."""
    return _attention_forward(dropout, q, k, v, segments, slots, key)[0]


def _attention_forward(dropout, q, k, v, segments, slots, key):
    outs, saved = [], []
    for rows, seen in _slices(q.shape[3], k.shape[2], slots):
        scores = _matmul('xk,sk->xs', q[:, :, :, rows], k[:, :, :seen])
        scores = jnp.where(_mask(rows, seen, segments, slots), scores, MASKED)
        # Not divided by their sum: the output is, which is smaller.
        weights = jnp.exp(scores - scores.max(-1, keepdims=True))
        total = weights.sum(-1, keepdims=True)
        kept = (weights * _keep(dropout, key, rows, weights.shape)).astype(v.dtype)
        outs.append((_matmul('xs,sk->xk', kept, v[:, :, :seen]) / total).astype(q.dtype))
        saved.append((weights.astype(v.dtype), total))
    out = jnp.concatenate(outs, axis=3)
    return out, (q, k, v, segments, slots, key, out, saved)


def _attention_backward(dropout, residuals, d_out):
    """Gradients from the weights of the forward pass (as in Dao et al. 2022, arXiv:2205.14135, §B.4)."""
    q, k, v, segments, slots, key, out, saved = residuals
    unseen = lambda seen: ((0, 0), (0, 0), (0, k.shape[2] - seen), (0, 0))
    d_q, d_k, d_v = [], 0.0, 0.0
    for (rows, seen), (weights, total) in zip(_slices(q.shape[3], k.shape[2], slots), saved, strict=True):
        keep = _keep(dropout, key, rows, weights.shape)
        d_o = d_out[:, :, :, rows] / total
        dot = jnp.sum(d_o * out[:, :, :, rows], axis=-1, keepdims=True)
        d_o = d_o.astype(v.dtype)
        d_weights = _matmul('xk,sk->xs', d_o, v[:, :, :seen]) * keep
        d_scores = (weights * (d_weights - dot)).astype(q.dtype)
        d_q.append(_matmul('xs,sk->xk', d_scores, k[:, :, :seen]).astype(q.dtype))
        d_k += jnp.pad(_matmul('xs,xk->sk', d_scores, q[:, :, :, rows]), unseen(seen))
        d_v += jnp.pad(_matmul('xs,xk->sk', (weights * keep).astype(v.dtype), d_o), unseen(seen))
    return jnp.concatenate(d_q, axis=3), d_k.astype(k.dtype), d_v.astype(v.dtype), None, None, None


_softmax_attention.defvjp(_attention_forward, _attention_backward)


def _slices(n_queries: int, n_slots: int, slots: jax.Array | None) -> list[tuple[slice, int]]:
    """Pieces of the queries, and how many of the keys each can see: with a cache, that is not known."""
    size = max(MIN_SLICE, -(-n_queries // MAX_SLICES))
    stops = [min(start + size, n_queries) for start in range(0, n_queries, size)]
    return [(slice(i * size, stop), n_slots if slots is not None else stop) for i, stop in enumerate(stops)]


def _mask(rows: slice, seen: int, segments: jax.Array | None, slots: jax.Array | None) -> jax.Array:
    """Which of the first `seen` slots each query of a slice may read, [B or 1, 1, 1, l, s]."""
    slots_Bl = jnp.arange(rows.start, rows.stop)[None] if slots is None else slots[:, rows]
    mask_Bls = slots_Bl[:, :, None] >= jnp.arange(seen)
    if segments is not None:
        mask_Bls &= segments[:, rows, None] == segments[:, None, :seen]
    return mask_Bls[:, None, None]


def _keep(rate: float, key: jax.Array | None, rows: slice, shape: tuple[int, ...]) -> jax.Array | float:
    """What dropout multiplies the weights of a slice by; the same in both passes."""
    if not rate:
        return 1.0
    return jax.random.bernoulli(jax.random.fold_in(key, rows.start), 1 - rate, shape) / (1 - rate)


def _matmul(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """A product for each (B, G), float32; the heads of a group stand above one another as 'x'."""
    heads = lambda x, letters: x.reshape(*x.shape[:2], -1, x.shape[-1]) if 'x' in letters else x
    inputs, output = equation.split('->')
    left, right = inputs.split(',')
    both = f'bg{left},bg{right}->bg{output}'
    # XLA's CPU backend has no bfloat16 product into float32 with a transposed left side.
    out_type = jnp.float32 if 'x' in output else None
    y = jnp.einsum(both, heads(a, left), heads(b, right), preferred_element_type=out_type)
    return y.reshape(*a.shape[:4], y.shape[-1]) if 'x' in output else y.astype(jnp.float32)
