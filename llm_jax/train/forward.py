"""From a batch to features, and from features to losses and log-probabilities: what objectives are made of."""

from typing import Any

import jax

from llm_jax.config.schema import Train
from llm_jax.data.batch import Batch
from llm_jax.dist import mesh
from llm_jax.nn.moe import STATS
from llm_jax.nn.transformer import Transformer
from llm_jax.train import losses


def run_features(
    model: Transformer, params: Any, batch: Batch, dropout_key: jax.Array | None = None
) -> tuple[jax.Array, Any]:
    """The features of a batch, dtype[B, L, D], and the reports of its routers, {} without any.

    Args:
      model: the Transformer.
      params: its parameters.
      batch: from `data.batch.split_length`.
      dropout_key: decides the dropout; None means that there is none.
    """
    x_BLD, reports = model.apply(
        {'params': params},
        batch.tokens,
        batch.positions,
        batch.segments,
        method='features',
        rngs=None if dropout_key is None else {'dropout': dropout_key},
        mutable=[STATS],
    )
    return x_BLD, reports.get(STATS, {})


def sum_cross_entropy(
    model: Transformer, params: Any, x_BLD: jax.Array, batch: Batch, train: Train
) -> tuple[jax.Array, jax.Array]:
    """(objective with z-loss, negative log-likelihood), each summed over the weighted targets of a batch."""
    head, head_params = head_of(model, params)
    chunk = slice_length(model, x_BLD, train.loss_chunk)
    options = {'z_loss': train.z_loss, 'chunk': chunk, 'gather_once': train.gather_head_once}
    return losses.cross_entropy(head, head_params, x_BLD, batch.targets, batch.loss_weights, **options)


def target_log_probs(
    model: Transformer,
    params: Any,
    x_BLD: jax.Array,
    targets_BL: jax.Array,
    *,
    loss_chunk: int = 0,
    gather_head_once: bool = True,
    temperature: float = 1.0,
    vocab_size: int = 0,
) -> jax.Array:
    """Log-probability of each target given the features, float32[B, L]; see `losses.token_log_probs`.

    Args:
      model: the Transformer.
      params: its parameters.
      x_BLD: features, from `run_features`.
      targets_BL: int[B, L].
      loss_chunk: as `train.loss_chunk` of the config.
      gather_head_once: as `train.gather_head_once` of the config.
      temperature: of the distribution.
      vocab_size: tokens of the tokenizer, if rows of the vocabulary beyond them have no probability; 0 means all.
    """
    head, head_params = head_of(model, params)
    options = {'gather_once': gather_head_once, 'temperature': temperature, 'vocab_size': vocab_size}
    chunk = slice_length(model, x_BLD, loss_chunk)
    return losses.token_log_probs(head, head_params, x_BLD, targets_BL, chunk=chunk, **options)


def per_token_nll(
    model: Transformer, params: Any, batch: Batch, *, loss_chunk: int = 0, gather_head_once: bool = True
) -> jax.Array:
    """Negative log-likelihood of each target of a batch, float32[B, L] in nats, whatever its weight.

    Args:
      model: the Transformer.
      params: its parameters.
      batch: from `data.batch.split_length`; on one device from `unpack_rows`.
      loss_chunk: as `train.loss_chunk` of the config.
      gather_head_once: as `train.gather_head_once` of the config.
    """
    x_BLD, _ = run_features(model, params, batch)
    options = {'loss_chunk': loss_chunk, 'gather_head_once': gather_head_once}
    return -target_log_probs(model, params, x_BLD, batch.targets, **options)


def head_of(model: Transformer, params: Any) -> tuple[losses.Head, Any]:
    """The head as a function of the parameters that it reads, and these."""
    name = 'embed' if model.config.tie_embeddings else 'unembed'

    def head(params: Any, x_BLD: jax.Array) -> jax.Array:
        return model.apply({'params': params}, x_BLD, method='head')

    return head, {name: params[name]}


def slice_length(model: Transformer, x_BLD: jax.Array, loss_chunk: int) -> int:
    """Positions of each row, over all devices that share it, with logits in memory at once."""
    (B, L, _), rules = x_BLD.shape, model.config.rules
    # Devices that share the length of a row each take slices of their part of it.
    parts = mesh.shard_count(rules, 'residual_length')
    n_rows = B // mesh.batch_shard_count(rules) * parts // mesh.shard_count(rules, 'length')
    n_logits = model.config.vocab_size // mesh.shard_count(rules, 'vocab')
    return parts * losses.chunk_length(L // parts, n_rows, loss_chunk, n_logits)
