"""The one primitive that multiplies by a weight."""

from flax import linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from llm_jax import mesh
from llm_jax.init import Weight, describe, initializer
from llm_jax.nn.matmul import matmul
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
      out_dtype: of `y`; empty means the config's.
    """

    equation: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    config: Model
    use_bias: bool = False
    writes_residual: bool = False
    out_dtype: str = ''

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
        config, rules, n = self.config, self.config.rules, self.n_in
        fan_in, fan_out = self.weight.fan_in, self.weight.fan_out
        # A matrix product on two-dimensional operands: the same program on TPU and GPU,
        # and twice as fast on CPU, where XLA contracts (B, L) one dimension at a time in
        # the gradient of a three-dimensional one.
        free_axes = activation_axes(self.axes[n:])
        tokens = ('batch', None)[: self.lead and 1]
        x = x.astype(config.dtype)
        flat_x = reshape(x, (-1, fan_in), rules, (*tokens, self.axes[0] if self.axes[0] != 'd_model' else None))
        flat_w = reshape(self.kernel.astype(config.dtype), (fan_in, fan_out), rules, (self.axes[0], self.axes[n]))
        spec = mesh.spec(rules, (*tokens, free_axes[0]))
        y = matmul(flat_x, flat_w, config.matmul, out_dtype=self.out_dtype, out_sharding=spec)
        lead_axes = mesh.TOKENS[: self.lead]
        y = reshape(y, (*x.shape[: self.lead], *self.shape[n:]), rules, (*lead_axes, *free_axes))
        if self.weight.forward != 1:
            y *= self.weight.forward
        y = y + self.bias.astype(y.dtype) if self.use_bias else y
        return checkpoint_name(y, self.name or 'product')

    def per_head(self, equation: str, x: jax.Array) -> jax.Array:
        """Another product with the same kernel, whose result lies as [B, L, H, ...], e.g. 'BLHK,RHK->BLHR'."""
        spec = mesh.spec(self.config.rules, (*mesh.TOKENS, 'heads', None))
        return jnp.einsum(equation, x, self.kernel.astype(self.config.dtype), out_sharding=spec)


def activation_axes(axes: tuple[str, ...]) -> tuple[str, ...]:
    """Logical axes of a result: a weight's d_model is split over fsdp, the residual stream's is not."""
    return tuple('residual' if axis == 'd_model' else axis for axis in axes)


def reshape(x: jax.Array, shape: tuple[int, ...], rules: tuple, axes: tuple[str | None, ...]) -> jax.Array:
    """`jnp.reshape` that says how the result lies on the mesh."""
    return jnp.reshape(x, shape, out_sharding=mesh.spec(rules, axes))
