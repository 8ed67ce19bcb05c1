"""The one primitive that multiplies by a weight."""

import math

from flax import linen as nn
import jax
import jax.numpy as jnp

from llm_jax import mesh
from llm_jax.init import Weight, initializer
from llm_jax.schema import Model


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
      role: 'hidden' or 'readout', for the initialisation.
      writes_residual: whether `y` is added to the residual stream.
    """

    equation: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    config: Model
    use_bias: bool = False
    role: str = 'hidden'
    writes_residual: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config, rules = self.config, self.config.rules
        inputs, letters, outputs = self.equation.replace('->', ',').split(',')
        n = sum(letter in inputs for letter in letters)  # contracted dimensions
        lead, contracted, free = inputs[: len(inputs) - n], letters[:n], letters[n:]
        if inputs != lead + contracted or outputs != lead + free:
            raise ValueError(f'{self.equation}: contracted letters must end x and begin the kernel')
        fan_in, fan_out = math.prod(self.shape[:n]), math.prod(self.shape[n:])

        weight = Weight(self.role, fan_in, fan_out, self.writes_residual)
        init = initializer(config, weight)
        kernel = self.param('kernel', init, self.shape, jnp.float32, mesh.spec(rules, self.axes))

        # A matrix product on two-dimensional operands: the same program on TPU and GPU,
        # and twice as fast on CPU, where XLA contracts (B, L) one dimension at a time in
        # the gradient of a three-dimensional one.
        free_axes = activation_axes(self.axes[n:])
        tokens = ('batch', None)[: len(lead) and 1]
        x = x.astype(config.dtype)
        flat_x = reshape(x, (-1, fan_in), rules, (*tokens, self.axes[0] if self.axes[0] != 'd_model' else None))
        flat_w = reshape(kernel.astype(config.dtype), (fan_in, fan_out), rules, (self.axes[0], self.axes[n]))
        y = jnp.dot(flat_x, flat_w, out_sharding=mesh.spec(rules, (*tokens, free_axes[0])))
        lead_axes = mesh.TOKENS[: len(lead)]
        y = reshape(y, (*x.shape[: len(lead)], *self.shape[n:]), rules, (*lead_axes, *free_axes))
        if self.use_bias:
            bias_spec = mesh.spec(rules, free_axes)
            bias = self.param('bias', nn.initializers.zeros, self.shape[n:], jnp.float32, bias_spec)
            y += bias.astype(config.dtype)
        return y


def activation_axes(axes: tuple[str, ...]) -> tuple[str, ...]:
    """Logical axes of a result: a weight's d_model is split over fsdp, the residual stream's is not."""
    return tuple('residual' if axis == 'd_model' else axis for axis in axes)


def reshape(x: jax.Array, shape: tuple[int, ...], rules: tuple, axes: tuple[str | None, ...]) -> jax.Array:
    """`jnp.reshape` that says how the result lies on the mesh."""
    return jnp.reshape(x, shape, out_sharding=mesh.spec(rules, axes))
