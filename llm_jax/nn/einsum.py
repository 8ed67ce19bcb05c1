"""The one primitive that multiplies by a weight."""

from flax import linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from llm_jax.config.schema import Model
from llm_jax.dist import mesh
from llm_jax.init import Weight, describe, initializer
from llm_jax.ops import adapter
from llm_jax.ops.blockwise import Blockwise, Kernel, is_held
from llm_jax.ops.product import activation_axes, product_per_head
from llm_jax.ops.quantised import Quantised, dequantise


def kernel(
    module: nn.Module, name: str, shape: tuple[int, ...], axes: tuple[str, ...], weight: Weight, wide: bool = True
) -> Kernel:
    """A weight of a module, float32: initialised, split over the mesh and recorded as what `weight` says it is.

    The record is a collection 'weights' like the tree of the parameters, which `init` returns: the optimizer, counts of
    FLOPs and reports read it. A weight that the parameters hold in few bits is dequantised by its `astype`; a quantised
    one is returned in float32, or without `wide` as it is stored.
    """
    config, held = module.config, module.get_variable('params', name)
    if isinstance(held, Quantised):
        return dequantise(held) if wide else held
    if is_held(held):
        return Blockwise(held, shape, axes, config.rules)
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
    letters end `x` and begin the kernel; the rest of the kernel ends `y`. Adapters: `ops/adapter.py`.

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
        self.kernel = kernel(self, 'kernel', self.shape, self.axes, self.weight, wide=False)
        if self.use_bias:
            self.bias = vector(self, 'bias', nn.initializers.zeros, self.shape[n:], activation_axes(self.axes[n:]))

    def __call__(self, x: jax.Array) -> jax.Array:
        lora, drops = self.get_variable('params', 'lora'), self.config.adapter.dropout and self.has_rng('dropout')
        key = self.make_rng('dropout') if lora and drops else None
        y = adapter.multiply(x, self.kernel, lora, key, self.weight, self.config, self.out_dtype)
        y = y + self.bias.astype(y.dtype) if self.use_bias else y
        return checkpoint_name(y, self.name or 'product')

    def per_head(self, equation: str, x: jax.Array) -> jax.Array:
        """Another product with the same kernel, whose result lies as [B, L, H, ...], e.g. 'BLHK,RHK->BLHR'."""
        w = adapter.merge(self.kernel, self.get_variable('params', 'lora'), self.weight, self.config)
        return product_per_head(equation, x, w, self.axes, self.config)
