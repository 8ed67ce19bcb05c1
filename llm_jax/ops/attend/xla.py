"""Attention in plain XLA for whole rows: queries in slices, with a custom gradient.

Shapes: B rows, L queries, S key slots, H query heads, G key/value heads, R = H / G query heads
of a group, K width of keys, V width of values; l queries of a slice, s keys that they can see.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from llm_jax.ops.attend.scores import Operands, Scores, apply_softcap, mask_scores, matmul_groups

# Queries are processed in slices: under a causal mask the keys after a slice are never
# multiplied, which saves nearly half of the work. At most so many slices, of at least so
# many queries, since the program grows with each slice.
MAX_SLICES = 8
MIN_SLICE = 64


class _Masks(NamedTuple):
    """Visibility of keys, ALiBi slopes and the dropout key.

    Attributes:
      segments_BL: document of each token, or None.
      slots_BL: cache slot of each query, or None where slot = position in the row.
      slopes_1GR11: ALiBi slope of each query head, or None.
      key: random key of the dropout, or None.
    """

    segments_BL: jax.Array | None
    slots_BL: jax.Array | None
    slopes_1GR11: jax.Array | None
    key: jax.Array | None


# Kept of each slice: unnormalised weights [B, G, R, l, s], their sum and the sink's weight, both [B, G, R, l, 1].
_Slice = tuple[jax.Array, jax.Array, jax.Array | None]
# q, k, v, sinks, masks, output, slices
_Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array | None, _Masks, jax.Array, list[_Slice]]


def attend_rows(scores: Scores, operands: Operands) -> jax.Array:
    """Attention of local rows and heads, [B, L, H, V]; `scores.scale` is filled in.

    (B, G) come first, so that each product is one batched matrix product over contiguous slices.
    """
    q_BLHK, k_BSGK, v_BSGV, segments_BL, slots_BL, slopes_H, sinks_H, dropout_key = operands
    B, L, H, K = q_BLHK.shape
    G = k_BSGK.shape[2]
    q_BGRLK = (q_BLHK * scores.scale).reshape(B, L, G, H // G, K).transpose(0, 2, 3, 1, 4)
    k_BGSK, v_BGSV = k_BSGK.transpose(0, 2, 1, 3), v_BSGV.transpose(0, 2, 1, 3)
    by_head = lambda x_H: None if x_H is None else x_H.reshape(1, G, H // G, 1, 1)
    masks = _Masks(segments_BL, slots_BL, by_head(slopes_H), dropout_key)
    out_BGRLV = _softmax_attention(scores, q_BGRLK, k_BGSK, v_BGSV, by_head(sinks_H), masks)
    return out_BGRLV.transpose(0, 3, 1, 2, 4).reshape(B, L, H, v_BSGV.shape[-1])


# Softmax attention of one query with keys k_s, values v_s, dropout mask m_s (with 1 / (1 - rate)) and a sink c:
#   a_s = q·k_s,  z_s = softcap(a_s) - ALiBi or MASKED,  t = max(max_s z_s, c)
#   e_s = exp(z_s - t),  E = Σ_s e_s + exp(c - t),  o = Σ_s m_s e_s v_s / E
#
# Backward, with p_s = e_s / E and d = do·o (FlashAttention, Dao et al. 2022, arXiv:2205.14135, §B.4):
#   dv_s = m_s p_s do
#   dz_s = p_s (m_s do·v_s - d),  da_s = dz_s (1 - (softcap(a_s) / cap)²),  dc = -exp(c - t) / E · d
#   dq = Σ_s da_s k_s,  dk_s = da_s q
# E divides `do` once below, instead of each e_s.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _softmax_attention(
    options: Scores,
    q_BGRLK: jax.Array,
    k_BGSK: jax.Array,
    v_BGSV: jax.Array,
    sinks_1GR11: jax.Array | None,
    masks: _Masks,
) -> jax.Array:
    """Attention [B, G, R, L, V], one slice of queries at a time, each against the keys that it can see."""
    return _attention_forward(options, q_BGRLK, k_BGSK, v_BGSV, sinks_1GR11, masks)[0]


def _attention_forward(
    options: Scores,
    q_BGRLK: jax.Array,
    k_BGSK: jax.Array,
    v_BGSV: jax.Array,
    sinks_1GR11: jax.Array | None,
    masks: _Masks,
) -> tuple[jax.Array, _Residuals]:
    outs, saved = [], []
    for rows, seen in _slices(q_BGRLK.shape[3], k_BGSK.shape[2], options.window, masks.slots_BL):
        dots_BGRls = matmul_groups('xk,sk->xs', q_BGRLK[:, :, :, rows], k_BGSK[:, :, seen])
        scores_BGRls = _mask_slice(options, apply_softcap(options, dots_BGRls), rows, seen, masks)
        max_BGRl1 = scores_BGRls.max(-1, keepdims=True)
        max_BGRl1 = max_BGRl1 if sinks_1GR11 is None else jnp.maximum(max_BGRl1, sinks_1GR11)
        # Unnormalised: dividing the output by the sum is less work than dividing the weights.
        weights_BGRls = jnp.exp(scores_BGRls - max_BGRl1)
        sum_BGRl1 = weights_BGRls.sum(-1, keepdims=True)
        sink_BGRl1 = None if sinks_1GR11 is None else jnp.exp(sinks_1GR11 - max_BGRl1)
        sum_BGRl1 = sum_BGRl1 if sink_BGRl1 is None else sum_BGRl1 + sink_BGRl1
        keep_BGRls = _dropout_mask(options.dropout, masks.key, rows, weights_BGRls.shape)
        kept_BGRls = (weights_BGRls * keep_BGRls).astype(v_BGSV.dtype)
        out_BGRlV = matmul_groups('xs,sk->xk', kept_BGRls, v_BGSV[:, :, seen]) / sum_BGRl1
        outs.append(out_BGRlV.astype(q_BGRLK.dtype))
        saved.append((weights_BGRls.astype(v_BGSV.dtype), sum_BGRl1, sink_BGRl1))
    out_BGRLV = jnp.concatenate(outs, axis=3)
    return out_BGRLV, (q_BGRLK, k_BGSK, v_BGSV, sinks_1GR11, masks, out_BGRLV, saved)


def _attention_backward(
    options: Scores, residuals: _Residuals, d_out_BGRLV: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None, None]:
    """Gradients of q, k, v and sinks by the equations above; the weights are those of the forward pass."""
    q_BGRLK, k_BGSK, v_BGSV, sinks_1GR11, masks, out_BGRLV, saved = residuals
    d_q, d_k_BGSK, d_v_BGSV, d_sinks_1GR11 = [], 0.0, 0.0, 0.0
    slices = _slices(q_BGRLK.shape[3], k_BGSK.shape[2], options.window, masks.slots_BL)
    for (rows, seen), (weights_BGRls, sum_BGRl1, sink_BGRl1) in zip(slices, saved, strict=True):
        unseen = ((0, 0), (0, 0), (seen.start, k_BGSK.shape[2] - seen.stop), (0, 0))
        keep_BGRls = _dropout_mask(options.dropout, masks.key, rows, weights_BGRls.shape)
        d_o_BGRlV = d_out_BGRLV[:, :, :, rows] / sum_BGRl1
        dot_BGRl1 = jnp.sum(d_o_BGRlV * out_BGRLV[:, :, :, rows], axis=-1, keepdims=True)
        d_o_BGRlV = d_o_BGRlV.astype(v_BGSV.dtype)
        d_weights_BGRls = matmul_groups('xk,sk->xs', d_o_BGRlV, v_BGSV[:, :, seen]) * keep_BGRls
        d_scores_BGRls = weights_BGRls * (d_weights_BGRls - dot_BGRl1)
        if sink_BGRl1 is not None:
            d_sinks_1GR11 -= jnp.sum(sink_BGRl1 * dot_BGRl1, axis=(0, 3), keepdims=True)
        if options.softcap:
            dots_BGRls = matmul_groups('xk,sk->xs', q_BGRLK[:, :, :, rows], k_BGSK[:, :, seen])
            capped_BGRls = apply_softcap(options, dots_BGRls)
            d_scores_BGRls *= 1 - jnp.square(capped_BGRls / options.softcap)
        d_scores_BGRls = d_scores_BGRls.astype(q_BGRLK.dtype)
        d_q.append(matmul_groups('xs,sk->xk', d_scores_BGRls, k_BGSK[:, :, seen]).astype(q_BGRLK.dtype))
        d_k_BGSK += jnp.pad(matmul_groups('xs,xk->sk', d_scores_BGRls, q_BGRLK[:, :, :, rows]), unseen)
        kept_BGRls = (weights_BGRls * keep_BGRls).astype(v_BGSV.dtype)
        d_v_BGSV += jnp.pad(matmul_groups('xs,xk->sk', kept_BGRls, d_o_BGRlV), unseen)
    d_sinks_1GR11 = None if sinks_1GR11 is None else d_sinks_1GR11.astype(sinks_1GR11.dtype)
    d_q_BGRLK = jnp.concatenate(d_q, axis=3)
    return d_q_BGRLK, d_k_BGSK.astype(k_BGSK.dtype), d_v_BGSV.astype(v_BGSV.dtype), d_sinks_1GR11, None


_softmax_attention.defvjp(_attention_forward, _attention_backward)


def _slices(n_queries: int, n_slots: int, window: int, slots_BL: jax.Array | None) -> list[tuple[slice, slice]]:
    """(queries, visible keys) of each slice; all keys where slots are given, whose values only the device has."""
    size = max(MIN_SLICE, -(-n_queries // MAX_SLICES))
    slices = []
    for start in range(0, n_queries, size):
        stop = min(start + size, n_queries)
        first = max(0, start - window + 1) if window else 0
        slices.append((slice(start, stop), slice(0, n_slots) if slots_BL is not None else slice(first, stop)))
    return slices


def _mask_slice(options: Scores, scores_BGRls: jax.Array, rows: slice, seen: slice, masks: _Masks) -> jax.Array:
    """`mask_scores` for the queries `rows` and the keys `seen`."""
    slots_Bl = jnp.arange(rows.start, rows.stop)[None] if masks.slots_BL is None else masks.slots_BL[:, rows]
    distance_Bls = slots_Bl[:, :, None] - jnp.arange(seen.start, seen.stop)
    segments_BL = masks.segments_BL
    same_Bls = None if segments_BL is None else segments_BL[:, rows, None] == segments_BL[:, None, seen]
    return mask_scores(options, scores_BGRls, distance_Bls, same_Bls, masks.slopes_1GR11)


def _dropout_mask(rate: float, key: jax.Array | None, rows: slice, shape: tuple[int, ...]) -> jax.Array | float:
    """Factor of a slice's weights, 0 or 1 / (1 - rate); the same in both passes, being drawn from the same key."""
    if not rate:
        return 1.0
    return jax.random.bernoulli(jax.random.fold_in(key, rows.start), 1 - rate, shape) / (1 - rate)
