"""Attention in plain XLA for rows split over devices: block by block, with a running softmax.

Device i of c holds chunks i and 2c - 1 - i of each row (see `zigzag`). A table, made on the
host, lists which blocks of queries meet which blocks of keys: only the pairs that the causal
mask and the window leave something of, equally many on each device. The scores of one pair are
in memory at a time (FlashAttention: Dao et al. 2022, arXiv:2205.14135).

'all_gather' gathers all keys and values of a row on every device: one collective, and little
memory where there are few key/value heads. 'ring' passes them around the devices (Liu et al.
2023, arXiv:2310.01889): a device holds at most two shards of them, and each transfer overlaps
with the products of the shard before it.

Shapes: B rows, L tokens of a device's shard of a row, H query heads, G key/value heads,
R = H / G query heads of a group, K width of keys, V width of values; N blocks of l queries or
s keys (l = s = block size), T pairs of blocks.
"""

from collections.abc import Callable, Iterator
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.ops.attend.scores import MASKED, Operands, Scores, apply_softcap, mask_scores, matmul_groups

# Most queries, and most keys, of a block.
MAX_BLOCK = 512


class Split(NamedTuple):
    """Splitting of the rows over devices.

    Attributes:
      axes: mesh axes that split the length.
      parts: c, the number of devices that share a row.
      kind: 'all_gather' or 'ring'.
    """

    axes: tuple[str, ...]
    parts: int
    kind: str


class Step(NamedTuple):
    """Pairs of blocks to process with one shard of the keys, or with all keys if they are gathered.

    Attributes:
      shift: the keys are those of device i - shift (modulo c).
      visits: int32[c, T, 4], for each device: index of the local query block, index of the local
        key block, and the positions of both in the row, counted in blocks; -1 pads the list.
    """

    shift: int
    visits: np.ndarray


def schedule(split: Split, chunk: int, size: int, window: int) -> list[Step]:
    """Lists the pairs of blocks that each device processes, step by step.

    Args:
      split: how rows are split.
      chunk: tokens of a chunk; each device has two.
      size: tokens of a block; divides chunk.
      window: sliding window in tokens; 0 for none.
    """
    c, m = split.parts, chunk // size
    shards = [[*range(i * m, (i + 1) * m), *range((2 * c - 1 - i) * m, (2 * c - i) * m)] for i in range(c)]
    is_visible = lambda q, k: k <= q and not (window and q > k and (q - k - 1) * size + 1 >= window)
    steps = []
    for shift in range(c) if split.kind == 'ring' else [0]:
        visits = []
        for i in range(c):
            keys = shards[(i - shift) % c] if split.kind == 'ring' else range(2 * c * m)
            pairs = [(row, col, q, k) for row, q in enumerate(shards[i]) for col, k in enumerate(keys)]
            visits.append([pair for pair in pairs if is_visible(*pair[2:])])
        most = max(map(len, visits))
        if most:
            padded = [v + [(-1, -1, -1, -1)] * (most - len(v)) for v in visits]
            steps.append(Step(shift, np.asarray(padded, np.int32)))
    return steps


class _Masks(NamedTuple):
    """Segments, ALiBi slopes and the dropout key.

    Attributes:
      segments_BL: document of each token of the whole row, in text order, or None.
      slopes_1GR11: ALiBi slope of each query head, or None.
      key: random key of the dropout, or None.
    """

    segments_BL: jax.Array | None
    slopes_1GR11: jax.Array | None
    key: jax.Array | None


class _Options(NamedTuple):
    scores: Scores
    split: Split
    size: int


# q, kv, sinks, masks, out, logarithm of the softmax's denominator [N, B, G, R, l, 1]
_Residuals = tuple[jax.Array, jax.Array, jax.Array | None, _Masks, jax.Array, jax.Array]


def attend_shared(scores: Scores, split: Split, operands: Operands) -> jax.Array:
    """Attention of this device's shard of each row, [B, L, H, V], within `shard_map`; `scores.scale` is filled in.

    Raises:
      ValueError: slots are given; decoding with a cache has whole rows on each device.
    """
    q_BLHK, k_BLGK, v_BLGV, segments_BL, slots_BL, slopes_H, sinks_H, dropout_key = operands
    if slots_BL is not None:
        raise ValueError('a cache needs whole rows on each device: see mesh.whole_rows')
    B, L, H, K = q_BLHK.shape
    G, V, chunk = k_BLGK.shape[2], v_BLGV.shape[-1], L // 2
    size = max(n for n in range(1, min(chunk, MAX_BLOCK) + 1) if chunk % n == 0)
    q_BGRLK = (q_BLHK * scores.scale).reshape(B, L, G, H // G, K).transpose(0, 2, 3, 1, 4)
    q_NBGRlK = q_BGRLK.reshape(B, G, H // G, -1, size, K).transpose(3, 0, 1, 2, 4, 5)
    kv_BGLX = jnp.concatenate([k_BLGK, v_BLGV], -1).transpose(0, 2, 1, 3)  # X = K + V
    kv_NBGsX = kv_BGLX.reshape(B, G, -1, size, K + V).transpose(2, 0, 1, 3, 4)
    if split.kind == 'all_gather':
        kv_NBGsX = _gather_blocks(split, kv_NBGsX)
    by_head = lambda x_H: None if x_H is None else x_H.reshape(1, G, H // G, 1, 1)
    masks = _Masks(segments_BL, by_head(slopes_H), dropout_key)
    out_NBGRlV = _attention(_Options(scores, split, size), q_NBGRlK, kv_NBGsX, by_head(sinks_H), masks)
    return out_NBGRlV.transpose(1, 0, 4, 2, 3, 5).reshape(B, L, H, V)


def _gather_blocks(split: Split, x_NBGsX: jax.Array) -> jax.Array:
    """All-gathers the blocks of a row, [c N, B, G, s, X], in text order."""
    x_cNBGsX = jax.lax.all_gather(x_NBGsX, split.axes)
    x_c2mBGsX = x_cNBGsX.reshape(split.parts, 2, -1, *x_NBGsX.shape[1:])  # each device has m blocks of two chunks
    return jnp.concatenate([x_c2mBGsX[:, 0], x_c2mBGsX[::-1, 1]]).reshape(-1, *x_NBGsX.shape[1:])


# Running softmax of one query over blocks b of keys, with scores z_s (after soft-cap, ALiBi and masks), dropout mask
# m_s (with 1 / (1 - rate)) and a sink c. It starts from t = c, E = 1, o = 0 (t = MASKED, E = 0 without a sink), and
#   t' = max(t, max_{s in b} z_s)
#   E' = E exp(t - t') + Σ_{s in b} exp(z_s - t')
#   o' = o exp(t - t') + Σ_{s in b} m_s exp(z_s - t') v_s
# The result is o / E; only it and ℓ = t + log E are kept.
#
# Backward, with p_s = exp(z_s - ℓ), a_s = q·k_s and d = do·o (Dao et al. 2022, arXiv:2205.14135, §B.4):
#   dv_s = m_s p_s do
#   dz_s = p_s (m_s do·v_s - d),  da_s = dz_s (1 - (softcap(a_s) / cap)²),  dc = -exp(c - ℓ) d
#   dq = Σ_s da_s k_s,  dk_s = da_s q


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    options: _Options, q_NBGRlK: jax.Array, kv_NBGsX: jax.Array, sinks_1GR11: jax.Array | None, masks: _Masks
) -> jax.Array:
    """Attention [N, B, G, R, l, V] of the local query blocks; kv are keys and values along one dimension."""
    return _forward(options, q_NBGRlK, kv_NBGsX, sinks_1GR11, masks)[0]


def _steps(options: _Options, kv_NBGsX: jax.Array) -> Iterator[tuple[jax.Array, bool, int, bool]]:
    """Yields (visits, full, shift, last) for each step, as seen by this device.

    visits is int32[T, 4]; full means that no device has a padded visit, shift is how many devices further the keys
    travel after the step, and last marks the last step.
    """
    split = options.split
    n_local = kv_NBGsX.shape[0] // split.parts if split.kind == 'all_gather' else kv_NBGsX.shape[0]
    steps = schedule(split, n_local // 2 * options.size, options.size, options.scores.window)
    index = jax.lax.axis_index(split.axes)
    next_shifts = [step.shift for step in steps[1:]] + [split.parts]
    for step, next_shift in zip(steps, next_shifts, strict=True):
        visits = jnp.asarray(step.visits)[index]
        full = bool((step.visits[..., 0] >= 0).all())
        yield visits, full, next_shift - step.shift, next_shift == split.parts


def _shift(options: _Options, x: jax.Array, by: int) -> jax.Array:
    """Sends x to the device `by` places after this one, and receives that of the device `by` places before."""
    c = options.split.parts
    return jax.lax.ppermute(x, options.split.axes, [(i, (i + by) % c) for i in range(c)])


def _scan_visits(work: Callable[[Any, jax.Array], Any], carry: Any, visits: jax.Array, full: bool) -> Any:
    """`carry = work(carry, visit)` for each visit; padded visits (-1) leave the carry."""

    def body(carry: Any, visit: jax.Array) -> tuple[Any, None]:
        if full:
            return work(carry, visit), None
        return jax.lax.cond(visit[0] >= 0, lambda: work(carry, visit), lambda: carry), None

    return jax.lax.scan(body, carry, visits)[0]


def _block_scores(
    options: _Options, masks: _Masks, q_BGRlK: jax.Array, k_BGsK: jax.Array, visit: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(masked scores, scores after the soft-cap alone), both [B, G, R, l, s]."""
    size = options.size
    capped_BGRls = apply_softcap(options.scores, matmul_groups('xk,sk->xs', q_BGRlK, k_BGsK))
    slots = jnp.arange(size)
    distance_1ls = ((visit[2] - visit[3]) * size + slots[:, None] - slots)[None]
    same_Bls = None
    if masks.segments_BL is not None:
        take_block = lambda n: jax.lax.dynamic_slice_in_dim(masks.segments_BL, n * size, size, axis=1)
        same_Bls = take_block(visit[2])[:, :, None] == take_block(visit[3])[:, None]
    return mask_scores(options.scores, capped_BGRls, distance_1ls, same_Bls, masks.slopes_1GR11), capped_BGRls


def _dropout_mask(
    options: _Options, masks: _Masks, visit: jax.Array, n_blocks: int, shape: tuple[int, ...]
) -> jax.Array | float:
    """Factor of a block's weights, 0 or 1 / (1 - rate); the same in both passes, being drawn from the same key."""
    rate = options.scores.dropout
    if not rate:
        return 1.0
    key = jax.random.fold_in(masks.key, visit[2] * n_blocks + visit[3])
    return jax.random.bernoulli(key, 1 - rate, shape) / (1 - rate)


def _forward(
    options: _Options, q_NBGRlK: jax.Array, kv_NBGsX: jax.Array, sinks_1GR11: jax.Array | None, masks: _Masks
) -> tuple[jax.Array, _Residuals]:
    K, n_blocks, kv = q_NBGRlK.shape[-1], q_NBGRlK.shape[0] * options.split.parts, kv_NBGsX
    # Zeros made from q, so that the carry of the scan varies over the mesh axes over which q varies: shard_map's
    # varying-axes check requires that a carry has the same type before and after an iteration.
    zeros_NBGRl1 = q_NBGRlK[..., :1].astype(jnp.float32) * 0
    max_NBGRl1 = zeros_NBGRl1 + MASKED if sinks_1GR11 is None else zeros_NBGRl1 + sinks_1GR11
    sum_NBGRl1 = zeros_NBGRl1 if sinks_1GR11 is None else zeros_NBGRl1 + 1
    out_NBGRlV = jnp.broadcast_to(zeros_NBGRl1, (*q_NBGRlK.shape[:-1], kv.shape[-1] - K))

    def work(state: tuple, visit: jax.Array, kv_NBGsX: jax.Array) -> tuple:
        out_NBGRlV, max_NBGRl1, sum_NBGRl1 = state
        old_out_BGRlV, old_max_BGRl1, old_sum_BGRl1 = (x[visit[0]] for x in state)
        kv_BGsX = kv_NBGsX[visit[1]]
        scores_BGRls, _ = _block_scores(options, masks, q_NBGRlK[visit[0]], kv_BGsX[..., :K], visit)
        new_max_BGRl1 = jnp.maximum(old_max_BGRl1, scores_BGRls.max(-1, keepdims=True))
        shrink_BGRl1, weights_BGRls = jnp.exp(old_max_BGRl1 - new_max_BGRl1), jnp.exp(scores_BGRls - new_max_BGRl1)
        keep_BGRls = _dropout_mask(options, masks, visit, n_blocks, weights_BGRls.shape)
        kept_BGRls = (weights_BGRls * keep_BGRls).astype(kv.dtype)
        new_out_BGRlV = old_out_BGRlV * shrink_BGRl1 + matmul_groups('xs,sk->xk', kept_BGRls, kv_BGsX[..., K:])
        new_sum_BGRl1 = old_sum_BGRl1 * shrink_BGRl1 + weights_BGRls.sum(-1, keepdims=True)
        return (
            out_NBGRlV.at[visit[0]].set(new_out_BGRlV),
            max_NBGRl1.at[visit[0]].set(new_max_BGRl1),
            sum_NBGRl1.at[visit[0]].set(new_sum_BGRl1),
        )

    state = out_NBGRlV, max_NBGRl1, sum_NBGRl1
    for visits, full, shift, last in _steps(options, kv):
        # The transfer is issued before the work on what is here, so that the two can overlap.
        next_kv = kv if last else _shift(options, kv, shift)
        state = _scan_visits(functools.partial(work, kv_NBGsX=kv), state, visits, full)
        kv = next_kv
    out_NBGRlV, max_NBGRl1, sum_NBGRl1 = state
    out_NBGRlV = (out_NBGRlV / sum_NBGRl1).astype(q_NBGRlK.dtype)
    log_sum_NBGRl1 = max_NBGRl1 + jnp.log(sum_NBGRl1)
    return out_NBGRlV, (q_NBGRlK, kv_NBGsX, sinks_1GR11, masks, out_NBGRlV, log_sum_NBGRl1)


def _backward(
    options: _Options, residuals: _Residuals, d_out_NBGRlV: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array | None, None]:
    """Gradients of q, kv and sinks by the equations above; weights are recomputed from the scores and ℓ."""
    q_NBGRlK, kv_NBGsX, sinks_1GR11, masks, out_NBGRlV, log_sum_NBGRl1 = residuals
    K, n_blocks, kv = q_NBGRlK.shape[-1], q_NBGRlK.shape[0] * options.split.parts, kv_NBGsX
    d_out_NBGRlV = d_out_NBGRlV.astype(jnp.float32)
    dot_NBGRl1 = jnp.sum(d_out_NBGRlV * out_NBGRlV, axis=-1, keepdims=True)
    d_out_NBGRlV = d_out_NBGRlV.astype(kv.dtype)

    def work(state: tuple, visit: jax.Array, kv_NBGsX: jax.Array) -> tuple:
        d_q_NBGRlK, d_kv_NBGsX = state
        kv_BGsX, d_o_BGRlV, q_BGRlK = kv_NBGsX[visit[1]], d_out_NBGRlV[visit[0]], q_NBGRlK[visit[0]]
        k_BGsK, v_BGsV = kv_BGsX[..., :K], kv_BGsX[..., K:]
        scores_BGRls, capped_BGRls = _block_scores(options, masks, q_BGRlK, k_BGsK, visit)
        weights_BGRls = jnp.exp(scores_BGRls - log_sum_NBGRl1[visit[0]])
        keep_BGRls = _dropout_mask(options, masks, visit, n_blocks, weights_BGRls.shape)
        d_weights_BGRls = matmul_groups('xk,sk->xs', d_o_BGRlV, v_BGsV) * keep_BGRls
        d_scores_BGRls = weights_BGRls * (d_weights_BGRls - dot_NBGRl1[visit[0]])
        if options.scores.softcap:
            d_scores_BGRls *= 1 - jnp.square(capped_BGRls / options.scores.softcap)
        d_scores_BGRls = d_scores_BGRls.astype(q_NBGRlK.dtype)
        d_k_BGsK = matmul_groups('xs,xk->sk', d_scores_BGRls, q_BGRlK)
        d_v_BGsV = matmul_groups('xs,xk->sk', (weights_BGRls * keep_BGRls).astype(kv.dtype), d_o_BGRlV)
        d_q_NBGRlK = d_q_NBGRlK.at[visit[0]].add(matmul_groups('xs,sk->xk', d_scores_BGRls, k_BGsK))
        return d_q_NBGRlK, d_kv_NBGsX.at[visit[1]].add(jnp.concatenate([d_k_BGsK, d_v_BGsV], -1))

    d_q_NBGRlK, d_kv_NBGsX = q_NBGRlK.astype(jnp.float32) * 0, kv.astype(jnp.float32) * 0
    for visits, full, shift, last in _steps(options, kv):
        next_kv = kv if last else _shift(options, kv, shift)
        work_on_kv = functools.partial(work, kv_NBGsX=kv)
        d_q_NBGRlK, d_kv_NBGsX = _scan_visits(work_on_kv, (d_q_NBGRlK, d_kv_NBGsX), visits, full)
        # Gradients travel with their keys and values, and after the last step back to their device.
        if options.split.kind == 'ring' and shift % options.split.parts:
            d_kv_NBGsX = _shift(options, d_kv_NBGsX, shift)
        kv = next_kv
    d_sinks_1GR11 = None
    if sinks_1GR11 is not None:
        sink_NBGRl1 = jnp.exp(sinks_1GR11 - log_sum_NBGRl1)
        d_sinks_1GR11 = -jnp.sum(sink_NBGRl1 * dot_NBGRl1, axis=(0, 1, 4), keepdims=True)[0].astype(sinks_1GR11.dtype)
    return d_q_NBGRlK.astype(q_NBGRlK.dtype), d_kv_NBGsX.astype(kv_NBGsX.dtype), d_sinks_1GR11, None


_attention.defvjp(_forward, _backward)
