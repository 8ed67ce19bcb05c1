"""One forward pass over cached tokens, made for speed: layer by layer.

A stack of layers that is scanned copies each layer's weights and cache out of the stack
and back at every token, which took two to five times as long as the decoding itself
(measured on CPU). So here every layer has its own weights and its own cache, each
updated in place.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.config import parts
from llm_jax.config.schema import ConfigError, Model
from llm_jax.dist import mesh
from llm_jax.init import Weight
from llm_jax.nn.transformer import Transformer, layer_params, place, weights_of
from llm_jax.ops.quantised import narrow_zeros, quantise_params


@flax.struct.dataclass
class Weights:
    """Parameters with the stacked layers split into single ones.

    Attributes:
      outer: parameters outside the layers.
      layers: parameters of each layer.
    """

    outer: Any
    layers: tuple


def decoding_model(model: Transformer) -> Transformer:
    """Makes the model that decodes: the same function, computed row by row.

    Rows are whole on each device: mesh axes that split rows in training split the batch instead. Experts take all
    tokens, so that a row does not depend on its neighbours. On CPU, which has no units of bfloat16, it computes in
    float32: a product of narrower operands would copy the weight at every token.
    """
    config = model.config
    changes = {'moe': dataclasses.replace(config.moe, dropless=True)}
    if mesh.shard_count(config.rules, 'length') * mesh.shard_count(config.rules, 'residual_length') > 1:
        changes['rules'] = mesh.whole_rows(config.rules)
    if mesh.platform() == 'cpu':
        changes['dtype'] = 'float32'
    return Transformer(dataclasses.replace(config, **changes))


@functools.partial(jax.jit, static_argnames=('model', 'quantise'))
def prepare(model: Transformer, params: Any, quantise: str = '') -> Weights:
    """Makes the weights that `forward` takes, once for all calls: layer by layer, in the dtype of the computation.

    Args:
      model: the Transformer.
      params: its parameters, on the current mesh; quantised ones stay so.
      quantise: 'int8' or 'int4' quantises its matrices; '' leaves them.

    Raises:
      ConfigError: an unknown kind, or parameters that are quantised in another way.
    """
    config, weights = model.config, weights_of(model)
    if quantise and config.adapter.kind != 'none':
        raise ConfigError(
            f'quantise = {quantise!r}: the model has adapters; merge them first, as convert does to hf:DIR'
        )
    params = _cast(quantise_params(params, weights, quantise) if quantise else params, weights)
    if mesh.platform() == 'cpu' and config.matmul == 'default' and config.adapter.kind == 'none':
        params = quantise_params(params, weights, 'float32')  # in the order that this backend reads fastest
    layers = tuple(layer_params(params, config, i) for i in range(config.n_layers))
    stacks = {place(config, i)[0][0] for i in range(config.n_layers)}
    return Weights({name: value for name, value in params.items() if name not in stacks}, layers)


def _cast(params: Any, weights: Any) -> Any:
    """Casts the kernels to the dtype of their products; other parameters, as the scales of norms, stay as they are."""
    if isinstance(weights, Weight) and isinstance(params, jax.Array):
        return params.astype(weights.dtype)
    if isinstance(weights, Weight) or not isinstance(params, Mapping):
        return params  # held in few bits, or no kernel
    return {name: _cast(value, (weights or {}).get(name)) for name, value in params.items()}


def empty_caches(config: Model, batch_size: int, slots: int, kind: str = '') -> tuple[Any, ...]:
    """Makes an empty cache for each layer, sharded over the current mesh. Call it under jit.

    Args:
      config: of the model.
      batch_size: number of rows.
      slots: tokens of each.
      kind: 'int8' keeps vectors in int8, with a scale for each token and head; '' as the part makes them.

    Raises:
      ConfigError: an attention part that keeps none.
    """

    def empty(layer: Model) -> Any:
        attention = parts.attention(layer)
        if not hasattr(attention, 'empty_cache'):
            raise ConfigError(
                f'model.attention = {layer.attention!r} keeps no cache, so it cannot be sampled from: give its class '
                '`empty_cache(config, rows, slots)`, or train without samples (train.sample_every = 0)'
            )
        cache = attention.empty_cache(layer, batch_size, slots)
        return jax.tree.map(narrow_zeros, cache) if kind else cache

    return tuple(empty(config.layer(i)) for i in range(config.n_layers))


def forward(
    model: Transformer,
    weights: Weights,
    tokens_BL: jax.Array,
    positions_BL: jax.Array,
    caches: tuple,
    last_B: jax.Array | None,
) -> tuple[jax.Array, tuple]:
    """Applies the model to cached tokens: logits after them, and the caches with all tokens added.

    Args:
      model: the Transformer.
      weights: parameters from `prepare`.
      tokens_BL: int, token ids.
      positions_BL: int, consecutive in each row; also the cache slots.
      caches: one per layer, from `empty_caches` or an earlier call.
      last_B: int, index in 0 ... L - 1 of the one token whose logits are returned; None: those of all.

    Returns:
      (float32[B, V], or [B, L, V] of all tokens; caches)
    """
    config = model.config
    outer = {'params': weights.outer}
    x_BLD, tokens = model.apply(outer, tokens_BL, positions_BL, method='enter')
    updated = []
    for i, (params, cache) in enumerate(zip(weights.layers, caches, strict=True)):
        layer = config.layer(i)
        block = parts.module(layer, 'residual')
        x_BLD, cache = block.apply({'params': params}, x_BLD, tokens[layer].replace(layer=i), cache)
        updated.append(cache)
    if last_B is None:
        return model.apply(outer, x_BLD, method='leave'), tuple(updated)
    if x_BLD.shape[1] > 1:  # the head is the largest product: one token of each row is enough
        pick = mesh.shard(last_B[:, None] == jnp.arange(x_BLD.shape[1]), config.rules, mesh.TOKENS)
        x_BLD = jnp.sum(jnp.where(pick[..., None], x_BLD, 0), axis=1, keepdims=True)
    return model.apply(outer, x_BLD, method='leave')[:, 0], tuple(updated)
