"""Token vectors: the embedding, and the logits against it when it is tied."""

import dataclasses

from flax import linen as nn
import jax

from llm_jax.config.schema import Model
from llm_jax.dist import mesh
from llm_jax.init import describe
from llm_jax.nn.einsum import kernel
from llm_jax.ops.adapter import add_rows
from llm_jax.ops.product import look_up, product


class Embed(nn.Module):
    """A table of `size` vectors of width d_model."""

    config: Model
    size: int
    axis: str = 'vocab'

    def setup(self) -> None:
        config, shape, axes = self.config, (self.size, self.config.d_model), (self.axis, 'd_model')
        weight = describe(config, shape, axes, 1, lookup=True)
        self.embedding = kernel(self, 'embedding', shape, axes, weight, wide=False)

    def __call__(self, ids_BL: jax.Array) -> jax.Array:
        """int[B, L] -> dtype[B, L, D]."""
        x_BLD = mesh.shard(look_up(self.embedding, ids_BL, self.axis, self.config), self.config.rules, mesh.STREAM)
        return add_rows(x_BLD, ids_BL, self.get_variable('params', 'lora'), self.config)

    def attend(self, x_BLD: jax.Array) -> jax.Array:
        """Logits float32[B, L, V] against every row."""
        config, axes = self.config, ('d_model', self.axis)
        plain, x_BLD = dataclasses.replace(config, matmul='default'), x_BLD.astype(config.dtype)
        logits = product(x_BLD, self.embedding, axes, 1, plain, out_dtype='float32', transposed=True)
        forward = describe(config, (config.d_model, self.size), axes, 1).forward
        return logits if forward == 1 else logits * forward
