"""Position embeddings and encodings.

A position part has four hooks, each of which may do nothing: `add` to the embeddings,
make `tables` once per forward pass, `rotate` queries and keys with them, and give each
head a `slope` by which distance lowers its scores. Positions count from 0 within each
document. Its facts are those of `config.facts.PositionFacts`.
"""

import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.config.facts import HeadDims, PositionFacts, require
from llm_jax.config.schema import Model
from llm_jax.dist import mesh
from llm_jax.nn import rope as rope_lib
from llm_jax.nn.embed import Embed


class NoPosition(PositionFacts, nn.Module):
    """Nothing: causal attention alone tells order (Kazemnejad et al. 2023, arXiv:2305.19466)."""

    config: Model

    def add(self, x_BLD: jax.Array, positions_BL: jax.Array) -> jax.Array:
        """Adds positions int[B, L] to embeddings [B, L, D], for parts that do so before the first block."""
        return x_BLD

    @staticmethod
    def tables(config: Model, positions_BL: jax.Array, width: int) -> Any:
        """Whatever `rotate` needs to turn the first `width` entries of a head, once for all layers of a config."""
        return ()

    @staticmethod
    def rotate(config: Model, x_BLHK: jax.Array, tables: Any) -> jax.Array:
        """Queries or keys [B, L, H, K] as attention shall see them."""
        return x_BLHK


class Learned(NoPosition):
    """A learned vector for each of max_seq_len positions (GPT-2)."""

    @staticmethod
    def has_table(config: Model) -> bool:
        return True

    @nn.compact
    def add(self, x_BLD: jax.Array, positions_BL: jax.Array) -> jax.Array:
        return x_BLD + Embed(self.config, self.config.max_seq_len, 'position', name='table')(positions_BL)


class Sinusoidal(NoPosition):
    """Fixed sines and cosines of geometric wavelengths (Vaswani et al. 2017, arXiv:1706.03762, §3.5).

    Embeddings are multiplied by √D first (§3.4): of their initial size they would drown in the positions.
    """

    @staticmethod
    def check(config: Model, dims: HeadDims) -> None:
        require(config.d_model % 2 == 0, 'model.d_model', config.d_model, 'sinusoidal needs an even width')

    def add(self, x_BLD: jax.Array, positions_BL: jax.Array) -> jax.Array:
        width = x_BLD.shape[-1]
        frequency = 10_000.0 ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
        angle = positions_BL[..., None].astype(jnp.float32) * frequency
        waves = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)
        return x_BLD * width**0.5 + mesh.shard(waves.astype(x_BLD.dtype), self.config.rules, mesh.STREAM)


class Rope(NoPosition):
    """Rotary embedding (Su et al. 2021, arXiv:2104.09864), scaled as `rope.py` says."""

    @staticmethod
    def rotates(config: Model) -> bool:
        return True

    @staticmethod
    def check(config: Model, dims: HeadDims) -> None:
        require(dims.rotary % 2 == 0 and dims.rotary > 0, 'model.d_head', config.head_size,
                f'rope needs an even rotated width, not {dims.rotary}')  # fmt: skip

    @staticmethod
    def tables(config: Model, positions_BL: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
        return rope_lib.angles(config.rope, positions_BL, width, config.max_seq_len)

    @staticmethod
    def rotate(config: Model, x_BLHK: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
        return rope_lib.rotate(x_BLHK, *tables, interleaved=config.rope.interleaved)


class Alibi(NoPosition):
    """Scores fall linearly with distance, each head at its own rate (Press et al. 2022, arXiv:2108.12409)."""

    @staticmethod
    def slopes(config: Model, n_heads: int) -> np.ndarray:
        """2^(-8 h / H) for h = 1..H; for other H than powers of two, every second one of twice as many fill up."""
        geometric = lambda n: [2 ** (-8 * (h + 1) / n) for h in range(n)]
        power = 2 ** math.floor(math.log2(n_heads))
        return np.asarray(geometric(power) + geometric(2 * power)[::2][: n_heads - power], np.float32)


POSITIONS = {'none': NoPosition, 'learned': Learned, 'sinusoidal': Sinusoidal, 'rope': Rope, 'alibi': Alibi}
