"""The product of activations and a weight, in the precision that the config asks for.

Shapes: T tokens, I inputs, O outputs.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from llm_jax.config.parts import nearest
from llm_jax.config.schema import ConfigError
from llm_jax.dist import mesh

# More mantissa for values, more range for gradients (Micikevicius et al. 2022, arXiv:2209.05433, §3).
_VALUES, _GRADIENTS = jnp.float8_e4m3fn, jnp.float8_e5m2
_TINY = 1e-30  # an array of zeros is scaled by something


def matmul(
    x_TI: jax.Array,
    w_IO: jax.Array,
    kind: str = 'default',
    *,
    out_dtype: str | None = None,
    out_sharding: PartitionSpec | None = None,
    summed: tuple[str, ...] = (),
    transposed: bool = False,
) -> jax.Array:
    """x · w, [T, O].

    Within `shard_map` operands are this device's parts of larger ones, whose scales are
    those of the whole: the numbers are then the same on every mesh.

    Args:
      x_TI: activations, in the dtype of the computation.
      w_IO: a weight, in the same.
      kind: 'default'; 'fp8': operands in float8_e4m3, gradients in float8_e5m2, each
        tensor scaled by its largest entry of this very step (Micikevicius et al. 2022,
        arXiv:2209.05433); 'int8': the forward product of integers, a scale for each
        token and for each output (Jacob et al. 2017, arXiv:1712.05877), the gradient as
        if nothing had been rounded (Bengio et al. 2013, arXiv:1308.3432).
      out_dtype: of the result, which is not rounded to less on its way; None is that of x.
      out_sharding: of the result, on the current mesh.
      summed: within `shard_map`, mesh axes over which the inputs are split; the result is
        then one part of a sum over these.
      transposed: w is [O, I].

    Under 'fp8' all tokens of a batch share one scale, so that what a token gives depends,
    within the rounding of float8, on the others; under 'int8' it does not.

    Raises:
      ConfigError: an unknown kind.
    """
    if kind not in KINDS:
        raise ConfigError(f'model.matmul = {kind!r} is not known{nearest(kind, KINDS)} Known: {", ".join(KINDS)}')
    out_dtype = jnp.dtype(out_dtype or x_TI.dtype)
    if kind == 'default' and out_dtype == x_TI.dtype:
        contracted = (((1,), (1 if transposed else 0,)), ((), ()))
        return jax.lax.dot_general(x_TI, w_IO, contracted, out_sharding=out_sharding)
    w_IO = w_IO.T if transposed else w_IO
    parts = _Parts(*(tuple(sorted(mesh.varying_axes(a))) for a in (x_TI, w_IO)), summed)
    # What a device adds to the gradient of an operand that it has in common with others is summed by the cast.
    x_TI, w_IO = mesh.mark_varying(x_TI, parts.w), mesh.mark_varying(w_IO, parts.x)
    return KINDS[kind](x_TI, w_IO, out_dtype, out_sharding, parts)


class _Parts(NamedTuple):
    """Mesh axes, within `shard_map`, over which an operand is sharded.

    Attributes:
      x: of the activations.
      w: of the weight.
      summed: those of their common dimension.
    """

    x: tuple[str, ...]
    w: tuple[str, ...]
    summed: tuple[str, ...]


def check_device(kind: str, device: jax.Device) -> None:
    """Raises: ConfigError: model.matmul needs a unit of multiplication that the device does not have."""
    if kind == 'default' or device.platform == 'cpu':  # a CPU computes in wider types: slow, and the same numbers
        return
    if device.platform == 'tpu':
        fits = device.device_kind.startswith(_TPU[kind])
        have = f'of the TPUs, {", ".join(_TPU[kind])} have one'
    else:
        capability = getattr(device, 'compute_capability', '')
        number = tuple(int(part) for part in capability.split('.')) if capability[:1].isdigit() else (0, 0)
        fits = number >= _CUDA[kind]
        have = f'of the NVIDIA GPUs, those of compute capability {".".join(map(str, _CUDA[kind]))} and later have one'
    if not fits:
        raise ConfigError(
            f'model.matmul = {kind!r}: {device.device_kind} has no {kind} matrix unit, so it would only be less '
            f"exact, not faster; {have}. Use model.matmul = 'default'"
        )


# Devices with a matrix unit of each kind, from their makers' documentation: TPUs by the beginning of
# `device_kind`, GPUs by compute capability (8.9 is Ada, 9.0 Hopper, 7.5 Turing). AMD's MI300
# has another float8 (fnuz) than the one used here.
_TPU = {'fp8': ('TPU7x',), 'int8': ('TPU v5', 'TPU v6')}
_CUDA = {'fp8': (8, 9), 'int8': (7, 5)}


# --- Wide: a result in float32 of narrower operands ------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _wide(
    x_TI: jax.Array, w_IO: jax.Array, out_dtype: jnp.dtype, out_sharding: PartitionSpec | None, parts: _Parts
) -> jax.Array:
    return jnp.dot(x_TI, w_IO, preferred_element_type=out_dtype, out_sharding=out_sharding)


def _wide_forward(
    x_TI: jax.Array, w_IO: jax.Array, out_dtype: jnp.dtype, out_sharding: PartitionSpec | None, parts: _Parts
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _wide(x_TI, w_IO, out_dtype, out_sharding, parts), (x_TI, w_IO)


def _narrow_backward(
    out_dtype: jnp.dtype,
    out_sharding: PartitionSpec | None,
    parts: _Parts,
    operands: tuple[jax.Array, jax.Array],
    d_y_TO: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Gradients of the plain product, in the dtype of its operands as all other gradients are."""
    x_TI, w_IO = operands
    d_y_TO = d_y_TO.astype(x_TI.dtype)
    d_x_TI = _dot(d_y_TO, w_IO, (1, 1), x_TI.dtype, jax.typeof(x_TI))
    return d_x_TI, _dot(x_TI, d_y_TO, (0, 0), w_IO.dtype, jax.typeof(w_IO))


_wide.defvjp(_wide_forward, _narrow_backward)


# --- float8 ----------------------------------------------------------------------------

# x and w in float8 with their scales (float32 scalars), and a scalar of the dtype that gradients have.
_Fp8Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _fp8(
    x_TI: jax.Array, w_IO: jax.Array, out_dtype: jnp.dtype, out_sharding: PartitionSpec | None, parts: _Parts
) -> jax.Array:
    return _fp8_forward(x_TI, w_IO, out_dtype, out_sharding, parts)[0]


def _fp8_forward(
    x_TI: jax.Array, w_IO: jax.Array, out_dtype: jnp.dtype, out_sharding: PartitionSpec | None, parts: _Parts
) -> tuple[jax.Array, _Fp8Residuals]:
    small_x_TI, scale_x = _to_float8(x_TI, _VALUES, parts.x)
    small_w_IO, scale_w = _to_float8(w_IO, _VALUES, parts.w)
    y_TO = jnp.dot(small_x_TI, small_w_IO, preferred_element_type=jnp.float32, out_sharding=out_sharding)
    like = jnp.zeros((), x_TI.dtype)
    return (y_TO * (scale_x * scale_w)).astype(out_dtype), (small_x_TI, scale_x, small_w_IO, scale_w, like)


def _fp8_backward(
    out_dtype: jnp.dtype,
    out_sharding: PartitionSpec | None,
    parts: _Parts,
    residuals: _Fp8Residuals,
    d_y_TO: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    x_TI, scale_x, w_IO, scale_w, like = residuals
    small_TO, scale = _to_float8(d_y_TO, _GRADIENTS, tuple(sorted({*parts.x, *parts.w})))
    d_x_TI = _dot(small_TO, w_IO, (1, 1), jnp.float32, jax.typeof(x_TI)) * (scale * scale_w)
    d_w_IO = _dot(x_TI, small_TO, (0, 0), jnp.float32, jax.typeof(w_IO)) * (scale_x * scale)
    return d_x_TI.astype(like.dtype), d_w_IO.astype(like.dtype)


_fp8.defvjp(_fp8_forward, _fp8_backward)


def _to_float8(x: jax.Array, dtype: jnp.dtype, axes: tuple[str, ...]) -> tuple[jax.Array, jax.Array]:
    """Returns x / scale in the dtype and the scale, float32: the largest entry becomes the largest number."""
    largest = _largest(x, None, axes).astype(jnp.float32)
    scale = jnp.maximum(largest, _TINY) / jnp.finfo(dtype).max.astype(jnp.float32)
    return (x.astype(jnp.float32) / scale).astype(dtype), scale


# --- int8 ------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _int8(
    x_TI: jax.Array, w_IO: jax.Array, out_dtype: jnp.dtype, out_sharding: PartitionSpec | None, parts: _Parts
) -> jax.Array:
    small_x_TI, scale_T1 = _to_int8(x_TI, 1, parts.summed)
    small_w_IO, scale_1O = _to_int8(w_IO, 0, parts.summed)
    y_TO = jnp.dot(small_x_TI, small_w_IO, preferred_element_type=jnp.int32, out_sharding=out_sharding)
    if out_sharding is not None:  # a weight's outputs may be split over more than those of the result
        scale_T1 = jax.sharding.reshard(scale_T1, PartitionSpec(out_sharding[0], None))
        scale_1O = jax.sharding.reshard(scale_1O, PartitionSpec(None, out_sharding[1]))
    return (y_TO.astype(jnp.float32) * scale_T1 * scale_1O).astype(out_dtype)


def _int8_forward(
    x_TI: jax.Array, w_IO: jax.Array, out_dtype: jnp.dtype, out_sharding: PartitionSpec | None, parts: _Parts
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _int8(x_TI, w_IO, out_dtype, out_sharding, parts), (x_TI, w_IO)


_int8.defvjp(_int8_forward, _narrow_backward)


def _to_int8(x: jax.Array, dim: int, axes: tuple[str, ...]) -> tuple[jax.Array, jax.Array]:
    """Returns x / scale, rounded to -127 ... 127, and the float32 scale of each entry of the other dimension."""
    x = x.astype(jnp.float32)
    scale = jnp.maximum(_largest(x, dim, axes), _TINY) / 127
    return jnp.round(x / scale).astype(jnp.int8), scale


def _largest(x: jax.Array, dim: int | None, axes: tuple[str, ...]) -> jax.Array:
    """Returns the largest absolute value along a dimension, kept as 1, or of all (None); over mesh axes together."""
    largest = jnp.max(jnp.abs(x), dim, keepdims=dim is not None)
    return jax.lax.pmax(largest, axes) if axes else largest


def _dot(a: jax.Array, b: jax.Array, contracted: tuple[int, int], dtype: jnp.dtype, like: Any) -> jax.Array:
    """Product over one dimension of either, sharded as an array of the type `like` (of `jax.typeof`)."""
    spec = None if like.sharding.mesh.empty else like.sharding.spec
    dimensions = (((contracted[0],), (contracted[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=dtype, out_sharding=spec)


KINDS = {'default': _wide, 'fp8': _fp8, 'int8': _int8}
