"""A product of activations and a weight on a mesh: what is flattened, gathered and summed.

Operands are two-dimensional: the same program on TPU and GPU, and twice as fast on CPU,
where XLA contracts (B, L) one dimension at a time in the gradient of a three-dimensional
product.
"""

from collections.abc import Collection
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from llm_jax.config.schema import Model
from llm_jax.dist import mesh
from llm_jax.ops.matmul import matmul

# Sides of weights that are split over the devices of the batch; what they are multiplied with is not.
_WEIGHTS_ALONE = ('d_model', 'rank')


def activation_axes(axes: tuple[str, ...]) -> tuple[str, ...]:
    """Logical axes of a result: a weight's d_model is split over fsdp, the residual stream's is not."""
    return tuple('residual' if axis == 'd_model' else axis for axis in axes)


def product(
    x: jax.Array, w: jax.Array, axes: tuple[str, ...], n_in: int, config: Model, *, out_dtype: str = ''
) -> jax.Array:
    """x [B, L, *in] · w [*in, *out] -> [B, L, *out]; x may have other leading dimensions where a row is whole.

    Args:
      x: operand; its length may be split as the residual stream's is.
      w: kernel, laid out by its axes.
      axes: logical axis of each dimension of w; a result that ends in 'd_model' is for
        the residual stream and lies like it.
      n_in: contracted dimensions.
      config: `rules`, and `matmul`, which says in which precision.
      out_dtype: of the result; empty means that of x.
    """
    if mesh.shard_count(config.rules, 'residual_length') > 1:
        return _of_split_rows(x, w, axes, n_in, config, out_dtype)
    rules, lead = config.rules, x.ndim - n_in
    fan_in, outputs = math.prod(w.shape[:n_in]), w.shape[n_in:]
    free_axes = activation_axes(axes[n_in:])
    tokens = ('batch', None)[: lead and 1]
    flat_x = _reshape(x, (-1, fan_in), rules, (*tokens, axes[0] if axes[0] not in _WEIGHTS_ALONE else None))
    flat_w = _reshape(w, (fan_in, math.prod(outputs)), rules, (axes[0], axes[n_in]))
    spec = mesh.spec(rules, (*tokens, free_axes[0]))
    y = matmul(flat_x, flat_w, config.matmul, out_dtype=out_dtype, out_sharding=spec)
    return _reshape(y, (*x.shape[:lead], *outputs), rules, (*mesh.TOKENS[:lead], *free_axes))


def _reshape(x: jax.Array, shape: tuple[int, ...], rules: tuple, axes: tuple[str | None, ...]) -> jax.Array:
    """`jnp.reshape` that says how the result lies on the mesh."""
    return jnp.reshape(x, shape, out_sharding=mesh.spec(rules, axes))


def _of_split_rows(
    x: jax.Array, w: jax.Array, axes: tuple[str, ...], n_in: int, config: Model, out_dtype: str
) -> jax.Array:
    """`product` where devices share the tokens of a row: each with the tokens and the columns that it has.

    Flattening (B, L) would move them, so what moves between devices is written out here.
    A weight that is split over the devices of the batch is gathered (FSDP: Zhao et al.
    2023, arXiv:2304.11277), and so its gradient is scattered while it is summed. If the
    sum of the product is split over devices (the second product of a pair: Shoeybi et al.
    2019, arXiv:1909.08053), their parts are added up. Where `residual_length` is split
    finer than `length`, the tokens of the residual stream are gathered before a product
    and scattered after it (sequence parallelism: Korthikanti et al. 2022, arXiv:2205.05198).
    """

    table = mesh.active_rules(config.rules)
    named = lambda name: mesh.mesh_axes(table[name])
    stream = named('residual_length')
    finer = tuple(axis for axis in stream if axis not in named('length'))
    gathers = bool(finer) and mesh.mesh_axes(jax.typeof(x).sharding.spec[1]) == stream
    scatters = bool(finer) and axes[-1] == 'd_model'
    lies = [named(axis) for axis in axes]  # how w lies, and how it is multiplied
    used = [tuple(a for a in named(axis) if a not in named('batch')) for axis in activation_axes(axes)]
    summed, columns = _flat(used[:n_in]), _flat(used[n_in:])
    varies = {*named('batch'), *(stream if scatters else named('length')), *columns}

    def multiply(x: jax.Array, w: jax.Array) -> jax.Array:
        fan_in = math.prod(w.shape[:n_in])
        flat_x, flat_w = x.reshape(-1, fan_in), w.reshape(fan_in, -1)
        y = matmul(flat_x, flat_w, config.matmul, out_dtype=out_dtype, summed=summed)
        return y.reshape(*x.shape[:2], *w.shape[n_in:])

    def local(x: jax.Array, w: jax.Array) -> jax.Array:
        for dim, (here, wanted) in enumerate(zip(lies, used, strict=True)):
            w = gather(w, tuple(a for a in here if a not in wanted), dim, varies)
        if gathers:
            x = gather(x, finer, 1, {*columns, *summed})
        y = multiply(x, w)
        y = jax.lax.psum(y, tuple(a for a in summed if not (scatters and a in finer)))
        for axis in finer if scatters else ():
            y = _scatter(y, axis, axis in summed)
        return y

    tokens = lambda split: (table['batch'], table['residual_length' if split else 'length'])
    entries = lambda parts: [_entry(part) for part in parts]
    in_spec = P(*tokens(gathers), *entries(used[:n_in]))
    out_spec = P(*tokens(scatters), *entries(used[n_in:]))
    if gathers or lies != used:
        # What was gathered is gathered again in the backward pass: kept, it would be the whole model. In a loop over
        # layers nothing is kept from one pass to the other, and a gather that recomputation repeats is one gather.
        local = jax.checkpoint(local, prevent_cse=not config.scan)
    run = jax.shard_map(local, in_specs=(in_spec, P(*entries(lies))), out_specs=out_spec)
    return run(jax.sharding.reshard(x, in_spec), jax.sharding.reshard(w, P(*entries(lies))))


def gather(x: jax.Array, axes: tuple[str, ...], dim: int, varies: Collection[str]) -> jax.Array:
    """The parts of `x` along a dimension, put together from the devices of some mesh axes; within `shard_map`.

    Args:
      x: this device's part.
      axes: mesh axes that split the dimension.
      dim: which.
      varies: mesh axes over which what is made of the result differs: over these its
        gradient is summed, over the others it is already the same everywhere.
    """
    for axis in reversed(axes):  # the last of several is the finest
        x = jax.lax.all_gather(x, axis, axis=dim, tiled=True, to='varying' if axis in varies else 'invarying')
    return x


def _scatter(y: jax.Array, axis: str, is_part: bool) -> jax.Array:
    """A device's share of the tokens of y [B, L, ...]: of the sum of its parts over a mesh axis, or of what it is."""
    if is_part:
        return jax.lax.psum_scatter(y, axis, scatter_dimension=1, tiled=True)
    size = y.shape[1] // jax.lax.axis_size(axis)
    return jax.lax.dynamic_slice_in_dim(y, jax.lax.axis_index(axis) * size, size, axis=1)


def _flat(parts: list[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(axis for part in parts for axis in part)


def _entry(axes: tuple[str, ...]) -> str | tuple[str, ...] | None:
    return axes if len(axes) > 1 else axes[0] if axes else None
