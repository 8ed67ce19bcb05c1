import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from tiny import packed_tokens, tiny_config, tiny_training

from llm_jax.config.schema import ConfigError
from llm_jax.nn.moe import STATS, MixtureOfExperts, rebalanced, route, router_losses

CASES = {
    'mixtral': {'score': 'softmax_top'},
    'qwen': {'score': 'softmax', 'normalize': True, 'n_shared': 1, 'shared_gate': True},
    'deepseek v2': {
        'score': 'softmax', 'normalize': False, 'scale': 1.7, 'n_groups': 4, 'top_groups': 2, 'n_shared': 2,
    },
    'deepseek v3': {
        'score': 'sigmoid', 'n_groups': 4, 'top_groups': 2, 'group_score': 'top2', 'balance': 'bias', 'scale': 2.5,
    },
    'plain experts': {'activation': 'gelu', 'top_k': 1},
    'clipped': {'activation': 'swiglu_clipped', 'top_k': 4},
}  # fmt: skip


def moe_config(bias=False, **moe):
    fields = {f'model__moe__{name}': value for name, value in ({'n_experts': 8, 'top_k': 3, 'd_ff': 24} | moe).items()}
    return tiny_config(feed_forward='moe', bias=bias, **fields).model


@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('name', CASES)
def test_equals_every_expert_on_every_token(name, bias):
    config = moe_config(bias, **CASES[name])
    module, rng = MixtureOfExperts(config), np.random.default_rng(0)
    x = rng.normal(size=(2, 9, 32)).astype(np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)['params']
    params = jax.tree.map(lambda leaf: (0.5 * rng.normal(size=leaf.shape)).astype(np.float32), shapes)
    y = jax.jit(lambda p, x: module.apply({'params': p}, jnp.asarray(x)))(params, x)
    exactly = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
    exact = reference.mixture(config.moe, x.reshape(-1, 32).astype(np.float64), exactly, config.moe.activation)
    np.testing.assert_allclose(np.reshape(y, (-1, 32)), exact, rtol=1e-4, atol=1e-4)


def test_an_expert_that_nobody_chooses_and_one_that_all_choose():
    config = moe_config(top_k=1)
    module, rng = MixtureOfExperts(config), np.random.default_rng(0)
    x = np.abs(rng.normal(size=(1, 6, 32))).astype(np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)['params']
    params = jax.tree.map(lambda leaf: (0.5 * rng.normal(size=leaf.shape)).astype(np.float32), shapes)
    params['router']['kernel'][:] = 0
    params['router']['kernel'][:, 5] = 1
    run = jax.jit(jax.value_and_grad(lambda p: jnp.sum(jnp.square(module.apply({'params': p}, jnp.asarray(x))))))
    value, grads = run(params)
    expert = {part: {'kernel': params[part]['kernel'][5].astype(np.float64)} for part in ('gate', 'up', 'down')}
    np.testing.assert_allclose(value, np.sum(reference.feed_forward('swiglu', x[0], expert) ** 2), rtol=1e-4)
    assert [bool(np.any(np.asarray(g))) for g in grads['down']['kernel']] == [e == 5 for e in range(8)]


def test_balance_changes_the_choice_and_not_the_weights():
    moe = moe_config(score='sigmoid', balance='bias', normalize=False, top_k=2).moe
    logits = np.random.default_rng(0).normal(size=(1, 5, 8)).astype(np.float32)
    lift = np.zeros(8, np.float32)
    lift[3] = 10
    chosen, weights = route(moe, jnp.asarray(logits), jnp.asarray(lift))
    assert np.all(np.asarray(chosen)[..., 0] == 3)
    np.testing.assert_allclose(weights[..., 0], 1 / (1 + np.exp(-logits[..., 3])), rtol=1e-5)


def test_losses_by_hand():
    moe = moe_config(n_experts=2, top_k=1).moe
    stats = {'layers': {'feed_forward': {'stats': {
        'load': np.array([[3.0, 1.0], [2.0, 2.0]]), 'prob': np.array([[2.5, 1.5], [1.0, 3.0]]),
        'z': np.array([8.0, 4.0]), 'tokens': np.array([4.0, 4.0]),
    }}}}  # fmt: skip
    losses = router_losses(moe, stats)
    layer_0 = 2 * (3 / 4 * 2.5 / 4 + 1 / 4 * 1.5 / 4)
    np.testing.assert_allclose(losses['router_aux'], (layer_0 + 1.0) / 2)
    np.testing.assert_allclose(losses['router_z'], 1.5)
    np.testing.assert_allclose(losses['router_peak'], (1.5 + 1.0) / 2)


def test_loss_free_balance_moves_against_the_load():
    moe = moe_config(balance='bias', bias_update_rate=0.1).moe
    params = {'layers': {'feed_forward': {'balance': np.zeros((1, 3)), 'up': 'untouched'}}}
    stats = {'layers': {'feed_forward': {'stats': {'load': np.array([[5.0, 2.0, 2.0]])}}}}
    moved = rebalanced(moe, params, stats)['layers']['feed_forward']
    np.testing.assert_allclose(moved['balance'], [[-0.1, 0.1, 0.1]])
    assert moved['up'] == 'untouched'
    assert not params['layers']['feed_forward']['balance'].any()


@pytest.mark.parametrize('balance', ['aux', 'bias'])
def test_training_spreads_the_load(balance):
    """Routers that begin by sending almost everything to one expert come to use the others."""
    config = tiny_config(
        feed_forward='moe', bias=True, model__moe__n_experts=4, model__moe__top_k=1, model__moe__balance=balance,
        model__moe__aux_weight=1.0, model__moe__bias_update_rate=0.05, model__moe__score='softmax',
        optimizer__learning_rate=0.01, train__duration=60,
    )  # fmt: skip
    step, state = tiny_training(config)
    state.params['layers']['feed_forward']['router']['bias'] += np.array([4.0, 0, 0, 0], np.float32)
    peaks = []
    for i in range(40):
        state, metrics = step(state, packed_tokens(8, seed=i))
        peaks.append(float(metrics['router_peak']))
    assert np.mean(peaks[-5:]) < np.mean(peaks[:3]) - 0.3, peaks


def test_accumulated_micro_batches_report_the_sum_of_their_loads():
    results = []
    for n in (1, 4):
        config = tiny_config(feed_forward='moe', train__grad_accumulation=n, model__moe__aux_weight=0.0)
        step, state = tiny_training(config)
        new, metrics = step(state, packed_tokens(8))
        results.append(({name: metrics[name] for name in ('loss', 'router_aux', 'router_peak')}, new.params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), *results)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'top_k': 9}, 'model.moe.top_k = 9'),
        ({'n_groups': 3}, 'model.moe.n_groups = 3'),
        ({'n_groups': 4, 'top_groups': 1, 'top_k': 3}, 'hold only 2 experts'),
        ({'score': 'soft'}, "model.moe.score = 'soft'"),
    ],
)
def test_what_cannot_be(fields, message):
    with pytest.raises(ConfigError, match=message):
        moe_config(**fields)


def test_nothing_is_reported_unless_asked():
    module = MixtureOfExperts(moe_config())
    x = np.zeros((1, 2, 32), np.float32)
    variables = module.init(jax.random.key(0), x)
    _, reports = module.apply({'params': variables['params']}, x, mutable=[STATS])
    assert reports[STATS]['stats']['load'].sum() == 2 * 3
    assert isinstance(module.apply({'params': variables['params']}, x), jax.Array)
