"""One optimizer step, and one evaluation batch, as pure functions."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from llm_jax.config.schema import Config, ConfigError
from llm_jax.dist import mesh
from llm_jax.nn.moe import STATS, rebalanced, router_losses
from llm_jax.nn.transformer import Transformer
from llm_jax.ops import zigzag
from llm_jax.train import reproducible
from llm_jax.train.losses import Rows, chunk_length, cross_entropy, unpack
from llm_jax.train.state import State

Metrics = dict[str, jax.Array]


def laid_out(rows: Rows, rules: tuple) -> Rows:
    """Rows as the model reads them on the current mesh: see `zigzag`. Segments stay whole."""
    split = lambda x: zigzag.split(x, rules)
    changed = {name: split(getattr(rows, name)) for name in ('inputs', 'targets', 'weights', 'positions')}
    return dataclasses.replace(rows, **changed)


def make_loss(model: Transformer, config: Config, *, bos_id: int) -> Callable[..., tuple[jax.Array, Metrics]]:
    """`loss(params, tokens int[B, L+1], dropout_key=None) -> (objective, sums)`.

    The objective and the sums `nll` and `weight` are totals over the batch's tokens, not
    means, so that micro-batches, evaluation batches and hosts add up exactly. `routers`
    is what the routers of a mixture of experts reported, also in sums; what balances
    them is taken of each micro-batch by itself.
    """
    moe, rules = model.config.moe, model.config.rules
    head_names = ('embed',) if model.config.tie_embeddings else ('unembed',)

    def head(params: Any, x_BLD: jax.Array) -> jax.Array:
        return model.apply({'params': params}, x_BLD, method='head')

    def loss(params: Any, tokens: jax.Array, dropout_key: jax.Array | None = None) -> tuple[jax.Array, Metrics]:
        rows = laid_out(unpack(tokens, bos_id), rules)
        x_BLD, reports = model.apply(
            {'params': params},
            rows.inputs,
            rows.positions,
            rows.segments,
            method='features',
            rngs=None if dropout_key is None else {'dropout': dropout_key},
            mutable=[STATS],
        )
        B, L = rows.inputs.shape
        # Devices that share the length of a row each take slices of their part of it.
        parts = mesh.shard_count(rules, 'residual_length')
        n_rows = B // mesh.batch_shard_count(rules) * parts // mesh.shard_count(rules, 'length')
        n_logits = model.config.vocab_size // mesh.shard_count(rules, 'vocab')
        chunk = parts * chunk_length(L // parts, n_rows, config.train.loss_chunk, n_logits)
        head_params = {name: params[name] for name in head_names}
        options = {'z_loss': config.train.z_loss, 'chunk': chunk, 'once': config.train.gather_head_once}
        objective, nll = cross_entropy(head, head_params, x_BLD, rows, **options)
        sums = {'nll': nll, 'weight': jnp.sum(rows.weights)}
        if routers := reports.get(STATS):
            losses = router_losses(moe, routers)
            aux_weight = moe.aux_weight if moe.balance == 'aux' else 0.0
            balance = aux_weight * losses['router_aux'] + moe.z_weight * losses['router_z']
            objective += sums['weight'] * balance
            sums['routers'] = routers
        return objective, sums

    return loss


def jit_train_step(
    model: Transformer,
    config: Config,
    optimizer: optax.GradientTransformation,
    schedule: Callable[[jax.Array], jax.Array],
    *,
    bos_id: int,
    compiler_options: dict[str, Any] | None = None,
) -> Callable[[State, jax.Array], tuple[State, Metrics]]:
    """`make_train_step`, jitted with the state donated; with `train.reproducible`, `reproducible.make_step`."""
    if not config.train.reproducible:
        step = make_train_step(model, config, optimizer, schedule, bos_id=bos_id)
        return jax.jit(step, donate_argnums=0, compiler_options=compiler_options)
    gradients, update = make_gradients(model, config, bos_id=bos_id), make_update(model, config, optimizer, schedule)

    def of_shard(state: State, tokens: jax.Array, index: jax.Array) -> tuple[Any, Metrics]:
        key = dropout_key(config, state.step)
        return gradients(state.params, tokens, None if key is None else jax.random.fold_in(key, index))

    return reproducible.make_step(of_shard, update)


def make_train_step(
    model: Transformer,
    config: Config,
    optimizer: optax.GradientTransformation,
    schedule: Callable[[jax.Array], jax.Array],
    *,
    bos_id: int,
) -> Callable[[State, jax.Array], tuple[State, Metrics]]:
    """`step(state, tokens int[B, L+1]) -> (state, metrics)`, one pure function.

    The gradient is that of the mean loss over all weighted tokens of the batch, however
    many micro-batches it is split into.

    Raises:
      ConfigError: `train.reproducible`, whose step is not one function.
    """
    if config.train.reproducible:
        raise ConfigError(
            'train.reproducible = True: its step is made of several programs, one device after the other, so it is not '
            'to be had as one; set it to False here'
        )
    gradients, update = make_gradients(model, config, bos_id=bos_id), make_update(model, config, optimizer, schedule)
    n_micro = config.train.grad_accumulation

    def accumulate(params: Any, tokens: jax.Array, key: jax.Array | None) -> tuple[Any, Metrics]:
        # Rows stay on the devices that hold them: micro-batch i takes every n-th row.
        micro = tokens.reshape(tokens.shape[0] // n_micro, n_micro, -1, out_sharding=mesh.spec(
            model.config.rules, ('batch', None, None)))  # fmt: skip

        dtype = jnp.dtype(config.train.accumulation_dtype)

        def narrowed(part: tuple[Any, Metrics]) -> tuple[Any, Metrics]:
            return jax.tree.map(lambda g: g.astype(dtype), part[0]), part[1]

        def body(total: Any, i: jax.Array) -> tuple[Any, None]:
            part_key = None if key is None else jax.random.fold_in(key, i)
            rows = jax.lax.dynamic_index_in_dim(micro, i, axis=1, keepdims=False)
            # Added in float32, also where the sum is kept in less.
            total = jax.tree.map(jnp.add, total, gradients(params, rows, part_key))
            return narrowed(total), None

        one = jax.eval_shape(lambda: narrowed(gradients(params, micro[:, 0], key)))
        start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding), one)
        return jax.lax.scan(body, start, jnp.arange(n_micro))[0]

    compute = gradients if n_micro == 1 else accumulate

    def step(state: State, tokens: jax.Array) -> tuple[State, Metrics]:
        return update(state, compute(state.params, tokens, dropout_key(config, state.step)))

    return step


def dropout_key(config: Config, step: jax.Array) -> jax.Array | None:
    """What decides a step's dropout, where there is any."""
    return jax.random.fold_in(jax.random.key(config.seed), step) if config.model.dropout > 0 else None


def make_gradients(model: Transformer, config: Config, *, bos_id: int) -> Callable[..., tuple[Any, Metrics]]:
    """`gradients(params, tokens int[B, L+1], dropout_key) -> (gradients, sums)`, totals as in `make_loss`."""
    loss = make_loss(model, config, bos_id=bos_id)

    def gradients(params: Any, tokens: jax.Array, key: jax.Array | None) -> tuple[Any, Metrics]:
        (objective, sums), grads = jax.value_and_grad(loss, has_aux=True)(params, tokens, key)
        return grads, {'objective': objective, **sums}

    return gradients


def make_update(
    model: Transformer,
    config: Config,
    optimizer: optax.GradientTransformation,
    schedule: Callable[[jax.Array], jax.Array],
) -> Callable[[State, tuple[Any, Metrics]], tuple[State, Metrics]]:
    """`update(state, (gradients, sums)) -> (state, metrics)`, from what `make_gradients` says of the whole batch."""
    moe = model.config.moe

    def update(state: State, summed: tuple[Any, Metrics]) -> tuple[State, Metrics]:
        grads, sums = summed
        grads = jax.tree.map(lambda g: g.astype(jnp.float32) / sums['weight'], grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if 'routers' in sums and moe.balance == 'bias':
            params = rebalanced(moe, params, sums['routers'])
        ema = state.ema
        if ema is not None:
            decay = config.train.ema_decay
            ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, params)
        metrics = {
            'loss': sums['nll'] / sums['weight'],
            'grad_norm': optax.tree.norm(grads),
            'param_norm': optax.tree.norm(state.params),
            'learning_rate': schedule(state.step),
        }
        if config.train.z_loss:
            metrics['z_loss'] = (sums['objective'] - sums['nll']) / sums['weight']
        if 'routers' in sums:
            metrics |= router_losses(moe, sums['routers'])
        return State(state.step + 1, params, opt_state, ema), metrics

    return update


def make_eval_step(
    model: Transformer, config: Config, *, bos_id: int, token_bytes: jax.Array
) -> Callable[[Any, jax.Array], Metrics]:
    """`evaluate(params, tokens int[B, L+1]) -> {'nll', 'weight', 'bytes'}`, sums over the batch.

    Args:
      model: the Transformer.
      config: the experiment.
      bos_id: the token that begins every document.
      token_bytes: int[V], how many bytes of text each token stands for.
    """
    loss = make_loss(model, config, bos_id=bos_id)

    def evaluate(params: Any, tokens: jax.Array) -> Metrics:
        _, sums = loss(params, tokens)
        sums.pop('routers', None)
        rows = laid_out(unpack(tokens, bos_id), model.config.rules)
        spec = mesh.spec(model.config.rules, mesh.TOKENS)
        sizes = jnp.asarray(token_bytes, jnp.float32).at[rows.targets].get(out_sharding=spec)
        return {**sums, 'bytes': jnp.sum(sizes * rows.weights)}

    return evaluate
