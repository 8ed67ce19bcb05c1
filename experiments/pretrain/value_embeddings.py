"""A part of one's own: values that are also looked up from the token, in the quickstart's model.

  ./tools/run train experiments/pretrain/value_embeddings.py

Each layer has a second embedding, of the width of its values, and adds it to them (a trick of
the GPT-2 speedruns; "Value Residual Learning", Zhou et al. 2024, arXiv:2410.17897, has the
same aim): attention then also moves what a token is, unblurred by the layers below. The
module is defined in this file and plugged in as `model.attention`; nothing in the library
knows of it. Sharding, caching, checkpoints and counts work as for any other part.
"""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from llm_jax import config as config_lib
from llm_jax.dist import mesh
from llm_jax.nn.attention import Attention, Tokens
from llm_jax.nn.embed import Embed


class ValueEmbeddings(Attention):
    """Attention whose values are v(x) + scale · table[token], scale starting at 1."""

    def values(self, x_BLD: jax.Array, tokens: Tokens) -> jax.Array:
        """Values [B, L, G, K]."""
        values_BLGK = super().values(x_BLD, tokens)
        config = self.config
        width = dataclasses.replace(config, d_model=values_BLGK.shape[2] * values_BLGK.shape[3])
        own_BLV = Embed(width, config.vocab_size, name='value_embedding')(tokens.ids_BL)
        own_BLGK = mesh.shard(own_BLV.reshape(values_BLGK.shape), config.rules, (*mesh.TOKENS, 'kv_heads', 'd_head'))
        scale = self.param('scale', nn.initializers.ones, (1,), jnp.float32, mesh.spec(config.rules, (None,)))
        return values_BLGK + scale.astype(config.dtype) * own_BLGK


def get_config() -> ml_collections.ConfigDict:
    config = config_lib.default()
    config.model.d_model = 128
    config.model.n_layers = 4
    config.model.n_heads = 4
    config.model.attention = ValueEmbeddings
    config.model.init_std = 0.03
    config.model.scan = False

    config.data.seq_len = 256
    config.data.tokenizer.vocab_size = 2048

    config.train.duration = '3.6e6 tokens'
    config.train.batch_size = 8
    config.train.eval_every = '20 %'
    config.optimizer.learning_rate = 6e-3
    config.schedule.warmup = '5 %'
    config.schedule.final_lr_ratio = 0.02
    return config
