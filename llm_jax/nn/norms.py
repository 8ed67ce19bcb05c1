"""Normalisation of the residual stream. Statistics are in float32."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from llm_jax import mesh
from llm_jax.schema import Model


class _Norm(nn.Module):
    """What the norms share: a learned scale, and a bias where `norm_bias` asks for it."""

    config: Model

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        """dtype[..., D] -> dtype[..., D]."""
        config, shape = self.config, x_BLD.shape[-1:]
        replicated = mesh.spec(config.rules, (None,))
        y = self.normalise(x_BLD.astype(jnp.float32))
        y *= self.param('scale', nn.initializers.ones, shape, jnp.float32, replicated)
        if config.norm_bias:
            y += self.param('bias', nn.initializers.zeros, shape, jnp.float32, replicated)
        return y.astype(config.dtype)


class LayerNorm(_Norm):
    """(x - mean) / √(variance + eps) · scale (+ bias) (Ba et al. 2016, arXiv:1607.06450)."""

    def normalise(self, x: jax.Array) -> jax.Array:
        x -= x.mean(-1, keepdims=True)
        return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.config.norm_eps)


class RMSNorm(_Norm):
    """x / √(mean(x²) + eps) · scale (Zhang & Sennrich 2019, arXiv:1910.07467)."""

    def normalise(self, x: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.config.norm_eps)


NORMS = {'layernorm': LayerNorm, 'rmsnorm': RMSNorm}
