"""Self-attention with its projections, over whole sequences or over a cache."""

import functools
from typing import Any

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from llm_jax import mesh
from llm_jax.nn.attend import attend
from llm_jax.nn.einsum import Einsum
from llm_jax.nn.positions import POSITIONS
from llm_jax.parts import resolve_part
from llm_jax.schema import Model

# The logical axes of cached keys and values [B, G, S, K].
CACHE = ('batch', 'kv_heads', 'length', 'd_head')


@flax.struct.dataclass
class Tokens:
    """What every block knows of the tokens besides their vectors.

    Attributes:
      positions_BL: int, from 0 within each document; in cached decoding also the cache slot.
      segments_BL: int, the document of each token; None means one document per row.
      tables: of the position part.
    """

    positions_BL: jax.Array
    segments_BL: jax.Array | None
    tables: Any


@flax.struct.dataclass
class Cache:
    """Keys and values of the tokens so far, slot = position: [B, G, S, K] each.

    Heads stand before slots, so that a decoding step reads each head's slots in one
    contiguous run; slots before heads made its products ten times slower on CPU.
    """

    k: jax.Array
    v: jax.Array


class Attention(nn.Module):
    """Multi-head attention; with fewer key/value heads, grouped-query or multi-query.

    MHA: Vaswani et al. 2017, arXiv:1706.03762. MQA: Shazeer 2019, arXiv:1911.02150.
    GQA: Ainslie et al. 2023, arXiv:2305.13245.
    """

    config: Model

    @nn.compact
    def __call__(self, x_BLD: jax.Array, tokens: Tokens, cache: Cache | None) -> tuple[jax.Array, Cache | None]:
        """dtype[B, L, D] -> the same, and the cache with these tokens in it."""
        config = self.config
        D, H, G, K = config.d_model, config.n_heads, config.kv_heads, config.head_size
        rotate = resolve_part('model.position', config.position, POSITIONS).rotate

        def project(name: str, heads: int, axis: str) -> jax.Array:
            axes = ('d_model', axis, 'd_head')
            return Einsum('BLD,DHK->BLHK', (D, heads, K), axes, config, use_bias=config.bias, name=name)(x_BLD)

        q_BLHK = rotate(project('q', H, 'heads'), tokens.tables)
        k_BLGK = rotate(project('k', G, 'kv_heads'), tokens.tables)
        v_BLGK = project('v', G, 'kv_heads')
        if cache is not None:
            write = functools.partial(_write, positions_BL=tokens.positions_BL, rules=config.rules)
            cache = Cache(k=write(cache.k, k_BLGK), v=write(cache.v, v_BLGK))
            k_BLGK, v_BLGK = cache.k.swapaxes(1, 2), cache.v.swapaxes(1, 2)
        drop = config.dropout if self.has_rng('dropout') else 0.0
        y_BLHK = attend(
            q_BLHK,
            k_BLGK,
            v_BLGK,
            rules=config.rules,
            segments_BL=tokens.segments_BL,
            slots_BL=None if cache is None else tokens.positions_BL,
            dropout=drop,
            dropout_key=self.make_rng('dropout') if drop else None,
        )
        out = Einsum(
            'BLHK,HKD->BLD', (H, K, D), ('heads', 'd_head', 'd_model'), config,
            use_bias=config.bias, writes_residual=True, name='out',
        )  # fmt: skip
        return out(y_BLHK), cache


def _write(slots_BGSK: jax.Array, new_BLGK: jax.Array, positions_BL: jax.Array, rules: tuple) -> jax.Array:
    """The cache with `new` at `positions`, distinct in each row; positions past its end are dropped."""

    def write(slots_BGSK: jax.Array, new_BLGK: jax.Array, positions_BL: jax.Array) -> jax.Array:
        rows_B1 = jnp.arange(slots_BGSK.shape[0])[:, None]
        return slots_BGSK.at[rows_B1, :, positions_BL].set(new_BLGK, unique_indices=True)

    if not jax.sharding.get_abstract_mesh().empty:
        # Each device writes into the rows and heads that it holds.
        spec = functools.partial(mesh.spec, rules)
        heads, new = spec(CACHE), spec(('batch', 'length', 'kv_heads', 'd_head'))
        write = jax.shard_map(write, in_specs=(heads, new, spec(mesh.TOKENS)), out_specs=heads)
    return write(slots_BGSK, new_BLGK.astype(slots_BGSK.dtype), positions_BL)


ATTENTIONS = {'mha': Attention, 'gqa': Attention, 'mqa': Attention}
