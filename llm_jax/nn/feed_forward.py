"""The position-wise network of a block: D -> F -> D."""

from collections.abc import Callable
import functools
from typing import ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp

from llm_jax.config.facts import FeedForwardFacts
from llm_jax.config.schema import Model
from llm_jax.nn.einsum import Einsum
from llm_jax.ops import remat

gelu_tanh = functools.partial(jax.nn.gelu, approximate=True)
gelu_exact = functools.partial(jax.nn.gelu, approximate=False)


def _relu2(x: jax.Array) -> jax.Array:
    return jnp.square(jax.nn.relu(x))


class Plain(FeedForwardFacts, nn.Module):
    """down(activation(up(x))).

    Attributes:
      config: the layer's.
      width: hidden width F; 0 takes the config's.
    """

    config: Model
    width: int = 0
    activation: ClassVar[Callable[..., jax.Array]]
    inputs: ClassVar[tuple[str, ...]] = ('up',)

    @classmethod
    def is_gated(cls, config: Model) -> bool:
        return len(cls.inputs) > 1

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        """dtype[B, L, D] -> dtype[B, L, D]."""
        config, F = self.config, self.width or self.config.ff_size
        bias = config.bias is True
        shape, axes = (config.d_model, F), ('d_model', 'd_ff')
        hidden = [Einsum('BLD,DF->BLF', shape, axes, config, use_bias=bias, name=name)(x_BLD) for name in self.inputs]
        down = Einsum('BLF,FD->BLD', shape[::-1], axes[::-1], config, use_bias=bias, writes_residual=True, name='down')
        return down(remat.elementwise(type(self).activation)(*hidden))


class Gated(Plain):
    """down(activation(gate(x)) · up(x)) (Shazeer 2020, "GLU Variants", arXiv:2002.05202)."""

    inputs: ClassVar[tuple[str, ...]] = ('gate', 'up')


class Gelu(Plain):
    """GELU in its tanh form, as in GPT-2 (Hendrycks & Gimpel 2016, arXiv:1606.08415)."""

    activation = staticmethod(gelu_tanh)


class GeluExact(Plain):
    """x Φ(x), by the error function (GPT-NeoX)."""

    activation = staticmethod(gelu_exact)


class Relu(Plain):
    """max(x, 0) (Vaswani et al. 2017)."""

    activation = staticmethod(jax.nn.relu)


class Relu2(Plain):
    """relu(x)² (So et al. 2021, "Primer", arXiv:2109.08668)."""

    activation = staticmethod(_relu2)


class SwiGlu(Gated):
    """Gated by SiLU, as in Llama."""

    activation = staticmethod(lambda gate, up: jax.nn.silu(gate) * up)


class GeGlu(Gated):
    """Gated by GELU in its tanh form, as in Gemma."""

    activation = staticmethod(lambda gate, up: gelu_tanh(gate) * up)


class GeGluExact(Gated):
    """Gated by x Φ(x)."""

    activation = staticmethod(lambda gate, up: gelu_exact(gate) * up)


class SwiGluClipped(Gated):
    """(up + 1) · gate σ(1.702 gate), with gate clipped above and up on both sides at 7 (gpt-oss, arXiv:2508.10925)."""

    @staticmethod
    def activation(gate: jax.Array, up: jax.Array) -> jax.Array:
        gate, up = jnp.minimum(gate, 7.0), jnp.clip(up, -7.0, 7.0)
        return (up + 1) * gate * jax.nn.sigmoid(1.702 * gate)


DENSE = {
    'gelu': Gelu,
    'gelu_exact': GeluExact,
    'relu': Relu,
    'relu2': Relu2,
    'swiglu': SwiGlu,
    'geglu': GeGlu,
    'geglu_exact': GeGluExact,
    'swiglu_clipped': SwiGluClipped,
}
