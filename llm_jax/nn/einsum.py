"""The one primitive that multiplies by a weight."""

from collections.abc import Collection
import math

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from llm_jax import mesh
from llm_jax.init import Weight, describe, initializer
from llm_jax.schema import Model


def kernel(module: nn.Module, name: str, shape: tuple[int, ...], axes: tuple[str, ...], weight: Weight) -> jax.Array:
    """A weight of a module, float32: initialised, split over the mesh and recorded as what `weight` says it is.

    The record is a collection 'weights' of the same tree as the parameters, which `init`
    returns beside them: the optimizer, counts of FLOPs and reports read it.
    """
    config = module.config
    if module.is_initializing():
        module.put_variable('weights', name, weight)
    return module.param(name, initializer(config, weight), shape, jnp.float32, mesh.spec(config.rules, axes))


def vector(
    module: nn.Module, name: str, start: nn.initializers.Initializer, shape: tuple[int, ...], axes: tuple[str, ...],
    **known,
) -> jax.Array:  # fmt: skip
    """A parameter that multiplies nothing: a bias, a scale; float32, recorded in the collection 'vectors'."""
    config = module.config
    if module.is_initializing():
        module.put_variable('vectors', name, describe(config, shape, axes, 0, **known))
    return module.param(name, start, shape, jnp.float32, mesh.spec(config.rules, axes))


class Einsum(nn.Module):
    """`y = einsum(equation, x, kernel) (+ bias)`, e.g. 'BLD,DHK->BLHK'.

    The equation and the names of the weight's axes say everything: its shape, fan-in
    and so its initial variance, its sharding and that of the result. The contracted
    letters end `x` and begin the kernel; the rest of the kernel ends `y`.

    Attributes:
      equation: as above.
      shape: of the kernel.
      axes: logical axis of each kernel dimension.
      config: dtype, initialisation and sharding rules.
      writes_residual: whether `y` is added to the residual stream.
    """

    equation: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    config: Model
    use_bias: bool = False
    writes_residual: bool = False

    def setup(self) -> None:
        inputs, letters, outputs = self.equation.replace('->', ',').split(',')
        n = sum(letter in inputs for letter in letters)  # contracted dimensions
        self.lead, self.n_in = len(inputs) - n, n
        if inputs[self.lead :] != letters[:n] or outputs != inputs[: self.lead] + letters[n:]:
            raise ValueError(f'{self.equation}: contracted letters must end x and begin the kernel')
        self.weight = describe(self.config, self.shape, self.axes, n, writes_residual=self.writes_residual)
        self.kernel = kernel(self, 'kernel', self.shape, self.axes, self.weight)
        if self.use_bias:
            self.bias = vector(self, 'bias', nn.initializers.zeros, self.shape[n:], activation_axes(self.axes[n:]))

    def __call__(self, x: jax.Array) -> jax.Array:
        config = self.config
        w = self.kernel.astype(config.dtype)
        y = product(x.astype(config.dtype), w, self.axes, self.n_in, config.rules)
        if self.weight.forward != 1:
            y *= self.weight.forward
        return y + self.bias.astype(config.dtype) if self.use_bias else y

    def per_head(self, equation: str, x: jax.Array) -> jax.Array:
        """Another product with the same kernel, whose result lies as [B, L, H, ...], e.g. 'BLHK,RHK->BLHR'."""
        spec = mesh.spec(self.config.rules, (*mesh.TOKENS, 'heads', None))
        return jnp.einsum(equation, x, self.kernel.astype(self.config.dtype), out_sharding=spec)


def activation_axes(axes: tuple[str, ...]) -> tuple[str, ...]:
    """Logical axes of a result: a weight's d_model is split over fsdp, the residual stream's is not."""
    return tuple('residual' if axis == 'd_model' else axis for axis in axes)


def product(x: jax.Array, w: jax.Array, axes: tuple[str, ...], n_in: int, rules: tuple) -> jax.Array:
    """x [B, L, *in] · w [*in, *out] -> [B, L, *out], each device with the tokens and the columns that it has.

    What moves between devices is written out here. A weight that is split over the
    devices of the batch is gathered (FSDP: Zhao et al. 2023, arXiv:2304.11277), and so
    its gradient is scattered while it is summed. If the sum of the product is split over
    devices (the second product of a pair: Shoeybi et al. 2019, arXiv:1909.08053), their
    parts are added up. Where `residual_length` is split finer than `length`, the tokens
    of the residual stream are gathered before a product and scattered after it
    (sequence parallelism: Korthikanti et al. 2022, arXiv:2205.05198).

    Args:
      x: operand; its length may be split as the residual stream's is.
      w: kernel, laid out by its axes.
      axes: logical axis of each dimension of w; a result that ends in 'd_model' is for
        the residual stream and lies like it.
      n_in: contracted dimensions.
      rules: logical-axis table.
    """

    def multiply(x: jax.Array, w: jax.Array) -> jax.Array:
        # A matrix product on two-dimensional operands: the same program on TPU and GPU,
        # and twice as fast on CPU, where XLA contracts (B, L) one dimension at a time in
        # the gradient of a three-dimensional one.
        fan_in = math.prod(w.shape[:n_in])
        y = jnp.dot(x.reshape(-1, fan_in), w.reshape(fan_in, -1))
        return y.reshape(*x.shape[:2], *w.shape[n_in:])

    if jax.sharding.get_abstract_mesh().empty:
        return multiply(x, w)
    table = mesh.current(rules)
    named = lambda name: mesh.mesh_axes(table[name])
    stream = named('residual_length')
    finer = tuple(axis for axis in stream if axis not in named('length'))
    gathers = bool(finer) and mesh.mesh_axes(jax.typeof(x).sharding.spec[1]) == stream
    scatters = bool(finer) and axes[-1] == 'd_model'
    lies = [named(axis) for axis in axes]  # how w lies, and how it is multiplied
    used = [tuple(a for a in named(axis) if a not in named('batch')) for axis in activation_axes(axes)]
    summed, columns = _flat(used[:n_in]), _flat(used[n_in:])
    varies = {*named('batch'), *(stream if scatters else named('length')), *columns}

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
        # What was gathered is gathered again in the backward pass: kept, it would be the whole model.
        local = jax.checkpoint(local)
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
