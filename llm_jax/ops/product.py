"""Products of activations and weights on a mesh: flattening, gathering, summing.

Operands are two-dimensional: the same program on TPU and GPU, and twice as fast on CPU,
where XLA contracts (B, L) one dimension at a time in the gradient of a three-dimensional
product.
"""

from collections.abc import Collection
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from llm_jax.config.schema import ConfigError, Model
from llm_jax.dist import mesh
from llm_jax.ops import quantised
from llm_jax.ops.matmul import matmul
from llm_jax.ops.quantised import Quantised

# Logical axes that are split over the devices of the batch in weights, but not in activations.
_WEIGHT_ONLY = ('d_model', 'rank')


def activation_axes(axes: tuple[str, ...]) -> tuple[str, ...]:
    """Logical axes of activations for those of a weight: its d_model is split over fsdp, that of activations is not."""
    return tuple('residual' if axis == 'd_model' else axis for axis in axes)


def product(
    x: jax.Array, w: jax.Array | Quantised, axes: tuple[str, ...], n_in: int, config: Model, *, out_dtype: str = '',
    transposed: bool = False,
) -> jax.Array:  # fmt: skip
    """x [B, L, *in] · w [*in, *out] -> [B, L, *out]; x may have other leading dimensions where a row is whole.

    Args:
      x: activations; their length may be split as that of the residual stream.
      w: kernel, sharded by its axes; it is cast to the dtype of x. One in few bits is [out, in], for the same axes.
      axes: logical axis of each dimension of w; a result that ends in 'd_model' is sharded
        as the residual stream.
      n_in: number of contracted dimensions.
      config: provides `rules`, and `matmul`, the precision.
      out_dtype: dtype of the result; empty means that of x.
      transposed: w is [out, in] for axes (in, out). It is contracted as it is laid out: for a single token XLA's
        CPU backend would gather a transposed table entry by entry.
    """
    is_narrow = isinstance(w, Quantised)
    w = w if is_narrow else w.astype(x.dtype)
    if mesh.shard_count(config.rules, 'residual_length') > 1:
        if is_narrow:
            raise ConfigError('quantised weights multiply whole rows, as in decoding; set mesh.context = 1')
        return _multiply_split_rows(x, w.T if transposed else w, axes, n_in, config, out_dtype)
    rules, lead = config.rules, x.ndim - n_in
    if is_narrow:
        fan_in, outputs = math.prod(w.inputs), w.outputs or w.shape[:1]
    else:
        fan_in, outputs = (w.shape[1], w.shape[:1]) if transposed else (math.prod(w.shape[:n_in]), w.shape[n_in:])
    free_axes = activation_axes(axes[n_in:])
    tokens = ('batch', None)[: lead and 1]
    flat_x = _reshape(x, (-1, fan_in), rules, (*tokens, axes[0] if axes[0] not in _WEIGHT_ONLY else None))
    spec = mesh.spec(rules, (*tokens, free_axes[0]))
    if is_narrow:
        y = quantised.multiply(flat_x, w, out_dtype=out_dtype, out_sharding=spec)
    else:
        flat_w = w if transposed else _reshape(w, (fan_in, math.prod(outputs)), rules, (axes[0], axes[n_in]))
        y = matmul(flat_x, flat_w, config.matmul, out_dtype=out_dtype, out_sharding=spec, transposed=transposed)
    return _reshape(y, (*x.shape[:lead], *outputs), rules, (*mesh.TOKENS[:lead], *free_axes))


def product_per_head(equation: str, x: jax.Array, w: jax.Array | Quantised, axes: tuple, config: Model) -> jax.Array:
    """Product by head with a kernel [R, H, K], 'BLHK,RHK->BLHR' or 'BLHR,RHK->BLHK', in the dtype of x."""
    rules = config.rules
    spec = mesh.spec(rules, (*mesh.TOKENS, 'heads', None))
    if isinstance(w, Quantised):
        return quantised.multiply_heads(equation, x, w, spec).astype(x.dtype)
    whole = mesh.shard(w.astype(x.dtype), rules, (None, *axes[1:]))
    return jnp.einsum(equation, x, whole, out_sharding=spec)


def look_up(table: jax.Array | Quantised, ids_BL: jax.Array, axis: str, config: Model) -> jax.Array:
    """Vectors of a table [V, D] whose rows are sharded as `axis`, dtype[B, L, D]."""
    rules, tokens = config.rules, (*mesh.TOKENS, 'residual')
    # The width is gathered first: rows are then looked up where they lie.
    if isinstance(table, Quantised):
        table = jax.tree.map(lambda x: mesh.shard(x, rules, (axis, None)), table)
        x_BLD = quantised.look_up(table, ids_BL, mesh.spec(rules, (*mesh.TOKENS, None)))
        return mesh.shard(x_BLD.astype(config.dtype), rules, tokens)
    table_VD = mesh.shard(jnp.asarray(table, config.dtype), rules, (axis, 'residual'))
    return table_VD.at[ids_BL].get(out_sharding=mesh.spec(rules, tokens))


def _reshape(x: jax.Array, shape: tuple[int, ...], rules: tuple, axes: tuple[str | None, ...]) -> jax.Array:
    """`jnp.reshape` with the sharding of the result by logical axes."""
    return jnp.reshape(x, shape, out_sharding=mesh.spec(rules, axes))


def _multiply_split_rows(
    x: jax.Array, w: jax.Array, axes: tuple[str, ...], n_in: int, config: Model, out_dtype: str
) -> jax.Array:
    """`product` where devices share the tokens of a row, with explicit collectives.

    Flattening (B, L) would reshard the tokens, so each device multiplies its own tokens with
    its own columns within `shard_map`. A weight that is split over the devices of the batch
    is all-gathered (FSDP: Zhao et al. 2023, arXiv:2304.11277), so that its gradient is
    reduce-scattered. If the contracted dimension is split (the second product of a pair:
    Shoeybi et al. 2019, arXiv:1909.08053), partial results are summed. Where
    `residual_length` is split over more axes than `length`, the tokens of the residual
    stream are gathered before a product and scattered after it (sequence parallelism:
    Korthikanti et al. 2022, arXiv:2205.05198).
    """

    table = mesh.active_rules(config.rules)
    axes_of = lambda name: mesh.mesh_axes(table[name])
    stream = axes_of('residual_length')
    finer = tuple(axis for axis in stream if axis not in axes_of('length'))
    gathers = bool(finer) and mesh.mesh_axes(jax.typeof(x).sharding.spec[1]) == stream
    scatters = bool(finer) and axes[-1] == 'd_model'
    # Mesh axes of each dimension of w, as it is stored and as it is multiplied.
    stored = [axes_of(axis) for axis in axes]
    used = [tuple(a for a in axes_of(axis) if a not in axes_of('batch')) for axis in activation_axes(axes)]
    summed, columns = _concatenate(used[:n_in]), _concatenate(used[n_in:])
    varies = {*axes_of('batch'), *(stream if scatters else axes_of('length')), *columns}

    def multiply(x: jax.Array, w: jax.Array) -> jax.Array:
        fan_in = math.prod(w.shape[:n_in])
        flat_x, flat_w = x.reshape(-1, fan_in), w.reshape(fan_in, -1)
        y = matmul(flat_x, flat_w, config.matmul, out_dtype=out_dtype, summed=summed)
        return y.reshape(*x.shape[:2], *w.shape[n_in:])

    def multiply_local(x: jax.Array, w: jax.Array) -> jax.Array:
        for dim, (stored_axes, used_axes) in enumerate(zip(stored, used, strict=True)):
            w = gather(w, tuple(a for a in stored_axes if a not in used_axes), dim, varies)
        if gathers:
            x = gather(x, finer, 1, {*columns, *summed})
        y = multiply(x, w)
        y = jax.lax.psum(y, tuple(a for a in summed if not (scatters and a in finer)))
        for axis in finer if scatters else ():
            y = _scatter_tokens(y, axis, axis in summed)
        return y

    token_entries = lambda split: (table['batch'], table['residual_length' if split else 'length'])
    entries = lambda dims: [mesh.spec_entry(axes) for axes in dims]
    in_spec = P(*token_entries(gathers), *entries(used[:n_in]))
    out_spec = P(*token_entries(scatters), *entries(used[n_in:]))
    stored_spec = P(*entries(stored))
    if gathers or stored != used:
        # Gathered weights are gathered again in the backward pass: those of all layers would be the whole model.
        # In a scan over layers XLA cannot merge the two passes, so it needs no barrier against CSE, and without one
        # gathers that recomputation repeats are merged.
        multiply_local = jax.checkpoint(multiply_local, prevent_cse=not config.scan)
    run = jax.shard_map(multiply_local, in_specs=(in_spec, stored_spec), out_specs=out_spec)
    return run(jax.sharding.reshard(x, in_spec), jax.sharding.reshard(w, stored_spec))


def gather(x: jax.Array, axes: tuple[str, ...], dim: int, varies: Collection[str]) -> jax.Array:
    """All-gathers the shards of `x` along a dimension over some mesh axes, within `shard_map`.

    Args:
      x: local shard.
      axes: mesh axes that split the dimension.
      dim: index of the dimension.
      varies: mesh axes over which the results computed from it vary: the gradient is summed
        over these, and over the others it is already the same on every device.
    """
    for axis in reversed(axes):  # the last of several is the finest
        x = jax.lax.all_gather(x, axis, axis=dim, tiled=True, to='varying' if axis in varies else 'invarying')
    return x


def _scatter_tokens(y: jax.Array, axis: str, is_partial: bool) -> jax.Array:
    """Splits the tokens of y [B, L, ...] over a mesh axis, after summing over it if y is a partial sum."""
    if is_partial:
        return jax.lax.psum_scatter(y, axis, scatter_dimension=1, tiled=True)
    size = y.shape[1] // jax.lax.axis_size(axis)
    return jax.lax.dynamic_slice_in_dim(y, jax.lax.axis_index(axis) * size, size, axis=1)


def _concatenate(dims: list[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(axis for axes in dims for axis in axes)
