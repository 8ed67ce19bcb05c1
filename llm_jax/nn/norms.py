"""Normalisation of the residual stream, and of queries and keys. Statistics are in float32."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from llm_jax.config.schema import Model
from llm_jax.nn.einsum import vector
from llm_jax.ops import remat


class _Norm(nn.Module):
    """Base of the norms: a learned scale, and a bias where `norm_bias` asks for it.

    Attributes:
      axes: logical axes of the last dimensions, which are normalised together.
      eps: added to the variance; 0 takes the config's.
    """

    config: Model
    axes: tuple[str, ...] = ('residual',)
    eps: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """dtype[..., D] -> dtype[..., D]."""
        config, n = self.config, len(self.axes)
        shape, vectors = x.shape[-n:], {}
        if config.norm_scale:
            start = nn.initializers.zeros if config.norm_offset else nn.initializers.ones
            vectors['scale'] = vector(self, 'scale', start, shape, self.axes)
        if config.norm_bias:
            vectors['bias'] = vector(self, 'bias', nn.initializers.zeros, shape, self.axes)

        def norm(x: jax.Array, vectors: dict[str, jax.Array]) -> jax.Array:
            y = self.normalise(x.astype(jnp.float32), tuple(range(-n, 0)))
            if 'scale' in vectors:
                y *= 1 + vectors['scale'] if config.norm_offset else vectors['scale']
            if 'bias' in vectors:
                y += vectors['bias']
            return y.astype(config.dtype)

        return remat.elementwise(norm)(x, vectors)


class LayerNorm(_Norm):
    """(x - mean) / √(variance + eps) · scale (+ bias) (Ba et al. 2016, arXiv:1607.06450)."""

    def normalise(self, x: jax.Array, dims: tuple[int, ...]) -> jax.Array:
        x -= x.mean(dims, keepdims=True)
        return x * jax.lax.rsqrt(jnp.square(x).mean(dims, keepdims=True) + (self.eps or self.config.norm_eps))


class RMSNorm(_Norm):
    """x / √(mean(x²) + eps) · scale (Zhang & Sennrich 2019, arXiv:1910.07467)."""

    def normalise(self, x: jax.Array, dims: tuple[int, ...]) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.square(x).mean(dims, keepdims=True) + (self.eps or self.config.norm_eps))


NORMS = {'layernorm': LayerNorm, 'rmsnorm': RMSNorm}
