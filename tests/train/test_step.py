import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from tiny import BOS, GPT2, LLAMA, V, packed_tokens, tiny_config, tiny_model, tiny_training

from llm_jax.data.batch import unpack_rows
from llm_jax.train.step import make_eval_step, make_loss

assert_close = lambda a, b: jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6), a, b)


def exact_nll(params, config, tokens):
    """(sum of the negative log-likelihoods, targets that count) in float64."""
    rows = jax.tree.map(np.asarray, unpack_rows(jnp.asarray(tokens), BOS))
    total = 0.0
    for i in range(len(tokens)):
        logits = reference.transformer(params, config, rows.tokens[i], rows.positions[i], rows.segments[i])
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        total -= (rows.loss_weights[i] * log_p[np.arange(len(log_p)), rows.targets[i]]).sum()
    return total, rows.loss_weights.sum()


@pytest.fixture(scope='module')
def trained():
    """One step of a config that has everything: (config, tokens, state before, state after, metrics)."""
    config = tiny_config(
        **GPT2, train__batch_size=4, train__z_loss=0.01, train__ema_decay=0.75, optimizer__clip=0.5,
        optimizer__eps=1e-3,
    )  # fmt: skip
    step, state = tiny_training(config)
    tokens = packed_tokens(4)
    return config, tokens, state, *step(state, tokens)


def test_metrics(trained):
    config, tokens, state, _, metrics = trained
    assert set(metrics) == {'loss', 'grad_norm', 'param_norm', 'learning_rate', 'z_loss'}
    nll, weight = exact_nll(state.params, tiny_model(config).config, tokens)
    np.testing.assert_allclose(metrics['loss'], nll / weight, rtol=1e-5)
    squares = sum((np.asarray(p, np.float64) ** 2).sum() for p in jax.tree.leaves(state.params))
    np.testing.assert_allclose(metrics['param_norm'], squares**0.5, rtol=1e-5)
    np.testing.assert_allclose(metrics['learning_rate'], config.optimizer.learning_rate / 2, rtol=1e-6)
    assert metrics['grad_norm'] > config.optimizer.clip  # as it was before clipping


def test_gradient_is_that_of_the_mean_loss(trained):
    """By finite differences along the gradient itself, of the float32 objective."""
    config, tokens, state, _, metrics = trained
    loss = make_loss(tiny_model(config), config, bos_id=BOS)
    mean = jax.jit(lambda params: (lambda o, s: o / s['weight'])(*loss(params, tokens)))
    grads = jax.jit(jax.grad(mean))(state.params)
    norm = optax.tree.norm(grads)
    np.testing.assert_allclose(metrics['grad_norm'], norm, rtol=1e-5)
    move = lambda eps: jax.tree.map(lambda p, g: p + eps * g / norm, state.params, grads)
    slope = (mean(move(1e-2)) - mean(move(-1e-2))) / 2e-2
    np.testing.assert_allclose(slope, norm, rtol=1e-2)


def test_state_after_a_step(trained):
    _, _, before, after, _ = trained
    assert (int(before.step), int(after.step)) == (0, 1)
    assert_close(after.ema, jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, before.ema, after.params))
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), before.params, after.params)
    # Without rope a bias of the keys adds the same to all scores of a query: no effect.
    assert moved['layers']['attention']['k'].pop('bias') < 1e-6
    assert min(jax.tree.leaves(moved)) > 1e-6  # every other parameter learns


def test_no_ema_unless_asked():
    step, state = tiny_training(tiny_config())
    after, metrics = jax.eval_shape(step, state, packed_tokens(8))
    assert after.ema is None
    assert 'z_loss' not in metrics


def test_accumulation_equals_the_large_batch_with_uneven_weights():
    family = LLAMA | {'train__batch_size': 8, 'train__z_loss': 0.01, 'optimizer__eps': 1e-3}
    tokens = packed_tokens(8)
    tokens[1, 3:], tokens[5, 2:], tokens[6] = -1, -1, -1  # micro-batches of very different weight
    results = []
    for n in (1, 4):
        step, state = tiny_training(tiny_config(**family, train__grad_accumulation=n))
        results.append(step(state, tokens))
    assert_close(*results)


def test_dropout_is_a_function_of_seed_and_step():
    tokens = packed_tokens(8)
    config = tiny_config(dropout=0.3, train__grad_accumulation=2)
    step, state = tiny_training(config)
    loss = lambda state: float(step(state, tokens)[1]['loss'])
    assert loss(state) == loss(state)
    assert abs(loss(state) - loss(state.replace(step=jnp.ones((), jnp.int32)))) > 1e-3


def test_dropout_differs_between_micro_batches():
    """The same rows in both micro-batches: with one mask for both, halves would be the same."""
    tokens = np.repeat(packed_tokens(1, padding=False), 2, axis=0)
    config = tiny_config(dropout=0.3, train__batch_size=2, train__grad_accumulation=2)
    model = tiny_model(config)
    _, state = tiny_training(config)
    loss = make_loss(model, config, bos_id=BOS)
    key = jax.random.fold_in(jax.random.key(config.seed), 0)
    parts = jax.jit(lambda i: loss(state.params, tokens[:1], jax.random.fold_in(key, i))[1])
    first, second = parts(0), parts(1)
    assert abs(first['nll'] - second['nll']) > 1e-2
    _, metrics = tiny_training(config)[0](state, tokens)
    expected = (first['nll'] + second['nll']) / (first['weight'] + second['weight'])
    np.testing.assert_allclose(metrics['loss'], expected, rtol=1e-5)


def test_evaluation_counts_bytes_of_the_targets_that_count():
    config = tiny_config(**LLAMA, dropout=0.3)
    model = tiny_model(config)
    _, state = tiny_training(config)
    tokens = packed_tokens(4)
    sizes = np.random.default_rng(0).integers(0, 9, V)
    sums = jax.jit(make_eval_step(model, config, bos_id=BOS, token_bytes=sizes))(state.params, tokens)
    nll, weight = exact_nll(state.params, model.config, tokens)
    counted = sum(sizes[t] for row in tokens for i, t in enumerate(row[1:]) if t >= 0 and row[i] >= 0)
    np.testing.assert_allclose(sums['nll'], nll, rtol=1e-5)
    assert (sums['weight'], sums['bytes']) == (weight, counted)


def test_step_touches_nothing_but_the_device():
    step, state = tiny_training(tiny_config(dropout=0.1, train__grad_accumulation=2, train__loss_chunk=16))
    tokens = jax.device_put(packed_tokens(8))
    state, _ = jax.block_until_ready(step(state, tokens))
    with jax.transfer_guard('disallow'):
        jax.block_until_ready(step(state, tokens))


def test_a_tiny_model_learns_a_batch_by_heart():
    config = tiny_config(**LLAMA, optimizer__learning_rate=1e-2, schedule__name='constant')
    step, state = tiny_training(config)
    tokens = jax.device_put(packed_tokens(2, seed=3))
    losses = []
    for _ in range(150):
        state, metrics = step(state, tokens)
        losses.append(metrics['loss'])
    assert losses[0] > 4
    assert losses[-1] < 0.5
