"""Attention in plain XLA where a row is split over devices: block by block, with a running softmax.

Device i of c holds chunks i and 2c - 1 - i of each row (see `zigzag`). Which blocks of
queries meet which blocks of keys is a table, made on the host: only those that a causal
mask and a window leave anything of, and equally many on each device. Scores of one pair
of blocks are in memory at a time (FlashAttention: Dao et al. 2022, arXiv:2205.14135).

'all_gather' gives every device all keys and values of its rows: one collective, and
little memory where there are few key/value heads. 'ring' passes them around (Liu et al.
2023, arXiv:2310.01889): a device never holds more than two parts of them, and each
transfer can hide behind the products of the part that is there.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.ops.attend.scores import MASKED, Scores, capped, masked, matmul

# Most queries, and keys, of a block.
MAX_BLOCK = 512


class Split(NamedTuple):
    """How the rows are split.

    Attributes:
      axes: mesh axes that split the length.
      parts: c, over how many devices.
      kind: 'all_gather' or 'ring'.
    """

    axes: tuple[str, ...]
    parts: int
    kind: str


class Step(NamedTuple):
    """Pairs of blocks that are worked on while the keys of another device, or all keys, are here.

    Attributes:
      shift: the keys are those of the device so many places before this one.
      visits: int32[c, T, 4], for each device: block of queries here, block of keys here,
        and the places of both in the text; -1 for nothing.
    """

    shift: int
    visits: np.ndarray


def schedule(split: Split, chunk: int, size: int, window: int) -> list[Step]:
    """What each device does, step by step.

    Args:
      split: how rows are split.
      chunk: tokens of a chunk; two are on each device.
      size: tokens of a block; divides chunk.
      window: of the model; 0 for none.
    """
    c, m = split.parts, chunk // size
    held = [[*range(i * m, (i + 1) * m), *range((2 * c - 1 - i) * m, (2 * c - i) * m)] for i in range(c)]
    sees = lambda q, k: k <= q and not (window and q > k and (q - k - 1) * size + 1 >= window)
    steps = []
    for shift in range(c) if split.kind == 'ring' else [0]:
        visits = []
        for i in range(c):
            keys = held[(i - shift) % c] if split.kind == 'ring' else range(2 * c * m)
            visits.append([
                (at, here, q, k) for at, q in enumerate(held[i]) for here, k in enumerate(keys) if sees(q, k)
            ])  # fmt: skip
        most = max(map(len, visits))
        if most:
            filled = [v + [(-1, -1, -1, -1)] * (most - len(v)) for v in visits]
            steps.append(Step(shift, np.asarray(filled, np.int32)))
    return steps


class _Masks(NamedTuple):
    segments: jax.Array | None  # [B, L], in the order of the text
    slopes: jax.Array | None  # [1, G, R, 1, 1]
    key: jax.Array | None


class _Options(NamedTuple):
    scores: Scores
    split: Split
    size: int


def attend_shared(scores, split, q_BLHK, k_BLGK, v_BLGK, segments_BL, slots_BL, slopes_H, sinks_H, dropout_key):
    """Attention of this device's part of each row, within `shard_map`; arguments as of `attend`.

    Raises:
      ValueError: slots are given, which only decoding has; it has whole rows on a device.
    """
    if slots_BL is not None:
        raise ValueError('a cache needs whole rows on each device: see mesh.whole_rows')
    B, L, H, K = q_BLHK.shape
    G, V, chunk = k_BLGK.shape[2], v_BLGK.shape[-1], L // 2
    size = max(n for n in range(1, min(chunk, MAX_BLOCK) + 1) if chunk % n == 0)
    blocks = lambda x: x.transpose(0, 2, 1, 3).reshape(B, x.shape[2], -1, size, x.shape[-1]).transpose(2, 0, 1, 3, 4)
    q = (q_BLHK * scores.scale).reshape(B, L, G, H // G, K).transpose(0, 2, 3, 1, 4)
    q_NBGRlK = q.reshape(B, G, H // G, -1, size, K).transpose(3, 0, 1, 2, 4, 5)
    kv_NBGsX = blocks(jnp.concatenate([k_BLGK, v_BLGK], -1))
    if split.kind == 'all_gather':
        kv_NBGsX = _gather(split, kv_NBGsX)
    by_head = lambda x: None if x is None else x.reshape(1, G, H // G, 1, 1)
    masks = _Masks(segments_BL, by_head(slopes_H), dropout_key)
    out_NBGRlV = _attention(_Options(scores, split, size), q_NBGRlK, kv_NBGsX, by_head(sinks_H), masks)
    return out_NBGRlV.transpose(1, 0, 4, 2, 3, 5).reshape(B, L, H, V)


def _gather(split, x_N):
    """This device's blocks [N, ...] -> all blocks of the row, in the order of the text."""
    x_cNm = jax.lax.all_gather(x_N, split.axes)
    x_c2m = x_cNm.reshape(split.parts, 2, -1, *x_N.shape[1:])
    return jnp.concatenate([x_c2m[:, 0], x_c2m[::-1, 1]]).reshape(-1, *x_N.shape[1:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(options, q, kv, sinks, masks):
    return _forward(options, q, kv, sinks, masks)[0]


def _steps(options, kv):
    """(visits int32[T, 4] of this device, how far keys travel after them), step by step."""
    split = options.split
    per_device = (kv.shape[0] // split.parts if split.kind == 'all_gather' else kv.shape[0]) // 2
    steps = schedule(split, per_device * options.size, options.size, options.scores.window)
    index = jax.lax.axis_index(split.axes)
    following = [step.shift for step in steps[1:]] + [split.parts]
    for step, after in zip(steps, following, strict=True):
        visits = jnp.asarray(step.visits)[index]
        yield visits, bool((step.visits[..., 0] >= 0).all()), after - step.shift, after == split.parts


def _pass_on(options, x, by):
    """What the device `by` places before this one holds."""
    c = options.split.parts
    return jax.lax.ppermute(x, options.split.axes, [(i, (i + by) % c) for i in range(c)])


def _scan(work, carry, visits, full):
    """`carry = work(carry, visit)` for each visit; where devices differ in how many there are, some are nothing."""

    def visit(carry, row):
        if full:
            return work(carry, row), None
        return jax.lax.cond(row[0] >= 0, lambda: work(carry, row), lambda: carry), None

    return jax.lax.scan(visit, carry, visits)[0]


def _block_scores(options, masks, q_block, k_block, row):
    """(scores masked, scores capped), both [B, G, R, l, s]."""
    size = options.size
    cap = capped(options.scores, matmul('xk,sk->xs', q_block, k_block))
    slots = jnp.arange(size)
    distance_1ls = ((row[2] - row[3]) * size + slots[:, None] - slots)[None]
    same = None
    if masks.segments is not None:
        at = lambda n: jax.lax.dynamic_slice_in_dim(masks.segments, n * size, size, axis=1)
        same = at(row[2])[:, :, None] == at(row[3])[:, None]
    return masked(options.scores, cap, distance_1ls, same, masks.slopes), cap


def _keep(options, masks, row, n_blocks, shape):
    """What dropout multiplies the weights of a pair of blocks by; the same in both passes."""
    rate = options.scores.dropout
    if not rate:
        return 1.0
    key = jax.random.fold_in(masks.key, row[2] * n_blocks + row[3])
    return jax.random.bernoulli(key, 1 - rate, shape) / (1 - rate)


def _forward(options, q, kv, sinks, masks):
    K, n_blocks, whole = q.shape[-1], q.shape[0] * options.split.parts, kv
    like = q[..., :1].astype(jnp.float32) * 0  # zeros that differ between devices wherever queries do
    top = like + MASKED if sinks is None else like + sinks
    total = like if sinks is None else like + 1
    out = jnp.broadcast_to(like, (*q.shape[:-1], kv.shape[-1] - K))

    def work(state, row, kv):
        out, top, total = state
        old_out, old_top, old_total = (x[row[0]] for x in state)
        kv_block = kv[row[1]]
        scores, _ = _block_scores(options, masks, q[row[0]], kv_block[..., :K], row)
        new_top = jnp.maximum(old_top, scores.max(-1, keepdims=True))
        shrink, weights = jnp.exp(old_top - new_top), jnp.exp(scores - new_top)
        kept = (weights * _keep(options, masks, row, n_blocks, weights.shape)).astype(kv.dtype)
        new_out = old_out * shrink + matmul('xs,sk->xk', kept, kv_block[..., K:])
        new_total = old_total * shrink + weights.sum(-1, keepdims=True)
        return out.at[row[0]].set(new_out), top.at[row[0]].set(new_top), total.at[row[0]].set(new_total)

    state = out, top, total
    for visits, full, by, last in _steps(options, kv):
        # Sent before it is worked on, so that the transfer can hide behind the work.
        following = kv if last else _pass_on(options, kv, by)
        state = _scan(functools.partial(work, kv=kv), state, visits, full)
        kv = following
    out, top, total = state
    out = (out / total).astype(q.dtype)
    return out, (q, whole, sinks, masks, out, top + jnp.log(total))


def _backward(options, residuals, d_out):
    """Weights are made again from the scores and the logarithm of their sum; nothing of them was kept."""
    q, kv, sinks, masks, out, log_sum = residuals
    K, n_blocks = q.shape[-1], q.shape[0] * options.split.parts
    d_out = d_out.astype(jnp.float32)
    dot = jnp.sum(d_out * out, axis=-1, keepdims=True)
    d_out = d_out.astype(kv.dtype)

    def work(state, row, kv):
        d_q, d_kv = state
        kv_block, d_o, q_block = kv[row[1]], d_out[row[0]], q[row[0]]
        k_block, v_block = kv_block[..., :K], kv_block[..., K:]
        scores, cap = _block_scores(options, masks, q_block, k_block, row)
        weights = jnp.exp(scores - log_sum[row[0]])
        keep = _keep(options, masks, row, n_blocks, weights.shape)
        d_scores = weights * (matmul('xk,sk->xs', d_o, v_block) * keep - dot[row[0]])
        if options.scores.softcap:
            d_scores *= 1 - jnp.square(cap / options.scores.softcap)
        d_scores = d_scores.astype(q.dtype)
        d_k = matmul('xs,xk->sk', d_scores, q_block)
        d_v = matmul('xs,xk->sk', (weights * keep).astype(kv.dtype), d_o)
        d_q = d_q.at[row[0]].add(matmul('xs,sk->xk', d_scores, k_block))
        return d_q, d_kv.at[row[1]].add(jnp.concatenate([d_k, d_v], -1))

    d_q, d_kv, whole = q.astype(jnp.float32) * 0, kv.astype(jnp.float32) * 0, kv
    for visits, full, by, last in _steps(options, kv):
        following = kv if last else _pass_on(options, kv, by)
        d_q, d_kv = _scan(functools.partial(work, kv=kv), (d_q, d_kv), visits, full)
        if options.split.kind == 'ring' and by % options.split.parts:  # gradients travel with their keys, and home
            d_kv = _pass_on(options, d_kv, by)
        kv = following
    d_sinks = None
    if sinks is not None:
        sunk = jnp.exp(sinks - log_sum)
        d_sinks = -jnp.sum(sunk * dot, axis=(0, 1, 4), keepdims=True)[0].astype(sinks.dtype)
    return d_q.astype(q.dtype), d_kv.astype(whole.dtype), d_sinks, None


_attention.defvjp(_forward, _backward)
