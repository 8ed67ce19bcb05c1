"""The decoder-only Transformer: tokens in, logits out.

Shapes: B batch, L length, D model, H heads, G key/value heads, K head, F feed-forward,
V vocabulary.
"""

import dataclasses
from typing import Any

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp

from llm_jax.config import parts
from llm_jax.config.schema import ConfigError, Model
from llm_jax.dist import mesh
from llm_jax.nn.attention import Tokens
from llm_jax.nn.block import dropout
from llm_jax.nn.einsum import Einsum
from llm_jax.nn.embed import Embed
from llm_jax.nn.moe import STATS
from llm_jax.ops import pipeline, remat, zigzag


class Transformer(nn.Module):
    """Embedding, blocks, final norm, head.

    `model.apply({'params': params}, tokens)` gives logits. Blocks that repeat are
    stacked: every leaf under 'layers' has a leading dimension, one entry per repeat of
    the pattern. Without a pattern that is n_layers; with one, 'layers' holds '0', '1',
    ... for the blocks of the pattern. 'first_0', ... come before it, and 'last_0', ...
    are what is left over of a pattern that does not divide the depth. See `place`.

    Attributes:
      config: with vocab_size and max_seq_len filled in.
    """

    config: Model

    def setup(self) -> None:
        config = self.config
        first, pattern, repeats, last = layout(config)
        self.embed = Embed(config, config.vocab_size)
        self.position = parts.module(config, 'position')
        self.first = tuple(_block(layer, scanned=False)(layer, **layer.options.residual) for layer in first)
        if repeats:
            self.layers = _stack(config, pattern, repeats)
        self.last = tuple(_block(layer, scanned=False)(layer, **layer.options.residual) for layer in last)
        self.final_norm = parts.module(config, 'norm')
        if not config.tie_embeddings:
            shape, axes = (config.d_model, config.vocab_size), ('d_model', 'vocab')
            exact = dataclasses.replace(config, matmul='default')
            self.unembed = Einsum('BLD,DV->BLV', shape, axes, exact, out_dtype='float32')
        if config.scores:
            shape, axes = (config.d_model, config.scores), ('d_model', 'scores')
            exact = dataclasses.replace(config, matmul='default')
            self.score = Einsum('BLD,DC->BLC', shape, axes, exact, out_dtype='float32')

    def __call__(
        self, tokens_BL: jax.Array, positions_BL: jax.Array | None = None, segments_BL: jax.Array | None = None
    ) -> jax.Array:
        """Logits float32[B, L, V].

        Args:
          tokens_BL: int; lists are taken as well.
          positions_BL: int, from 0 in each document; default 0..L-1.
          segments_BL: int, the document of each token; default one document per row.

        Raises:
          ValueError: tokens that are not int[B, L].
        """
        rules = self.config.rules
        tokens_BL = jnp.asarray(tokens_BL)
        if tokens_BL.ndim != 2 or not jnp.issubdtype(tokens_BL.dtype, jnp.integer):
            raise ValueError(
                f'tokens are {tokens_BL.dtype}{list(tokens_BL.shape)}; they must be int[B, L]: one text is [ids]'
            )
        positions_BL, segments_BL = (None if a is None else jnp.asarray(a) for a in (positions_BL, segments_BL))
        if positions_BL is not None:
            positions_BL = zigzag.split(positions_BL, rules)
        x_BLD = self.features(zigzag.split(tokens_BL, rules), positions_BL, segments_BL)
        if self.config.scores and self.is_initializing():
            self.score(x_BLD)
        return zigzag.restore(self.head(x_BLD), rules, ('vocab',))

    def features(
        self, tokens_BL: jax.Array, positions_BL: jax.Array | None = None, segments_BL: jax.Array | None = None
    ) -> jax.Array:
        """The residual stream after the final norm, dtype[B, L, D].

        On a mesh that splits the length, tokens and positions come in the order of
        `zigzag.split`, and so do the features; segments come whole, in the order of the text.
        """
        x_BLD, tokens = self.enter(tokens_BL, positions_BL, segments_BL)
        first, pattern, repeats, last = layout(self.config)
        for i, (block, layer) in enumerate(zip(self.first, first, strict=True)):
            x_BLD, _ = block(x_BLD, tokens[layer].replace(layer=i), None)
        plan = pipeline.schedule(self.config.rules, self.config.pipeline)
        if repeats and plan.stages > 1 and not self.is_initializing():
            x_BLD = self.staged(plan, x_BLD, tokens[pattern[0]])
        elif repeats:
            x_BLD, _ = self.layers(x_BLD, _seen(pattern, tokens, stacked_layers(self.config)), None)
        for i, (block, layer) in enumerate(zip(self.last, last, strict=True), self.config.n_layers - len(last)):
            x_BLD, _ = block(x_BLD, tokens[layer].replace(layer=i), None)
        return self.final_norm(x_BLD)

    def staged(self, plan: pipeline.Schedule, x_BLD: jax.Array, tokens: Tokens) -> jax.Array:
        """Runs the stack of layers as a pipeline: dtype[B, L, D] -> the same."""
        config = self.config
        _, pattern, repeats, _ = layout(config)
        group = _stack(config, pattern, repeats // (plan.stages * plan.repeats), parent=None)

        def layers(group_params: Any, x_BLD: jax.Array, rows: tuple, key: jax.Array | None) -> tuple[jax.Array, Any]:
            params, first_R = group_params
            seen = _seen(pattern, tokens_of(pattern, *rows), first_R)
            rngs = None if key is None else {'dropout': key}
            (x_BLD, _), reports = group.apply({'params': params}, x_BLD, seen, None, rngs=rngs, mutable=[STATS])
            return x_BLD, reports.get(STATS, {})

        rows = tokens.ids_BL, tokens.positions_BL, tokens.segments_BL
        key = self.make_rng('dropout') if self.has_rng('dropout') else None
        # The indices of the layers go to the stages as the parameters do.
        index_R = mesh.shard(stacked_layers(config), config.rules, ('layers',))
        params = self.layers.variables['params'], index_R
        x_BLD, reports = pipeline.run(layers, params, x_BLD, rows, key, plan=plan, rules=config.rules)
        for name, report in reports.items() if self.is_mutable_collection(STATS) else ():
            self.layers.put_variable(STATS, name, report)
        return x_BLD

    def enter(
        self, tokens_BL: jax.Array, positions_BL: jax.Array | None = None, segments_BL: jax.Array | None = None
    ) -> tuple[jax.Array, dict[Model, Tokens]]:
        """Inputs of the first block: the residual stream dtype[B, L, D], and the `Tokens` by the config of a layer."""
        config = self.config
        if positions_BL is None:
            positions_BL = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1]), tokens_BL.shape)
            positions_BL = zigzag.split(positions_BL, config.rules)
        if segments_BL is not None:
            segments_BL = mesh.shard(segments_BL, config.rules, ('batch', None))
        x_BLD = self.embed(tokens_BL)
        x_BLD = x_BLD * config.embed_scale if config.embed_scale != 1 else x_BLD
        x_BLD = dropout(self, self.position.add(x_BLD, positions_BL))
        kinds = tuple(config.layer(i) for i in range(config.n_layers))
        return x_BLD, tokens_of(kinds, tokens_BL, positions_BL, segments_BL)

    def leave(self, x_BLD: jax.Array) -> jax.Array:
        """Output of the last block dtype[B, L, D] -> logits float32[B, L, V]."""
        return self.head(self.final_norm(x_BLD))

    def head(self, x_BLD: jax.Array) -> jax.Array:
        """Features [B, L, D] -> logits float32[B, L, V]."""
        config = self.config
        logits_BLV = self.embed.attend(x_BLD) if config.tie_embeddings else self.unembed(x_BLD)
        if config.logit_scale != 1:
            logits_BLV *= config.logit_scale
        if config.logit_softcap:
            logits_BLV = config.logit_softcap * jnp.tanh(logits_BLV / config.logit_softcap)
        return logits_BLV

    def score_tokens(self, x_BLD: jax.Array) -> jax.Array:
        """Features [B, L, D] -> float32[B, L, C], the outputs of the head of scores at every token."""
        return self.score(x_BLD)


class Group(nn.Module):
    """The blocks of one repeat of the pattern."""

    layers: tuple[Model, ...]

    @nn.compact
    def __call__(self, x_BLD: jax.Array, tokens: tuple[Tokens, ...], cache: None) -> tuple[jax.Array, None]:
        """dtype[B, L, D] -> the same."""
        for i, (layer, seen) in enumerate(zip(self.layers, tokens, strict=True)):
            x_BLD, _ = _block(layer, scanned=layer.scan)(layer, **layer.options.residual, name=str(i))(
                x_BLD, seen, cache
            )
        return x_BLD, None


def tokens_of(
    layers: tuple[Model, ...], tokens_BL: jax.Array, positions_BL: jax.Array, segments_BL: jax.Array | None
) -> dict[Model, Tokens]:
    """Makes the `Tokens` of each kind of layer."""

    def tables(layer: Model) -> Any:
        width = parts.attention(layer).head_dims(layer).rotary
        return parts.position(layer).tables(layer, positions_BL, width)

    return {layer: Tokens(tokens_BL, positions_BL, segments_BL, tables(layer)) for layer in dict.fromkeys(layers)}


def _seen(pattern: tuple[Model, ...], tokens: dict[Model, Tokens], first_R: jax.Array) -> Any:
    """Token information for the layers of a stack; `first_R` are the indices of the first in each repeat."""
    seen = tuple(tokens[layer].replace(layer=first_R + i) for i, layer in enumerate(pattern))
    return seen if len(pattern) > 1 else seen[0]


def stacked_layers(config: Model) -> jax.Array:
    """The index of the first layer in each repeat of the pattern, int32[repeats]."""
    _, pattern, repeats, _ = layout(config)
    return len(config.first_layers) + len(pattern) * jnp.arange(repeats)


def layout(config: Model) -> tuple[tuple[Model, ...], tuple[Model, ...], int, tuple[Model, ...]]:
    """Configs of the first layers, of the pattern, how often it repeats, and of the layers left over."""
    n_first, size = len(config.first_layers), max(1, len(config.pattern))
    repeats, rest = divmod(config.n_layers - n_first, size)
    layers = lambda start, n: tuple(config.layer(start + i) for i in range(n))
    return layers(0, n_first), layers(n_first, size), repeats, layers(config.n_layers - rest, rest)


def place(config: Model, layer: int) -> tuple[tuple[str, ...], int | None]:
    """Path of a layer's parameters in the tree, and its index in their stacks (None: no stack)."""
    n_first, size = len(config.first_layers), max(1, len(config.pattern))
    repeats = (config.n_layers - n_first) // size
    if layer < n_first:
        return (f'first_{layer}',), None
    repeat, i = divmod(layer - n_first, size)
    if repeat == repeats:
        return (f'last_{i}',), None
    return (('layers', str(i)) if size > 1 else ('layers',)), repeat


def layer_params(params: Any, config: Model, layer: int) -> Any:
    """The parameters of one layer, out of its stack."""
    path, index = place(config, layer)
    for name in path:
        params = params[name]
    return params if index is None else jax.tree.map(lambda stack: mesh.take_layer(stack, index), params)


def _block(layer: Model, scanned: bool) -> type[nn.Module]:
    return remat.block(layer, parts.block(layer), scanned=scanned)


def _stack(config: Model, pattern: tuple[Model, ...], repeats: int, **linen) -> nn.Module:
    """The pattern, repeated: `(x, tokens, None) -> (x, None)`."""
    # Each repeat gets the index of its own layer; the rest of what it knows is the same for all.
    seen = tuple(Tokens(nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast, layer=0) for _ in pattern)
    body, argument, options = Group, pattern, {}
    if len(pattern) == 1:
        body, argument = _block(config, scanned=config.scan), pattern[0]
        options = argument.options.residual
    return nn.scan(
        body,
        variable_axes={'params': 0, 'weights': 0, 'vectors': 0, STATS: 0},
        split_rngs={'params': True, 'dropout': True},
        in_axes=(seen if len(pattern) > 1 else seen[0], nn.broadcast),
        length=repeats,
        # Unrolled, every layer is its own piece of the program; the parameters stay stacked.
        unroll=config.scan_unroll if config.scan else repeats,
    )(argument, **options, **linen)


def init_params(model: Transformer, key: jax.Array) -> dict:
    """Fresh parameters, each laid out on the current mesh. Jit it; its shapes are in `jax.eval_shape`."""
    params = _init(model, key)['params']
    if 'layers' not in params:
        return params
    return params | {'layers': jax.tree.map(lambda w: mesh.split_stack(w, model.config.rules), params['layers'])}


def weights_of(model: Transformer) -> dict:
    """The `Weight` of every kernel: a tree like that of the parameters, without norms and biases."""
    return jax.eval_shape(lambda: _init(model, jax.random.key(0)))['weights']


def parameters_of(model: Transformer) -> dict:
    """The `Weight` of every parameter, norms and biases included: a tree like that of the parameters.

    What a part of one's own makes with Linen's `self.param` is missing from it.
    """
    made = jax.eval_shape(lambda: _init(model, jax.random.key(0)))
    flat = traverse_util.flatten_dict(made['weights']) | traverse_util.flatten_dict(made.get('vectors', {}))
    return traverse_util.unflatten_dict(flat)


def _init(model: Transformer, key: jax.Array) -> dict:
    rows = max(1, jax.sharding.get_abstract_mesh().size)  # a batch that every mesh can split
    parts = mesh.shard_count(model.config.rules, 'residual_length')
    return model.init(key, jnp.zeros((rows, 2 * parts if parts > 1 else 1), jnp.int32))


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
