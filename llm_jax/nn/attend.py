"""Softmax attention itself: queries, keys and values in, weighted values out.

The one place that knows kernels. Which pairs may attend is described (causal by slot,
within a window, within a segment), not given as a matrix, so that a kernel can skip
what is masked.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from llm_jax import mesh

# Finite, so that a row with nothing to attend to gives a mean and not NaN.
MASKED = -1e30
# Queries are taken in slices: with causal masking the keys after a slice are never
# multiplied, which saves nearly half of the work. At most so many slices, of at least
# so many queries: each is a piece of the program.
MAX_SLICES = 8
MIN_SLICE = 64


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


def attend(
    q_BLHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    *,
    rules: tuple,
    scores: Scores = PLAIN,
    segments_BL: jax.Array | None = None,
    slots_BL: jax.Array | None = None,
    slopes_H: np.ndarray | None = None,
    sinks_H: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Causal attention; softmax in float32.

    Args:
      q_BLHK: queries; head h reads key/value head h // (H / G).
      k_BSGK: keys of S slots and G <= H heads.
      v_BSGK: values, likewise; their width may differ from that of the keys.
      rules: logical-axis table, for the mesh.
      scores: scale, soft-cap, window, dropout.
      segments_BL: document of each token; attention stays within it. Needs S == L.
      slots_BL: slot of each query, for a cache: it sees slots up to and including its
        own. None means that queries and keys are the same tokens (S == L).
      slopes_H: what a score loses per slot of distance (ALiBi); constants.
      sinks_H: a score of each head that competes with the keys' and has no value
        (Xiao et al. 2023, arXiv:2309.17453; learned, as in gpt-oss).
      dropout_key: needed if `scores.dropout` is not 0.

    Returns:
      [B, L, H, width of v] in the dtype of q.
    """
    H = q_BLHK.shape[2]
    slopes_H = None if slopes_H is None else jnp.asarray(slopes_H)
    dropout_key = dropout_key if scores.dropout else None
    core = functools.partial(_attend_xla, scores._replace(scale=scores.scale or q_BLHK.shape[-1] ** -0.5))
    if not jax.sharding.get_abstract_mesh().empty:
        # Heads and rows are independent, so each device attends to its own; what a
        # kernel sees is plain local arrays.
        table = mesh.current(rules)
        if table['kv_heads'] != table['heads'] and max(_parts(table['heads']), _parts(table['kv_heads'])) > 1:
            # A device has some of the query heads but not just their key/value heads
            # (e.g. one of those, or fewer than devices): give each query head its own.
            k_BSGK, v_BSGK = (_repeat_heads(x, H, table) for x in (k_BSGK, v_BSGK))
            table['kv_heads'] = table['heads']
        heads = lambda name: P(table['batch'], None, table[name], None)
        rows = lambda x: None if x is None else P(table['batch'], None)
        each = lambda x: None if x is None else P(table['heads'])
        if slopes_H is not None:
            slopes_H = jax.sharding.reshard(slopes_H, each(slopes_H))
        core = _per_device_key(core, table) if scores.dropout else core
        if sinks_H is not None:
            core = _own_sinks(core, mesh.mesh_axes(table['batch']))
        core = jax.shard_map(
            core,
            in_specs=(heads('heads'), heads('kv_heads'), heads('kv_heads'), rows(segments_BL), rows(slots_BL),
                      each(slopes_H), each(sinks_H), P()),
            out_specs=heads('heads'),
        )  # fmt: skip
    return core(q_BLHK, k_BSGK, v_BSGK, segments_BL, slots_BL, slopes_H, sinks_H, dropout_key)


def _parts(entry: str | tuple[str, ...] | None) -> int:
    """Into how many pieces the current mesh splits what has this entry of the rules."""
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    return int(np.prod([sizes[axis] for axis in mesh.mesh_axes(entry)]))


def _repeat_heads(x_BSGK: jax.Array, n_heads: int, table: dict) -> jax.Array:
    """[B, S, G, K] -> [B, S, H, K], split as the query heads are."""
    B, S, G, K = x_BSGK.shape
    x_BSGK = jax.sharding.reshard(x_BSGK, P(table['batch'], None, None, None))
    repeated = jnp.broadcast_to(x_BSGK[:, :, :, None], (B, S, G, n_heads // G, K))
    whole = repeated.reshape(B, S, n_heads, K)
    return jax.sharding.reshard(whole, P(table['batch'], None, table['heads'], None))


def _per_device_key(core, table: dict):
    axes = [a for name in ('batch', 'heads') for a in mesh.mesh_axes(table[name])]

    def with_own_key(*args):
        *arrays, key = args
        for axis in axes:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis))
        return core(*arrays, key)

    return with_own_key


def _own_sinks(core, batch_axes: tuple[str, ...]):
    """Sinks are the same for all rows: cast to differ between devices, their gradients are summed over these."""

    def with_own_sinks(*args):
        *arrays, sinks, key = args
        return core(*arrays, jax.lax.pcast(sinks, batch_axes, to='varying'), key)

    return with_own_sinks


class _Masks(NamedTuple):
    """What says which slots a query sees, and how their distance counts. B rows, or heads [1, G, R, 1, 1]."""

    segments: jax.Array | None
    slots: jax.Array | None
    slopes: jax.Array | None
    key: jax.Array | None


def _attend_xla(scores, q_BLHK, k_BSGK, v_BSGK, segments_BL, slots_BL, slopes_H, sinks_H, dropout_key):
    """(B, G) lead, so that each product is one batched matrix product over contiguous slices."""
    B, L, H, K = q_BLHK.shape
    G = k_BSGK.shape[2]
    q_BGRLK = (q_BLHK * scores.scale).reshape(B, L, G, H // G, K).transpose(0, 2, 3, 1, 4)  # R = H / G heads of a group
    k_BGSK, v_BGSK = k_BSGK.transpose(0, 2, 1, 3), v_BSGK.transpose(0, 2, 1, 3)
    by_head = lambda x: None if x is None else x.reshape(1, G, H // G, 1, 1)
    masks = _Masks(segments_BL, slots_BL, by_head(slopes_H), dropout_key)
    out_BGRLK = _softmax_attention(scores, q_BGRLK, k_BGSK, v_BGSK, by_head(sinks_H), masks)
    return out_BGRLK.transpose(0, 3, 1, 2, 4).reshape(B, L, H, v_BSGK.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _softmax_attention(scores, q, k, v, sinks, masks):
    """Attention of queries [B, G, R, L, K], one slice after another, each against the keys it can see."""
    return _attention_forward(scores, q, k, v, sinks, masks)[0]


def _attention_forward(options, q, k, v, sinks, masks):
    outs, saved = [], []
    for rows, seen in _slices(q.shape[3], k.shape[2], options.window, masks.slots):
        scores = _capped(options, _matmul('xk,sk->xs', q[:, :, :, rows], k[:, :, seen]))
        scores = _masked(options, scores, rows, seen, masks)
        top = scores.max(-1, keepdims=True)
        top = top if sinks is None else jnp.maximum(top, sinks)
        # Not divided by their sum: the output is, which is smaller.
        weights = jnp.exp(scores - top)
        total = weights.sum(-1, keepdims=True)
        sunk = None if sinks is None else jnp.exp(sinks - top)
        total = total if sunk is None else total + sunk
        kept = (weights * _keep(options.dropout, masks.key, rows, weights.shape)).astype(v.dtype)
        outs.append((_matmul('xs,sk->xk', kept, v[:, :, seen]) / total).astype(q.dtype))
        saved.append((weights.astype(v.dtype), total, sunk))
    out = jnp.concatenate(outs, axis=3)
    return out, (q, k, v, sinks, masks, out, saved)


def _attention_backward(options, residuals, d_out):
    """Gradients from the weights of the forward pass (as in Dao et al. 2022, arXiv:2205.14135, §B.4)."""
    q, k, v, sinks, masks, out, saved = residuals
    d_q, d_k, d_v, d_sinks = [], 0.0, 0.0, 0.0
    slices = _slices(q.shape[3], k.shape[2], options.window, masks.slots)
    for (rows, seen), (weights, total, sunk) in zip(slices, saved, strict=True):
        unseen = ((0, 0), (0, 0), (seen.start, k.shape[2] - seen.stop), (0, 0))
        keep = _keep(options.dropout, masks.key, rows, weights.shape)
        d_o = d_out[:, :, :, rows] / total
        dot = jnp.sum(d_o * out[:, :, :, rows], axis=-1, keepdims=True)
        d_o = d_o.astype(v.dtype)
        d_scores = weights * (_matmul('xk,sk->xs', d_o, v[:, :, seen]) * keep - dot)
        if sunk is not None:
            d_sinks -= jnp.sum(sunk * dot, axis=(0, 3), keepdims=True)
        if options.softcap:
            capped = _capped(options, _matmul('xk,sk->xs', q[:, :, :, rows], k[:, :, seen]))
            d_scores *= 1 - jnp.square(capped / options.softcap)
        d_scores = d_scores.astype(q.dtype)
        d_q.append(_matmul('xs,sk->xk', d_scores, k[:, :, seen]).astype(q.dtype))
        d_k += jnp.pad(_matmul('xs,xk->sk', d_scores, q[:, :, :, rows]), unseen)
        d_v += jnp.pad(_matmul('xs,xk->sk', (weights * keep).astype(v.dtype), d_o), unseen)
    d_sinks = None if sinks is None else d_sinks.astype(sinks.dtype)
    return jnp.concatenate(d_q, axis=3), d_k.astype(k.dtype), d_v.astype(v.dtype), d_sinks, None


_softmax_attention.defvjp(_attention_forward, _attention_backward)


def _slices(n_queries: int, n_slots: int, window: int, slots: jax.Array | None) -> list[tuple[slice, slice]]:
    """Pieces of the queries, and the keys that each can see: with a cache, that is not known."""
    size = max(MIN_SLICE, -(-n_queries // MAX_SLICES))
    pieces = []
    for start in range(0, n_queries, size):
        stop = min(start + size, n_queries)
        first = max(0, start - window + 1) if window else 0
        pieces.append((slice(start, stop), slice(0, n_slots) if slots is not None else slice(first, stop)))
    return pieces


def _capped(options: Scores, scores: jax.Array) -> jax.Array:
    return options.softcap * jnp.tanh(scores / options.softcap) if options.softcap else scores


def _masked(options: Scores, scores: jax.Array, rows: slice, seen: slice, masks: _Masks) -> jax.Array:
    """Scores [B, G, R, l, s] with what distance takes off, and MASKED where a query may not look."""
    slots_Bl = jnp.arange(rows.start, rows.stop)[None] if masks.slots is None else masks.slots[:, rows]
    distance_Bls = slots_Bl[:, :, None] - jnp.arange(seen.start, seen.stop)
    mask_Bls = distance_Bls >= 0
    if options.window:
        mask_Bls &= distance_Bls < options.window
    if masks.segments is not None:
        mask_Bls &= masks.segments[:, rows, None] == masks.segments[:, None, seen]
    if masks.slopes is not None:
        scores = scores - masks.slopes * distance_Bls[:, None, None]
    return jnp.where(mask_Bls[:, None, None], scores, MASKED)


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
