"""Attention by the splash kernel of JAX's Pallas library, on TPU.

It works on blocks in on-chip memory and skips those that the causal mask or a window
leave nothing of, in the forward pass and in both kernels of the backward pass.
"""

import functools

import jax
from jax.experimental.pallas.ops.tpu import splash_attention as library
from jax.sharding import PartitionSpec as P
import numpy as np

from llm_jax.ops.attend.scores import Scores

# Queries, and keys, of a block are a multiple of LANES; larger ones are faster, as far as
# they fit into on-chip memory.
LANES = 128
MAX_BLOCK = 512
# On anything but a TPU the kernel is interpreted, which only tests want.
INTERPRET = False


def block(length: int) -> int:
    """Tokens of a block for so many in a row; 0 if the kernel cannot cut it."""
    return max((n for n in range(LANES, MAX_BLOCK + 1, LANES) if length % n == 0), default=0)


class _ByDistance:
    """A mask that knows of most blocks, from how far their queries are from their keys, that all or none of it counts.

    The library asks for each block of a row four times, and computes it each time: a minute at 128k tokens.
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
    def __init__(self, length: int):
        super().__init__((length, length))
        self.window = length


class _Window(_ByDistance, library.LocalMask):
    def __init__(self, length: int, window: int):
        super().__init__((length, length), (window - 1, 0), 0)
        self.window = window


@functools.lru_cache(maxsize=8)
def _constant(shape: tuple[int, int], value: bool) -> np.ndarray:
    return np.full(shape, value)


def make(
    scores: Scores, n_heads: int, length: int, parts: int = 1
) -> library.splash_attention_kernel.SplashAttentionKernel:
    """The kernel for rows of `length` tokens, split over `parts` devices in the order of `zigzag.split`.

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


def specs(kernel, length_entry):
    """How the tables of a kernel lie: what is there for each block of queries is split as the queries are."""
    here = jax.sharding.get_abstract_mesh()
    # The library asks for shapes of parts, which JAX does not tell where a shard_map around has some of the axes.
    free = [axis for axis in here.axis_names if axis not in here.manual_axes]
    mesh = jax.sharding.AbstractMesh(tuple(here.shape[axis] for axis in free), tuple(free))
    return kernel.manual_sharding_spec(jax.sharding.NamedSharding(mesh, P(None, length_entry)))


def attend_rows(scores, kernel, q_BLHK, k_BSGK, v_BSGK, segments_BL, slots_BL, slopes_H, sinks_H, dropout_key):
    """Attention of whole rows; arguments as of `attend`. `choose_kernel` lets nothing come here that it lacks."""
    return _run(scores, kernel, q_BLHK, k_BSGK, v_BSGK, segments_BL, segments_BL, sinks_H)


def attend_shared(
    scores, axes, kernel, q_BLHK, k_BLGK, v_BLGK, segments_BL, slots_BL, slopes_H, sinks_H, dropout_key
):  # fmt: skip
    """Attention of this device's part of each row, against all keys and values; within `shard_map`."""
    own = None
    if segments_BL is not None:
        c, i, chunk = jax.lax.axis_size(axes), jax.lax.axis_index(axes), q_BLHK.shape[1] // 2
        at = lambda n: jax.lax.dynamic_slice_in_dim(segments_BL, n * chunk, chunk, axis=1)
        own = jax.numpy.concatenate([at(i), at(2 * c - 1 - i)], 1)
    kv = _gather_text(jax.numpy.concatenate([k_BLGK, v_BLGK], -1), axes)
    K = q_BLHK.shape[-1]
    return _run(scores, kernel, q_BLHK, kv[..., :K], kv[..., K:], own, segments_BL, sinks_H)


def _gather_text(x_BLGK: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Whole rows, in the order of the text, of the two chunks that each device has."""
    B, L, *rest = x_BLGK.shape
    x_cBL = jax.lax.all_gather(x_BLGK, axes)
    pairs = x_cBL.reshape(-1, B, 2, L // 2, *rest)
    return jax.numpy.concatenate([pairs[:, :, 0], pairs[::-1, :, 1]]).swapaxes(0, 1).reshape(B, -1, *rest)


def _run(scores, kernel, q, k, v, q_segments, kv_segments, sinks):
    by_heads = functools.partial(jax.numpy.swapaxes, axis1=1, axis2=2)
    segments = None if q_segments is None else library.SegmentIds(q_segments, kv_segments)
    one = lambda q, k, v, segments: kernel(q, k, v, segments, sinks)
    scaled = (q * scores.scale).astype(q.dtype)
    return by_heads(jax.vmap(one)(by_heads(scaled), by_heads(k), by_heads(v), segments)).astype(q.dtype)
