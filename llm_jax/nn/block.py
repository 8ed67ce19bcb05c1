"""One layer: attention and feed-forward around the residual stream."""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from llm_jax.config import parts
from llm_jax.config.facts import BlockFacts, require
from llm_jax.config.schema import Model
from llm_jax.dist import mesh
from llm_jax.nn.attention import Tokens
from llm_jax.nn.feed_forward import DENSE
from llm_jax.nn.moe import MixtureOfExperts

FEED_FORWARDS = {**DENSE, 'moe': MixtureOfExperts}


class Sequential(BlockFacts, nn.Module):
    """x += attention(norm(x)); x += feed_forward(norm(x)), with the norms where `norm_at` says.

    'pre': x + f(norm(x)) (Xiong et al. 2020, arXiv:2002.04745)
    'post': norm(x + f(x)) (Vaswani et al. 2017)
    'output': x + norm(f(x)) (OLMo 2, arXiv:2501.00656)
    'sandwich': x + norm(f(norm(x))) (CogView, arXiv:2105.13290; Gemma 2)
    """

    config: Model

    @nn.compact
    def __call__(self, x_BLD: jax.Array, tokens: Tokens, cache: Any) -> tuple[jax.Array, Any]:
        """dtype[B, L, D] -> the same, and this layer's updated cache."""

        def attention(y_BLD: jax.Array) -> jax.Array:
            nonlocal cache
            y_BLD, cache = parts.module(self.config, 'attention', name='attention')(y_BLD, tokens, cache)
            return y_BLD

        feed_forward = parts.module(self.config, 'feed_forward', name='feed_forward')
        x_BLD = self.add(x_BLD, 'attention', attention)
        return self.add(x_BLD, 'feed_forward', feed_forward), cache

    def add(self, x_BLD: jax.Array, name: str, branch: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """x with the branch added, and normed where `norm_at` says."""
        at, norm = self.config.norm_at, lambda name: parts.module(self.config, 'norm', name=name)
        y_BLD = norm(f'{name}_norm')(x_BLD) if at in ('pre', 'sandwich') else x_BLD
        y_BLD = branch(y_BLD)
        if at in ('output', 'sandwich'):
            y_BLD = norm(f'{name}_out_norm')(y_BLD)
        x_BLD += scaled(self, y_BLD)
        return norm(f'{name}_norm')(x_BLD) if at == 'post' else x_BLD


class Parallel(BlockFacts, nn.Module):
    """x += attention(norm(x)) + feed_forward(norm(x)), one norm for both (GPT-J; PaLM, arXiv:2204.02311)."""

    config: Model

    @staticmethod
    def check(config: Model) -> None:
        require(config.norm_at == 'pre', 'model.norm_at', config.norm_at,
                'a parallel block norms what it reads; use "pre"')  # fmt: skip

    @nn.compact
    def __call__(self, x_BLD: jax.Array, tokens: Tokens, cache: Any) -> tuple[jax.Array, Any]:
        """dtype[B, L, D] -> the same, and this layer's updated cache."""
        attention_in, feed_forward_in = self.normed(x_BLD)
        y_BLD, cache = parts.module(self.config, 'attention', name='attention')(attention_in, tokens, cache)
        y_BLD += parts.module(self.config, 'feed_forward', name='feed_forward')(feed_forward_in)
        return x_BLD + scaled(self, y_BLD), cache

    def normed(self, x_BLD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Inputs of attention and of the feed-forward."""
        y_BLD = parts.module(self.config, 'norm', name='norm')(x_BLD)
        return y_BLD, y_BLD


class ParallelTwoNorms(Parallel):
    """The same with a norm for each branch (GPT-NeoX, arXiv:2204.06745)."""

    def normed(self, x_BLD: jax.Array) -> tuple[jax.Array, jax.Array]:
        norm = lambda name: parts.module(self.config, 'norm', name=name)
        return norm('attention_norm')(x_BLD), norm('feed_forward_norm')(x_BLD)


def scaled(module: nn.Module, y_BLD: jax.Array) -> jax.Array:
    """Scales a branch by `residual_scale` and applies dropout."""
    y_BLD = dropout(module, y_BLD)
    return y_BLD * module.config.residual_scale if module.config.residual_scale != 1 else y_BLD


def dropout(module: nn.Module, x_BLD: jax.Array) -> jax.Array:
    """Zeroes entries at the configured rate while a 'dropout' rng is given, that is, in training."""
    rate = module.config.dropout
    if not rate or not module.has_rng('dropout'):
        return x_BLD
    keep = jax.random.bernoulli(module.make_rng('dropout'), 1 - rate, x_BLD.shape)
    keep = mesh.shard(keep, module.config.rules, mesh.STREAM)
    return jnp.where(keep, x_BLD / (1 - rate), 0).astype(x_BLD.dtype)


BLOCKS = {'sequential': Sequential, 'parallel': Parallel, 'parallel_two_norms': ParallelTwoNorms}
