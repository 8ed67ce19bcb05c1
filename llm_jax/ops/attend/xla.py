"""Attention in plain XLA, whole rows on a device: one slice of queries after another, with its own gradient."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from llm_jax.ops.attend import scores as scores_lib
from llm_jax.ops.attend.scores import Scores, capped, matmul

# Queries are taken in slices: with causal masking the keys after a slice are never
# multiplied, which saves nearly half of the work. At most so many slices, of at least
# so many queries: each is a piece of the program.
MAX_SLICES = 8
MIN_SLICE = 64


class _Masks(NamedTuple):
    """What says which slots a query sees, and how their distance counts. B rows, or heads [1, G, R, 1, 1]."""

    segments: jax.Array | None
    slots: jax.Array | None
    slopes: jax.Array | None
    key: jax.Array | None


def attend_rows(scores, q_BLHK, k_BSGK, v_BSGK, segments_BL, slots_BL, slopes_H, sinks_H, dropout_key):
    """Attention of the rows and heads that are here, [B, L, H, K]; arguments as of `attend`, the scale given.

    (B, G) lead, so that each product is one batched matrix product over contiguous slices.
    """
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
        scores = capped(options, matmul('xk,sk->xs', q[:, :, :, rows], k[:, :, seen]))
        scores = _masked(options, scores, rows, seen, masks)
        top = scores.max(-1, keepdims=True)
        top = top if sinks is None else jnp.maximum(top, sinks)
        # Not divided by their sum: the output is, which is smaller.
        weights = jnp.exp(scores - top)
        total = weights.sum(-1, keepdims=True)
        sunk = None if sinks is None else jnp.exp(sinks - top)
        total = total if sunk is None else total + sunk
        kept = (weights * _keep(options.dropout, masks.key, rows, weights.shape)).astype(v.dtype)
        outs.append((matmul('xs,sk->xk', kept, v[:, :, seen]) / total).astype(q.dtype))
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
        d_scores = weights * (matmul('xk,sk->xs', d_o, v[:, :, seen]) * keep - dot)
        if sunk is not None:
            d_sinks -= jnp.sum(sunk * dot, axis=(0, 3), keepdims=True)
        if options.softcap:
            cap = capped(options, matmul('xk,sk->xs', q[:, :, :, rows], k[:, :, seen]))
            d_scores *= 1 - jnp.square(cap / options.softcap)
        d_scores = d_scores.astype(q.dtype)
        d_q.append(matmul('xs,sk->xk', d_scores, k[:, :, seen]).astype(q.dtype))
        d_k += jnp.pad(matmul('xs,xk->sk', d_scores, q[:, :, :, rows]), unseen)
        d_v += jnp.pad(matmul('xs,xk->sk', (weights * keep).astype(v.dtype), d_o), unseen)
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


def _masked(options: Scores, scores: jax.Array, rows: slice, seen: slice, masks: _Masks) -> jax.Array:
    slots_Bl = jnp.arange(rows.start, rows.stop)[None] if masks.slots is None else masks.slots[:, rows]
    distance_Bls = slots_Bl[:, :, None] - jnp.arange(seen.start, seen.stop)
    segments = masks.segments
    same_Bls = None if segments is None else segments[:, rows, None] == segments[:, None, seen]
    return scores_lib.masked(options, scores, distance_Bls, same_Bls, masks.slopes)


def _keep(rate: float, key: jax.Array | None, rows: slice, shape: tuple[int, ...]) -> jax.Array | float:
    """What dropout multiplies the weights of a slice by; the same in both passes."""
    if not rate:
        return 1.0
    return jax.random.bernoulli(jax.random.fold_in(key, rows.start), 1 - rate, shape) / (1 - rate)
