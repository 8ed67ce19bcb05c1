"""A part of one's own: differential attention, in the quickstart's model.

  ./tools/run train experiments/pretrain/differential_attention.py

Each head takes the difference of two softmax maps, so that what both see of the context, its
noise, cancels (Ye et al. 2024, "Differential Transformer", arXiv:2410.05258):

  (softmax(Q₁K₁ᵀ/√K) - λ softmax(Q₂K₂ᵀ/√K)) V,   λ = exp(λq₁·λk₁) - exp(λq₂·λk₂) + λ_init,

with λ_init = 0.8 - 0.6 exp(-0.3 l) in layer l = 0, 1, ..., then a norm of each head, times
1 - λ_init. Queries and keys of one map are half as wide as a head, values as wide, so the
layer has as many parameters as multi-head attention. The module is defined in this file:
what the library has to know of it (widths, products, what it cannot do) its class says.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from llm_jax import config as config_lib
from llm_jax import init
from llm_jax.config import parts
from llm_jax.config.facts import HeadDims, require
from llm_jax.config.schema import Model
from llm_jax.nn import cache as cache_lib
from llm_jax.nn.attention import Attention, Cache, Tokens, attend_tokens, project_out
from llm_jax.nn.einsum import vector


class DifferentialAttention(Attention):
    """Difference of two attention maps in each head; the cache has both keys, side by side, and the values.

    Attributes:
      lambda_std: standard deviation of the initial vectors of λ.
    """

    lambda_std: float = 0.1

    @staticmethod
    def head_dims(config: Model) -> HeadDims:
        """Widths of one of the two maps."""
        K = config.head_size // 2
        return HeadDims(key=K, value=config.head_size, rotary=int(K * config.rope.fraction))

    @classmethod
    def attention_products(cls, config: Model, length: int) -> float:
        """Both maps, each with all values."""
        return 2 * super().attention_products(config, length)

    @classmethod
    def check(cls, config: Model) -> None:
        super().check(config)
        require(config.head_size % 2 == 0, 'model.d_head', config.head_size, 'two maps share a head: use an even width')
        for name, off in (('qk_norm', 'none'), ('attention_gate', False), ('attention_sinks', False)):
            require(getattr(config, name) == off, f'model.{name}', getattr(config, name),
                    f'differential attention has none; set it to {off!r}')  # fmt: skip

    @nn.compact
    def __call__(self, x_BLD: jax.Array, tokens: Tokens, cache: Cache | None) -> tuple[jax.Array, Cache | None]:
        """dtype[B, L, D] -> the same, and the cache with these tokens in it."""
        config, position = self.config, parts.position(self.config)
        bias = config.bias in (True, 'qkv', 'attention')
        halves = lambda x: jnp.split(x, 2, axis=-1)
        rotate = lambda x_BLHK: position.rotate(config, x_BLHK, tokens.tables)
        q1, q2 = map(rotate, halves(self.project(x_BLD, 'q', config.n_heads, 'heads', bias)))
        k1, k2 = map(rotate, halves(self.project(x_BLD, 'k', config.kv_heads, 'kv_heads', bias)))
        v = self.values(x_BLD, tokens)
        if cache is not None:
            put = lambda held, new: cache_lib.write(held, new, tokens.positions_BL, config.rules, 'kv_heads')
            cache = Cache(k=put(cache.k, jnp.concatenate([k1, k2], -1)), v=put(cache.v, v))
            (k1, k2), v = halves(cache.k.swapaxes(1, 2)), cache.v.swapaxes(1, 2)
        scale = init.attention_scale(config, q1.shape[-1])
        attend = lambda q, k: attend_tokens(self, q, k, v, tokens, scale, cache is not None)
        first = 0.8 - 0.6 * jnp.exp(-0.3 * tokens.layer)
        weight = (self.exp_product('1', q1.shape[-1]) - self.exp_product('2', q1.shape[-1]) + first).astype(
            config.dtype
        )
        y_BLHV = attend(q1, k1) - weight * attend(q2, k2)
        y_BLHV = parts.module(config, 'norm', ('d_head',), name='head_norm')(y_BLHV)
        return project_out(config, y_BLHV * (1 - first).astype(config.dtype)), cache

    def exp_product(self, name: str, width: int) -> jax.Array:
        """exp(λq·λk) of one map, float32 scalar."""
        normal = nn.initializers.normal(self.lambda_std)
        q_K, k_K = (vector(self, f'lambda_{side}{name}', normal, (width,), ('d_head',)) for side in 'qk')
        return jnp.exp(jnp.sum(q_K * k_K))


def get_config() -> ml_collections.ConfigDict:
    config = config_lib.default()
    config.model.d_model = 128
    config.model.n_layers = 4
    config.model.n_heads = 4
    config.model.attention = DifferentialAttention
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
