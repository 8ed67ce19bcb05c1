"""Token vectors: the embedding, and the logits against it when it is tied."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from llm_jax import mesh
from llm_jax.init import describe
from llm_jax.nn.einsum import kernel, reshape
from llm_jax.nn.matmul import matmul
from llm_jax.schema import Model


class Embed(nn.Module):
    """A table of `size` vectors of width d_model."""

    config: Model
    size: int
    axis: str = 'vocab'

    def setup(self) -> None:
        config, shape, axes = self.config, (self.size, self.config.d_model), (self.axis, 'd_model')
        weight = describe(config, shape, axes, 1, lookup=True)
        self.embedding = kernel(self, 'embedding', shape, axes, weight)

    def __call__(self, ids_BL: jax.Array) -> jax.Array:
        """int[B, L] -> dtype[B, L, D]."""
        config = self.config
        # The width is gathered first: rows are then looked up where they lie.
        table_VD = mesh.shard(jnp.asarray(self.embedding, config.dtype), config.rules, (self.axis, 'residual'))
        spec = mesh.spec(config.rules, (*mesh.TOKENS, 'residual'))
        return table_VD.at[ids_BL].get(out_sharding=spec)

    def attend(self, x_BLD: jax.Array) -> jax.Array:
        """Logits float32[B, L, V] against every row."""
        config, rules = self.config, self.config.rules
        B, L, D = x_BLD.shape
        x_TD = reshape(x_BLD.astype(config.dtype), (B * L, D), rules, ('batch', None))
        table_DV = self.embedding.astype(config.dtype).T
        spec = mesh.spec(rules, ('batch', self.axis))
        logits = matmul(x_TD, table_DV, out_dtype='float32', out_sharding=spec)
        logits = reshape(logits, (B, L, self.size), rules, (*mesh.TOKENS, self.axis))
        forward = describe(config, (D, self.size), ('d_model', self.axis), 1).forward
        return logits if forward == 1 else logits * forward
