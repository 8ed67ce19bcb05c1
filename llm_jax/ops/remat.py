"""Rematerialisation policies: saved and recomputed values of the forward pass (Chen et al. 2016, arXiv:1604.06174).

A policy is `(primitive, *abstract arrays, **parameters) -> keep?`, as `jax.checkpoint`
takes it; it decides over what a block computes, the block's input is always kept.
The products of weights carry the name of their module ('q', 'k', 'v', 'out', 'gate',
'up', 'down', ...) and the result of the attention core is 'attention', so that a policy
of one's own can be
`jax.checkpoint_policies.save_only_these_names('attention', 'down')`.
"""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
import jax

from llm_jax.config import parts
from llm_jax.config.schema import Model

Policy = Callable[..., Any]


def attention_alone(*_: Any, **__: Any) -> bool:
    """Keeps everything: the attention core has a checkpoint of its own (`attention_core`)."""
    return True


# Attention weights are products with batch dimensions: "dots" does not keep them.
POLICIES: dict[str, Policy] = {
    'none': jax.checkpoint_policies.everything_saveable,
    'attention': attention_alone,
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    'offload': jax.checkpoint_policies.offload_dot_with_no_batch_dims('device', 'pinned_host'),
    'full': jax.checkpoint_policies.nothing_saveable,
}


def block(config: Model, module: type[nn.Module], *, scanned: bool) -> type[nn.Module]:
    """The block, remembering what the policy of the config says.

    'none' keeps everything, 'attention' all but the inside of the attention core,
    'dots' the products of weights, 'offload' the same in the host's memory, 'full' nothing.

    Args:
      config: of the layer.
      module: the block's class, called with (x, tokens, cache).
      scanned: whether it is the body of a loop, where XLA cannot undo the recomputation.

    Raises:
      ConfigError: an unknown policy.
    """
    policy = parts.named(config, 'remat')
    if policy in (POLICIES['none'], attention_alone):
        return module
    return nn.remat(module, policy=policy, prevent_cse=not scanned)


def elementwise(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The same function, computed again from its arguments in the backward pass, whatever the policy.

    For norms and activations, whose arithmetic is nothing beside the traffic of keeping their every step: loops over
    layers stack each array that they keep. Where layers are not in a loop, XLA may undo it, and keeps what it likes.
    """
    return jax.checkpoint(function, prevent_cse=False)


def attention_core(config: Model, core: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The function from queries, keys, values ... to results, recomputed from these where the policy is 'attention'."""
    return jax.checkpoint(core) if parts.named(config, 'remat') is attention_alone else core
