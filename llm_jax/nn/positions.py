"""How the model knows where a token stands.

A position part has three hooks, each of which may do nothing: `add` to the embeddings,
make `tables` once per forward pass, and `rotate` queries and keys with them.
Positions count from 0 within each document.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from llm_jax.nn.embed import Embed
from llm_jax.schema import Model


class NoPosition(nn.Module):
    """Nothing: causal attention alone tells order (Kazemnejad et al. 2023, arXiv:2305.19466)."""

    config: Model

    def add(self, x_BLD: jax.Array, positions_BL: jax.Array) -> jax.Array:
        """What the first block sees of embeddings [B, L, D] at positions int[B, L]."""
        return x_BLD

    def tables(self, positions_BL: jax.Array) -> Any:
        """Whatever `rotate` needs, computed once for all layers."""
        return ()

    @staticmethod
    def rotate(x_BLHK: jax.Array, tables: Any) -> jax.Array:
        """Queries or keys [B, L, H, K] as attention shall see them."""
        return x_BLHK


class Learned(NoPosition):
    """A learned vector for each of max_seq_len positions (GPT-2)."""

    @nn.compact
    def add(self, x_BLD: jax.Array, positions_BL: jax.Array) -> jax.Array:
        return x_BLD + Embed(self.config, self.config.max_seq_len, 'position', name='table')(positions_BL)


class Sinusoidal(NoPosition):
    """Fixed sines and cosines of geometric wavelengths (Vaswani et al. 2017, arXiv:1706.03762, §3.5).

    Embeddings are multiplied by √D first (§3.4): of their initial size they would drown in the positions.
    """

    def add(self, x_BLD: jax.Array, positions_BL: jax.Array) -> jax.Array:
        cos, sin = angles(positions_BL, x_BLD.shape[-1], 10_000.0)
        return x_BLD * x_BLD.shape[-1] ** 0.5 + jnp.concatenate([sin, cos], -1).astype(x_BLD.dtype)


class Rope(NoPosition):
    """Rotary embedding, half-split as in Llama (Su et al. 2021, arXiv:2104.09864)."""

    def tables(self, positions_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
        return angles(positions_BL, self.config.head_size, self.config.rope_theta)

    @staticmethod
    def rotate(x_BLHK: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
        cos, sin = (t[:, :, None, :] for t in tables)  # [B, L, 1, K/2]
        first, second = jnp.split(x_BLHK.astype(jnp.float32), 2, axis=-1)
        rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
        return rotated.astype(x_BLHK.dtype)


def angles(positions_BL: jax.Array, width: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """cos and sin, float32[B, L, width/2], of position · theta^(-2i/width)."""
    frequency = theta ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angle = positions_BL[..., None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


POSITIONS = {'none': NoPosition, 'learned': Learned, 'sinusoidal': Sinusoidal, 'rope': Rope}
