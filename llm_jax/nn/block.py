"""One layer: attention and feed-forward around the residual stream."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from llm_jax import mesh
from llm_jax.nn.attention import ATTENTIONS, Cache, Tokens
from llm_jax.nn.feed_forward import FEED_FORWARDS
from llm_jax.nn.norms import NORMS
from llm_jax.parts import resolve_part
from llm_jax.schema import Model


class Sequential(nn.Module):
    """x += attention(norm(x)); x += feed_forward(norm(x)) (pre-norm, Xiong et al. 2020, arXiv:2002.04745)."""

    config: Model

    @nn.compact
    def __call__(self, x_BLD: jax.Array, tokens: Tokens, cache: Cache | None) -> tuple[jax.Array, Cache | None]:
        """dtype[B, L, D] -> the same, and this layer's updated cache."""
        config = self.config
        Norm, Attention, FeedForward = _parts(config)
        y_BLD, cache = Attention(config, name='attention')(Norm(config, name='attention_norm')(x_BLD), tokens, cache)
        x_BLD += dropout(self, y_BLD)
        y_BLD = FeedForward(config, name='feed_forward')(Norm(config, name='feed_forward_norm')(x_BLD))
        return x_BLD + dropout(self, y_BLD), cache


class Parallel(nn.Module):
    """x += attention(norm(x)) + feed_forward(norm(x)), one norm for both (GPT-J; PaLM, arXiv:2204.02311)."""

    config: Model

    @nn.compact
    def __call__(self, x_BLD: jax.Array, tokens: Tokens, cache: Cache | None) -> tuple[jax.Array, Cache | None]:
        """dtype[B, L, D] -> the same, and this layer's updated cache."""
        config = self.config
        Norm, Attention, FeedForward = _parts(config)
        normed_BLD = Norm(config, name='norm')(x_BLD)
        y_BLD, cache = Attention(config, name='attention')(normed_BLD, tokens, cache)
        y_BLD += FeedForward(config, name='feed_forward')(normed_BLD)
        return x_BLD + dropout(self, y_BLD), cache


def _parts(config: Model) -> tuple[type[nn.Module], ...]:
    return (
        resolve_part('model.norm', config.norm, NORMS),
        resolve_part('model.attention', config.attention, ATTENTIONS),
        resolve_part('model.feed_forward', config.feed_forward, FEED_FORWARDS),
    )


def dropout(module: nn.Module, x_BLD: jax.Array) -> jax.Array:
    """Zeroes entries at the configured rate while a 'dropout' rng is given, that is, in training."""
    rate = module.config.dropout
    if not rate or not module.has_rng('dropout'):
        return x_BLD
    keep = jax.random.bernoulli(module.make_rng('dropout'), 1 - rate, x_BLD.shape)
    keep = mesh.shard(keep, module.config.rules, (*mesh.TOKENS, 'residual'))
    return jnp.where(keep, x_BLD / (1 - rate), 0).astype(x_BLD.dtype)


BLOCKS = {'sequential': Sequential, 'parallel': Parallel}
