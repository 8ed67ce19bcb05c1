"""The position-wise network of a block: D -> F -> D."""

from collections.abc import Callable
import functools
from typing import ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp

from llm_jax.nn.einsum import Einsum
from llm_jax.schema import Model

gelu_tanh = functools.partial(jax.nn.gelu, approximate=True)


def _relu2(x: jax.Array) -> jax.Array:
    return jnp.square(jax.nn.relu(x))


class Plain(nn.Module):
    """down(activation(up(x)))."""

    config: Model
    activation: ClassVar[Callable[[jax.Array], jax.Array]]

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        """dtype[B, L, D] -> dtype[B, L, D]."""
        hidden_BLF = type(self).activation(self.up('up')(x_BLD))
        return self.down()(hidden_BLF)

    def up(self, name: str) -> Einsum:
        config = self.config
        shape, axes = (config.d_model, config.ff_size), ('d_model', 'd_ff')
        return Einsum('BLD,DF->BLF', shape, axes, config, use_bias=config.bias, name=name)

    def down(self) -> Einsum:
        config = self.config
        shape, axes = (config.ff_size, config.d_model), ('d_ff', 'd_model')
        return Einsum('BLF,FD->BLD', shape, axes, config, use_bias=config.bias, writes_residual=True, name='down')


class Gated(Plain):
    """down(activation(gate(x)) · up(x)) (Shazeer 2020, "GLU Variants", arXiv:2002.05202)."""

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        """dtype[B, L, D] -> dtype[B, L, D]."""
        hidden_BLF = type(self).activation(self.up('gate')(x_BLD)) * self.up('up')(x_BLD)
        return self.down()(hidden_BLF)


class Gelu(Plain):
    """GELU in its tanh form, as in GPT-2 (Hendrycks & Gimpel 2016, arXiv:1606.08415)."""

    activation = staticmethod(gelu_tanh)


class Relu2(Plain):
    """relu(x)² (So et al. 2021, "Primer", arXiv:2109.08668)."""

    activation = staticmethod(_relu2)


class SwiGlu(Gated):
    """Gated by SiLU, as in Llama."""

    activation = staticmethod(jax.nn.silu)


class GeGlu(Gated):
    """Gated by GELU, as in Gemma."""

    activation = staticmethod(gelu_tanh)


FEED_FORWARDS = {'gelu': Gelu, 'relu2': Relu2, 'swiglu': SwiGlu, 'geglu': GeGlu}
