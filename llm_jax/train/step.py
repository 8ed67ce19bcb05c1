"""One optimizer step, and one evaluation batch, as pure functions.

`make_train_step` is the whole step; the functions below it are its parts, in the order in which they run.
Shapes: B batch, L length.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from llm_jax.config.schema import Config, ConfigError, Model
from llm_jax.data.batch import Batch, split_rows, take_micro_batch
from llm_jax.nn.moe import rebalanced, router_losses
from llm_jax.nn.transformer import Transformer
from llm_jax.train.objectives import Objective, Sums, make_objective
from llm_jax.train.state import State
from llm_jax.train.trainable import merge_params, select_like

Metrics = dict[str, jax.Array]
Schedule = Callable[[jax.Array], jax.Array]


def make_train_step(
    model: Transformer,
    config: Config,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    *,
    bos_id: int,
) -> Callable[..., tuple[State, Metrics]]:
    """`step(state, rows, frozen=None) -> (state, metrics)`, one pure function.

    The gradient is that of the objective's loss over its normaliser, both summed over the whole batch, however many
    micro-batches it is split into. `rows` is what the objective's `step_shapes` says, int[B, L+1] in pre-training;
    `frozen` has the parameters that are not trained, as `trainable.split_params` gives them.

    Raises:
      ConfigError: `train.reproducible`, whose step is not one function.
    """
    if config.train.reproducible:
        raise ConfigError(
            'train.reproducible = True: its step is made of several programs, one device after the other, so it is not '
            'available as one; set it to False here'
        )
    objective = make_objective(model, config, bos_id=bos_id)

    def step(state: State, rows: Any, frozen: Any = None) -> tuple[State, Metrics]:
        batch = objective.add_statistics(objective.make_batch(rows))
        key = dropout_key(config, state.step)
        grads, sums = sum_gradients(objective, state.params, frozen, batch, key)
        return update_state(objective, optimizer, schedule, state, frozen, grads, sums)

    return step


def dropout_key(config: Config, step: jax.Array) -> jax.Array | None:
    """The key of a step's dropout; None where there is none."""
    return jax.random.fold_in(jax.random.key(config.seed), step) if has_dropout(config.model) else None


def has_dropout(model: Model) -> bool:
    """Whether anything in the model is dropped in training: activations, or inputs of adapters."""
    return model.dropout > 0 or (model.adapter.kind != 'none' and model.adapter.dropout > 0)


def sum_gradients(
    objective: Objective, params: Any, frozen: Any, batch: Batch, key: jax.Array | None
) -> tuple[Any, Sums]:
    """(gradients of `params`, sums) over a batch, one micro-batch after the other."""
    train = objective.config.train
    n_micro, dtype = train.grad_accumulation, jnp.dtype(train.accumulation_dtype)
    if n_micro == 1:
        return micro_gradients(objective, params, frozen, batch, key)
    micro_batches = split_rows(batch, n_micro)

    def gradients(i: jax.Array) -> tuple[Any, Sums]:
        part_key = None if key is None else jax.random.fold_in(key, i)
        return micro_gradients(objective, params, frozen, take_micro_batch(micro_batches, i), part_key)

    def narrow(part: tuple[Any, Sums]) -> tuple[Any, Sums]:
        return jax.tree.map(lambda g: g.astype(dtype), part[0]), part[1]

    def add(total: tuple[Any, Sums], i: jax.Array) -> tuple[tuple[Any, Sums], None]:
        # Added in float32, also where the sum is kept in less.
        return narrow(jax.tree.map(jnp.add, total, gradients(i))), None

    shapes = jax.eval_shape(lambda: narrow(gradients(jnp.zeros((), jnp.int32))))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding), shapes)
    return jax.lax.scan(add, zeros, jnp.arange(n_micro))[0]


def micro_gradients(
    objective: Objective, params: Any, frozen: Any, batch: Batch, key: jax.Array | None
) -> tuple[Any, Sums]:
    """(gradients of `params`, sums) over a micro-batch; sums['objective'] is that of the objective's loss."""

    def loss(params: Any) -> tuple[jax.Array, Sums]:
        return balanced_loss(objective, merge_params(params, frozen), batch, key)

    (_, sums), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return grads, sums


def balanced_loss(objective: Objective, params: Any, batch: Batch, key: jax.Array | None) -> tuple[jax.Array, Sums]:
    """The objective's loss and the losses that balance its routers, which are taken of each micro-batch by itself."""
    total, sums = objective.loss(params, batch, key)
    sums = {**sums, 'objective': total}
    if 'routers' in sums:
        moe = objective.model.config.moe
        losses = router_losses(moe, sums['routers'])
        aux_weight = moe.aux_weight if moe.balance == 'aux' else 0.0
        balance = aux_weight * losses['router_aux'] + moe.z_weight * losses['router_z']
        total += objective.normaliser(sums) * balance
    return total, sums


def update_state(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    state: State,
    frozen: Any,
    grads: Any,
    sums: Sums,
) -> tuple[State, Metrics]:
    """The state after a step, and its metrics, from the gradients and sums of the whole batch."""
    moe, train = objective.model.config.moe, objective.config.train
    normaliser = objective.normaliser(sums)
    grads = jax.tree.map(lambda g: g.astype(jnp.float32) / normaliser, grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    if 'routers' in sums and moe.balance == 'bias':
        moved = rebalanced(moe, merge_params(params, frozen), sums['routers'])
        params = select_like(moved, params)
    ema = state.ema
    if ema is not None:
        decay = train.ema_decay
        ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, params)
    metrics = objective.metrics(sums) | {
        'grad_norm': optax.tree.norm(grads),
        'param_norm': optax.tree.norm(state.params),
        'learning_rate': schedule(state.step),
    }
    if 'routers' in sums:
        metrics |= router_losses(moe, sums['routers'])
    return State(state.step + 1, params, opt_state, ema), metrics


def make_loss(model: Transformer, config: Config, *, bos_id: int) -> Callable[..., tuple[jax.Array, Sums]]:
    """`loss(params, rows, dropout_key=None) -> (objective with router losses, sums)` of one batch as a whole."""
    objective = make_objective(model, config, bos_id=bos_id)

    def loss(params: Any, rows: Any, dropout_key: jax.Array | None = None) -> tuple[jax.Array, Sums]:
        batch = objective.add_statistics(objective.make_batch(rows))
        return balanced_loss(objective, params, batch, dropout_key)

    return loss


def make_eval_step(
    model: Transformer, config: Config, *, bos_id: int, token_bytes: jax.Array
) -> Callable[[Any, Any], Sums]:
    """`evaluate(params, rows) -> sums` over a batch; in pre-training {'nll', 'weight', 'bytes'} of int[B, L+1].

    Args:
      model: the Transformer.
      config: the experiment.
      bos_id: the token that begins every document.
      token_bytes: int[V], bytes of text that each token stands for.
    """
    objective = make_objective(model, config, bos_id=bos_id)

    def evaluate(params: Any, rows: Any) -> Sums:
        return objective.eval_sums(params, rows, token_bytes)

    return evaluate
