"""Attention by the splash kernel of JAX's Pallas library, on TPU.

It works on blocks in on-chip memory and skips those that the causal mask or a window
leave nothing of, in the forward pass and in both kernels of the backward pass.
"""

import functools
from typing import Any

import jax
from jax.experimental.pallas.ops.tpu import splash_attention as library
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from llm_jax.ops.attend.scores import Operands, Scores

Kernel = library.splash_attention_kernel.SplashAttentionKernel

# Queries, and keys, of a block are a multiple of LANES; larger ones are faster, as far as
# they fit into on-chip memory.
LANES = 128
MAX_BLOCK = 512
# On anything but a TPU the kernel is interpreted, which only tests want.
INTERPRET = False


def block(length: int) -> int:
    """Returns the tokens of a block for rows of this length; 0 if the kernel cannot cut them."""
    return max((n for n in range(LANES, MAX_BLOCK + 1, LANES) if length % n == 0), default=0)


class _ByDistance:
    """A mask that answers for most blocks at once: the distance of their queries from their keys shows all or none.

    The library asks for each block of a row four times and computes it each time, a minute at 128k tokens.
    """

    window: int

    def __getitem__(self, blocks: tuple[slice, slice]) -> np.ndarray:
        queries, keys = blocks
        rows = self.q_sequence[queries]  # ascending: no block lies in two chunks
        nearest, furthest = rows[0] - (keys.stop - 1), rows[-1] - keys.start
        if furthest < 0 or nearest >= self.window:
            return _constant((rows.size, keys.stop - keys.start), False)
        if nearest >= 0 and furthest < self.window:
            return _constant((rows.size, keys.stop - keys.start), True)
        return super().__getitem__(blocks)


class _Causal(_ByDistance, library.CausalMask):
    def __init__(self, length: int) -> None:
        super().__init__((length, length))
        self.window = length


class _Window(_ByDistance, library.LocalMask):
    def __init__(self, length: int, window: int) -> None:
        super().__init__((length, length), (window - 1, 0), 0)
        self.window = window


@functools.lru_cache(maxsize=8)
def _constant(shape: tuple[int, int], value: bool) -> np.ndarray:
    return np.full(shape, value)


def make(scores: Scores, n_heads: int, length: int, parts: int = 1) -> Kernel:
    """Makes the kernel for rows of `length` tokens, split over `parts` devices in the order of `zigzag.split`.

    Args:
      scores: window and soft-cap.
      n_heads: query heads on a device.
      length: of a whole row.
      parts: 1 for whole rows.
    """
    mask = _Window(length, scores.window) if scores.window else _Causal(length)
    size = block(length)
    if parts > 1:
        chunk = length // (2 * parts)
        size = block(chunk)
        chunks = np.arange(length, dtype=np.int32).reshape(2 * parts, chunk)
        mask.q_sequence = np.stack([chunks[:parts], chunks[: parts - 1 : -1]], 1).reshape(-1)
    sizes = library.BlockSizes(**dict.fromkeys(
        ('block_q', 'block_kv', 'block_kv_compute', 'block_q_dkv', 'block_kv_dkv', 'block_kv_dkv_compute',
         'block_q_dq', 'block_kv_dq'), size))  # fmt: skip
    return library.make_splash_mha(
        library.MultiHeadMask([mask] * n_heads), block_sizes=sizes, head_shards=1, q_seq_shards=parts,
        attn_logits_soft_cap=scores.softcap or None, interpret=INTERPRET,
    )  # fmt: skip


def table_specs(kernel: Kernel, length_entry: str | tuple[str, ...] | None) -> Any:
    """Returns the sharding of a kernel's tables, a pytree: what belongs to a block of queries is split as those are."""
    here = jax.sharding.get_abstract_mesh()
    # The library asks for shapes of parts, which JAX does not tell where a shard_map around has some of the axes.
    free = [axis for axis in here.axis_names if axis not in here.manual_axes]
    mesh = jax.sharding.AbstractMesh(tuple(here.shape[axis] for axis in free), tuple(free))
    return kernel.manual_sharding_spec(jax.sharding.NamedSharding(mesh, P(None, length_entry)))


def attend_rows(scores: Scores, kernel: Kernel, operands: Operands) -> jax.Array:
    """Attention of local rows and heads, [B, L, H, V]; `scores.scale` is filled in.

    `choose_kernel` rules out slots, slopes and dropout, which the kernel does not support.
    """
    q_BLHK, k_BSGK, v_BSGV, segments_BL, *_ = operands
    return _run(scores, kernel, q_BLHK, k_BSGK, v_BSGV, segments_BL, segments_BL, operands.sinks_H)


def attend_shared(scores: Scores, axes: tuple[str, ...], kernel: Kernel, operands: Operands) -> jax.Array:
    """Attention of this device's shard of each row against all keys and values, [B, L, H, V], within `shard_map`."""
    q_BLHK, k_BLGK, v_BLGV, segments_BS, *_ = operands  # segments are those of the whole row
    segments_BL = None
    if segments_BS is not None:
        c, i, chunk = jax.lax.axis_size(axes), jax.lax.axis_index(axes), q_BLHK.shape[1] // 2
        chunk_of = lambda n: jax.lax.dynamic_slice_in_dim(segments_BS, n * chunk, chunk, axis=1)
        segments_BL = jnp.concatenate([chunk_of(i), chunk_of(2 * c - 1 - i)], 1)
    kv_BSGX = _gather_rows(jnp.concatenate([k_BLGK, v_BLGV], -1), axes)  # X = K + V
    K = q_BLHK.shape[-1]
    return _run(scores, kernel, q_BLHK, kv_BSGX[..., :K], kv_BSGX[..., K:], segments_BL, segments_BS, operands.sinks_H)


def _gather_rows(x_BLGX: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """All-gathers whole rows, [B, S, G, X], in text order, from the two chunks of each device."""
    B, L, *rest = x_BLGX.shape
    x_cBLGX = jax.lax.all_gather(x_BLGX, axes)
    pairs = x_cBLGX.reshape(-1, B, 2, L // 2, *rest)
    return jnp.concatenate([pairs[:, :, 0], pairs[::-1, :, 1]]).swapaxes(0, 1).reshape(B, -1, *rest)


def _run(
    scores: Scores,
    kernel: Kernel,
    q_BLHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGV: jax.Array,
    segments_BL: jax.Array | None,
    segments_BS: jax.Array | None,
    sinks_H: jax.Array | None,
) -> jax.Array:
    """Runs the kernel, which takes one row with heads first, over a batch; [B, L, H, V]."""
    by_heads = functools.partial(jnp.swapaxes, axis1=1, axis2=2)
    segments = None if segments_BL is None else library.SegmentIds(segments_BL, segments_BS)
    one = lambda q_HLK, k_GSK, v_GSV, segments: kernel(q_HLK, k_GSK, v_GSV, segments, sinks_H)
    scaled_BLHK = (q_BLHK * scores.scale).astype(q_BLHK.dtype)
    out_BHLV = jax.vmap(one)(by_heads(scaled_BLHK), by_heads(k_BSGK), by_heads(v_BSGV), segments)
    return by_heads(out_BHLV).astype(q_BLHK.dtype)
