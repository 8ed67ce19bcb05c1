"""The decoder-only Transformer: tokens in, logits out.

Shapes: B batch, L length, D model, H heads, G key/value heads, K head, F feed-forward,
V vocabulary, S cache slots.
"""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp

from llm_jax import mesh
from llm_jax.nn.attention import CACHE, Cache, Tokens
from llm_jax.nn.block import BLOCKS, dropout
from llm_jax.nn.einsum import Einsum
from llm_jax.nn.embed import Embed
from llm_jax.nn.norms import NORMS
from llm_jax.nn.positions import POSITIONS
from llm_jax.parts import resolve_part
from llm_jax.schema import ConfigError, Model

REMAT_POLICIES = {
    'none': None,
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    'full': jax.checkpoint_policies.nothing_saveable,
}


class Transformer(nn.Module):
    """Embedding, blocks, final norm, head.

    `model.apply({'params': params}, tokens)` gives logits. Parameters of the blocks are
    stacked: every leaf under 'layers' has a leading dimension n_layers.

    Attributes:
      config: with vocab_size and max_seq_len filled in.
    """

    config: Model

    def setup(self) -> None:
        config = self.config
        self.embed = Embed(config, config.vocab_size)
        self.position = resolve_part('model.position', config.position, POSITIONS)(config)
        self.layers = _stack(config)(config)
        self.final_norm = resolve_part('model.norm', config.norm, NORMS)(config)
        if not config.tie_embeddings:
            shape, axes = (config.d_model, config.vocab_size), ('d_model', 'vocab')
            self.unembed = Einsum('BLD,DV->BLV', shape, axes, config, role='readout')

    def __call__(
        self,
        tokens_BL: jax.Array,
        positions_BL: jax.Array | None = None,
        segments_BL: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> jax.Array | tuple[jax.Array, Cache]:
        """Logits float32[B, L, V]; with a cache, (logits, updated cache).

        Args:
          tokens_BL: int.
          positions_BL: int, from 0 in each document; default 0..L-1. With a cache these
            are also the slots that the tokens are written to.
          segments_BL: int, the document of each token; default one document per row.
          cache: from `init_cache`.
        """
        x_BLD, cache_out = self.features(tokens_BL, positions_BL, segments_BL, cache)
        logits_BLV = self.head(x_BLD)
        return logits_BLV if cache is None else (logits_BLV, cache_out)

    def features(
        self,
        tokens_BL: jax.Array,
        positions_BL: jax.Array | None = None,
        segments_BL: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """The residual stream after the final norm, dtype[B, L, D], and the cache."""
        x_BLD, tokens = self.enter(tokens_BL, positions_BL, segments_BL)
        x_BLD, cache = self.layers(x_BLD, tokens, cache)
        return self.final_norm(x_BLD), cache

    def enter(
        self, tokens_BL: jax.Array, positions_BL: jax.Array | None = None, segments_BL: jax.Array | None = None
    ) -> tuple[jax.Array, Tokens]:
        """What the first block sees: the residual stream dtype[B, L, D], and the rest about the tokens."""
        if positions_BL is None:
            positions_BL = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1]), tokens_BL.shape)
        x_BLD = dropout(self, self.position.add(self.embed(tokens_BL), positions_BL))
        return x_BLD, Tokens(positions_BL, segments_BL, self.position.tables(positions_BL))

    def leave(self, x_BLD: jax.Array) -> jax.Array:
        """What the last block gave, dtype[B, L, D] -> logits float32[B, L, V]."""
        return self.head(self.final_norm(x_BLD))

    def head(self, x_BLD: jax.Array) -> jax.Array:
        """Features [B, L, D] -> logits float32[B, L, V]."""
        logits_BLV = self.embed.attend(x_BLD) if self.config.tie_embeddings else self.unembed(x_BLD)
        return logits_BLV.astype(jnp.float32)


def _stack(config: Model) -> type[nn.Module]:
    """The block, repeated n_layers times: `(x, tokens, cache) -> (x, cache)`."""
    if config.remat not in REMAT_POLICIES:
        raise ConfigError(f'model.remat = {config.remat!r} is not known; use {", ".join(REMAT_POLICIES)}')
    block = resolve_part('model.residual', config.residual, BLOCKS)
    if config.remat != 'none':
        block = nn.remat(block, policy=REMAT_POLICIES[config.remat], prevent_cse=not config.scan)
    return nn.scan(
        block,
        variable_axes={'params': 0},
        split_rngs={'params': True, 'dropout': True},
        in_axes=(nn.broadcast, 0),
        out_axes=0,
        length=config.n_layers,
        # Unrolled, every layer is its own piece of the program; the parameters stay stacked.
        unroll=1 if config.scan else config.n_layers,
    )


def init_params(model: Transformer, key: jax.Array) -> dict:
    """Fresh parameters, each laid out on the current mesh. Jit it; its shapes are in `jax.eval_shape`."""
    rows = max(1, jax.sharding.get_abstract_mesh().size)  # a batch that every mesh can split
    return model.init(key, jnp.zeros((rows, 1), jnp.int32))['params']


def init_cache(config: Model, batch_size: int, slots: int) -> Cache:
    """An empty cache for `slots` tokens per row on the current mesh: [n_layers, B, G, S, K] keys and values."""
    shape = (config.n_layers, batch_size, config.kv_heads, slots, config.head_size)
    empty = lambda: mesh.shard(jnp.zeros(shape, config.dtype), config.rules, (None, *CACHE))
    return Cache(k=empty(), v=empty())


def build(config: Model, *, vocab_size: int, seq_len: int) -> Transformer:
    """The model with the fields that data decides filled in.

    Raises:
      ConfigError: model.vocab_size is smaller than the tokenizer's.
    """
    if config.vocab_size and config.vocab_size < vocab_size:
        raise ConfigError(
            f"model.vocab_size = {config.vocab_size} is smaller than the tokenizer's {vocab_size}; set it to 0"
        )
    return Transformer(
        dataclasses.replace(
            config, vocab_size=config.vocab_size or vocab_size, max_seq_len=config.max_seq_len or seq_len
        )
    )
