"""Frozen kernels in eight or four bits, blockwise, and back where they are multiplied.

A block of consecutive entries along one dimension shares a scale, the largest magnitude in it (absmax). int8 has the
levels −127/127 … 127/127. NF4 has 16 levels, the quantiles of a normal distribution, 0 and both ends among them
(QLoRA, arXiv:2305.14314, §3 and appendix E); two codes are a byte. Scales may be quantised again to eight bits.

A quantised kernel is a dict of arrays in the place of the array, each sharded as the kernel is:

  codes                                  int8, as the kernel; or uint8, half as long in the dimension of the blocks
  absmax                                 float32, shorter in that dimension by the size of a block
  absmax_codes, absmax_scale, absmax_mean   in its place: int8, and float32 of length 1 in that dimension
"""

from collections.abc import Mapping
import functools
import math
import statistics
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.dist import mesh
from llm_jax.ops.quantised import Quantised

Kind = Literal['int8', 'nf4']


@functools.cache
def nf4_levels() -> tuple[float, ...]:
    """The 16 levels of NF4, ascending: 7 quantiles below 0, 0, and 8 above."""
    outermost = 0.9677083  # 1 − (1/30 + 1/32) / 2, with the digits that files made elsewhere were quantised with
    quantile = statistics.NormalDist().inv_cdf
    above = [quantile(p) for p in np.linspace(outermost, 0.5, 9)[:-1]]
    below = [-quantile(p) for p in np.linspace(outermost, 0.5, 8)[:-1]]
    levels = sorted([*above, 0.0, *below])
    return tuple(level / max(levels) for level in levels)


def bits_per_weight(kind: Kind, block: int, double: bool, blocks: int = 256) -> float:
    """Bits of a weight, scales included; `blocks` are those that share a scale of the scales."""
    scale = 8 + 32 / blocks if double else 32
    return {'int8': 8, 'nf4': 4}[kind] + scale / block


def quantise(w: jax.Array, kind: Kind, *, axis: int, block: int, double: bool = False) -> dict[str, jax.Array]:
    """The arrays of a quantised kernel.

    Args:
      w: float, its dimension `axis` a multiple of `block`.
      kind: int8 or nf4; block is even for nf4.
      axis: the dimension of the blocks.
      block: entries that share a scale.
      double: whether scales are quantised, too.
    """
    axis %= w.ndim
    blocks = _split(w, axis, block)
    absmax = jnp.max(jnp.abs(blocks), axis + 1, keepdims=True)
    unit = blocks / jnp.where(absmax == 0, 1, absmax)
    if kind == 'int8':
        codes = _merge(jnp.round(unit * 127).astype(jnp.int8), axis)
    else:
        levels = np.asarray(nf4_levels())
        # The nearest level: how many midpoints lie below. Elementwise, so that it stays where the weights are.
        middles = ((levels[1:] + levels[:-1]) / 2).tolist()
        index = sum((unit > middle).astype(jnp.uint8) for middle in middles)
        pairs = _split(_merge(index, axis), axis, 2)
        low, high = (jax.lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in (0, 1))
        codes = low | high << 4
    absmax = jnp.squeeze(absmax, axis + 1)
    if not double:
        return {'codes': codes, 'absmax': absmax}
    # Their mean first, so that the signs of eight bits are used (QLoRA, §3).
    mean = jnp.mean(absmax, axis, keepdims=True)
    scale = jnp.max(jnp.abs(absmax - mean), axis, keepdims=True)
    unit = (absmax - mean) / jnp.where(scale == 0, 1, scale)
    scales = {'absmax_codes': jnp.round(unit * 127).astype(jnp.int8), 'absmax_scale': scale, 'absmax_mean': mean}
    return {'codes': codes, **scales}


@flax.struct.dataclass
class Blockwise:
    """A kernel in few bits; `astype` dequantises it.

    Attributes:
      arrays: from `quantise`.
      shape: of the kernel.
      axes: logical axis of each of its dimensions.
      rules: of sharding.
    """

    arrays: Mapping[str, jax.Array]
    shape: tuple[int, ...] = flax.struct.field(pytree_node=False)
    axes: tuple[str, ...] = flax.struct.field(pytree_node=False)
    rules: tuple = flax.struct.field(pytree_node=False, default=())

    def astype(self, dtype: Any) -> jax.Array:
        """The kernel in this dtype, sharded by its axes."""
        codes = self.arrays['codes']
        absmax = self._absmax()
        axis = next(dim for dim, size in enumerate(absmax.shape) if size != self.shape[dim])
        block = self.shape[axis] // absmax.shape[axis]
        if codes.dtype == jnp.uint8:
            pairs = jnp.stack([codes & 15, codes >> 4], axis + 1)
            index = self._reshape(pairs, axis, (absmax.shape[axis], block))
            # A sum over levels and not a lookup: elementwise, too.
            unit = sum(jnp.where(index == i, level, 0.0) for i, level in enumerate(nf4_levels())).astype(absmax.dtype)
        else:
            unit = self._reshape(codes, axis, (absmax.shape[axis], block)).astype(absmax.dtype) / 127
        values = unit * jnp.expand_dims(absmax, axis + 1)
        return self._reshape(values.astype(dtype), axis, (self.shape[axis],))

    def _absmax(self) -> jax.Array:
        if 'absmax' in self.arrays:
            return self.arrays['absmax']
        names = ('absmax_codes', 'absmax_scale', 'absmax_mean')
        codes, scale, mean = (self.arrays[name] for name in names)
        return codes.astype(scale.dtype) / 127 * scale + mean

    def _reshape(self, x: jax.Array, axis: int, sizes: tuple[int, ...]) -> jax.Array:
        """`x` with the kernel's dimension `axis`, in however many pieces it is, in pieces of `sizes`."""
        shape = (*self.shape[:axis], *sizes, *self.shape[axis + 1 :])
        axes = (*self.axes[: axis + 1], *(None for _ in sizes[1:]), *self.axes[axis + 1 :])
        return jnp.reshape(x, shape, out_sharding=mesh.spec(self.rules, axes))


# What a module multiplies by.
Kernel = jax.Array | Blockwise | Quantised


def is_held(stored: Any) -> bool:
    """Whether a parameter is a dict of arrays in the place of one."""
    return isinstance(stored, Mapping)


def _split(x: jax.Array, axis: int, size: int) -> jax.Array:
    return x.reshape(*x.shape[:axis], x.shape[axis] // size, size, *x.shape[axis + 1 :])


def _merge(x: jax.Array, axis: int) -> jax.Array:
    return x.reshape(*x.shape[:axis], math.prod(x.shape[axis : axis + 2]), *x.shape[axis + 2 :])
