"""Counting parameters and FLOPs."""

import dataclasses
import math
from typing import Any

import jax

from llm_jax.config import parts
from llm_jax.config.schema import Model


@dataclasses.dataclass(frozen=True)
class Counts:
    """Parameters of a model.

    Attributes:
      total: all of them.
      active: those that one token meets: of a mixture of experts, top_k of the experts.
      embedding: those that are looked up.
      matmul: active weights that multiply an activation; a tied embedding is one, as the output head.
    """

    total: int
    active: int
    embedding: int
    matmul: int


def count(config: Model, shapes: Any, weights: Any) -> Counts:
    """Counts the parameters of a model by what each weight says of itself.

    Args:
      config: with `vocab_size` filled in.
      shapes: of the parameters, as from `jax.eval_shape`.
      weights: the tree of `Weight`s from `weights_of`.
    """
    total = active = embedding = matmul = 0
    known = {jax.tree_util.keystr(path): weight for path, weight in _leaves(weights)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        size, weight = math.prod(leaf.shape), known.get(jax.tree_util.keystr(path))
        total += size
        # Biases of experts are few; they count as if every token met them.
        active += round(size * weight.active_fraction) if weight else size
        embedding += size if weight and weight.lookup else 0
        matmul += round(size * weight.active_fraction) if weight and not weight.lookup else 0
    if config.tie_embeddings:
        matmul += config.vocab_size * config.d_model
    return Counts(total, active, embedding, matmul)


def _leaves(weights: Any) -> list[tuple[tuple, Any]]:
    is_weight = lambda node: not isinstance(node, dict)  # a Weight is a pytree without leaves
    return jax.tree_util.tree_leaves_with_path(weights, is_leaf=is_weight)


def flops_per_token(config: Model, counts: Counts, seq_len: int) -> float:
    """Training FLOPs per token, forward and backward.

    6 N + 12 n_layers H K L, the convention of PaLM (Chowdhery et al. 2022, appendix
    B), which makes MFU comparable between codebases:

    - N is the number of weights that multiply an activation: 2 FLOPs forward, 4 backward
      for each. The embedding is a lookup and counts nothing; the output head counts V D
      also when it is tied to the embedding; of experts only those count that a token
      goes to.
    - Attention scores and their use take 2 H K L each forward, twice that backward.
      The full L x L square is counted, although a causal kernel may skip half of it; of
      a sliding window its width counts. Grouped keys change the weights, not this term.
    - An attention part of another kind says its products itself (`attention_products`).
    - Norms, biases, activations and the softmax are left out, and so is what remat
      computes a second time: MFU is about useful work.

    Args:
      config: of the model.
      counts: from `count`.
      seq_len: tokens L of one row.
    """
    attention = 0
    for layer in (config.layer(i) for i in range(config.n_layers)):
        attention += 6 * parts.attention(layer).attention_products(layer, seq_len)
    return 6.0 * counts.matmul + attention


def frozen_flops_per_token(config: Model, trained: Any, frozen: Any, weights: Any, seq_len: int) -> float:
    """Training FLOPs per token that `flops_per_token` counts and a run without some gradients has not.

    A weight that is not trained has no gradient: 2 FLOPs less. If nothing below it is trained either, no gradient
    passes through it: 2 more, and those of the attention there.

    Args:
      config: of the model.
      trained: shapes of the parameters that are trained.
      frozen: of the others; None if there are none.
      weights: the tree of `Weight`s from `weights_of`.
      seq_len: tokens L of one row.
    """
    if frozen is None:
        return 0.0
    known = {jax.tree_util.keystr(path): weight for path, weight in _leaves(weights)}
    lowest = min(_height(path) for path, _ in jax.tree_util.tree_leaves_with_path(trained))
    saved = 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(frozen):
        weight = known.get(jax.tree_util.keystr(path))
        if weight and weight.lookup and config.tie_embeddings and path[0].key == 'embed':  # which is the head, too
            saved += 2 * config.vocab_size * config.d_model
        elif weight and not weight.lookup:
            size = math.prod(leaf.shape) * weight.active_fraction
            saved += (2 if _height(path) >= lowest else 4) * size
    if lowest == _HEAD:  # nothing takes the gradient of its input
        saved += 2 * config.vocab_size * config.d_model
    params = {*trained, *frozen}
    before, after = (sum(name.startswith(kind) for name in params) for kind in ('first_', 'last_'))
    for i in range(config.n_layers):
        height = (1, i) if i < before else (2, 0) if i < config.n_layers - after else (3, i - config.n_layers + after)
        if height < lowest:
            layer = config.layer(i)
            saved += 4 * parts.attention(layer).attention_products(layer, seq_len)
    return saved


_HEAD = (5, 0)


def _height(path: tuple) -> tuple[int, int]:
    """Orders parameters from the embedding to the head; layers that are stacked are as one."""
    kind, _, index = path[0].key.partition('_')
    if kind in ('first', 'last') and index.isdigit():
        return (1 if kind == 'first' else 3), int(index)
    return {'layers': 2, 'final_norm': 4, 'unembed': _HEAD[0], 'score': _HEAD[0]}.get(path[0].key, 0), 0
