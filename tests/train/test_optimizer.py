import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import GPT2, LLAMA, random_params, tiny_config, tiny_model

from llm_jax.config import schema
from llm_jax.config.schema import ConfigError
from llm_jax.init import Weight
from llm_jax.nn.transformer import parameters_of
from llm_jax.train.optimizer import SCHEDULES, Span, decay_mask, make_optimizer, make_schedule

PEAK, TOTAL, WARMUP, DECAY, FLOOR = 2e-3, 100, 10, 20, 0.1


def rates(name, *, warmup=WARMUP, total=TOTAL, decay=DECAY, floor=FLOOR):
    schedule = make_schedule(schema.Schedule(name=name), PEAK, Span(total, warmup, decay, floor))
    return np.asarray(jax.vmap(schedule)(jnp.arange(total + 5)), np.float64) / PEAK


@pytest.mark.parametrize('name', SCHEDULES)
def test_warmup_is_a_straight_line_to_the_peak(name):
    np.testing.assert_allclose(rates(name)[:WARMUP], np.arange(1, WARMUP + 1) / WARMUP, rtol=1e-5)


@pytest.mark.parametrize(
    ('name', 'warmup'), [(n, w) for n in SCHEDULES for w in (0, 1, WARMUP) if w or n != 'inverse_sqrt']
)
def test_never_above_the_peak_never_rising_after_the_warmup(name, warmup):
    after = rates(name, warmup=warmup)[max(warmup - 1, 0) :]
    assert after.max() <= 1 + 1e-6
    assert np.all(np.diff(after) <= 1e-6)
    assert after.min() >= FLOOR - 1e-6


@pytest.mark.parametrize('name', ['linear', 'cosine', 'wsd'])
def test_the_last_step_and_all_after_have_the_floor(name):
    np.testing.assert_allclose(rates(name)[TOTAL - 1 :], FLOOR, rtol=1e-4)


def test_shapes():
    step = np.arange(WARMUP, TOTAL)
    done = (step + 1 - WARMUP) / (TOTAL - WARMUP)
    at = lambda name: rates(name)[WARMUP:TOTAL]
    np.testing.assert_allclose(at('constant'), 1)
    np.testing.assert_allclose(at('linear'), 1 - 0.9 * done, rtol=1e-4)
    np.testing.assert_allclose(at('cosine'), [0.1 + 0.9 * (1 + math.cos(math.pi * p)) / 2 for p in done], rtol=1e-4)
    np.testing.assert_allclose(at('wsd'), np.minimum(1, 1 - 0.9 * (step + 1 - (TOTAL - DECAY)) / DECAY), rtol=1e-4)
    # Vaswani et al. count steps from 1: min(step^-1/2, step · warmup^-3/2), over its peak.
    np.testing.assert_allclose(at('inverse_sqrt'), np.sqrt(WARMUP / (step + 1)), rtol=1e-4)


def test_inverse_sqrt_stops_at_the_floor():
    np.testing.assert_allclose(rates('inverse_sqrt', floor=0.5)[-10:], 0.5)


@pytest.mark.parametrize('name', SCHEDULES)
def test_degenerate_spans_are_finite(name):
    shortest = {'warmup': int(name == 'inverse_sqrt'), 'total': 1, 'decay': int(name == 'wsd')}
    for span in (shortest, shortest | {'total': 10}, {'warmup': 9, 'total': 10, 'decay': 1}):
        assert np.all(np.isfinite(rates(name, **span)))


def test_a_callable_is_a_schedule():
    half = lambda progress, span: 0.5 * jnp.ones_like(progress)
    schedule = make_schedule(schema.Schedule(name=half), PEAK, Span(TOTAL, 0, 0, 0.0))
    np.testing.assert_allclose(schedule(50), PEAK / 2)


def test_a_warmup_that_does_not_fit():
    config = schema.Schedule(warmup='300 steps')
    with pytest.raises(ConfigError, match="schedule.warmup = '300 steps' is 300 steps, but the run has only 100"):
        make_schedule(config, PEAK, Span(100, 300, 0, 0.1))
    with pytest.raises(ConfigError, match=r'schedule.decay = .20 %. is 95, but the run has only 100'):
        make_schedule(schema.Schedule(name='wsd'), PEAK, Span(100, 10, 95, 0.1))
    with pytest.raises(ConfigError, match=r'schedule.decay = 0: "wsd" falls over it'):
        make_schedule(schema.Schedule(name='wsd', decay=0), PEAK, Span(100, 10, 0, 0.1))
    with pytest.raises(ConfigError, match=r'schedule.warmup = 0: "inverse_sqrt" falls in proportion'):
        make_schedule(schema.Schedule(name='inverse_sqrt', warmup=0), PEAK, Span(100, 0, 0, 0.1))
    with pytest.raises(ConfigError, match=r"schedule.name = 'cosin'.*did you mean 'cosine'"):
        make_schedule(schema.Schedule(name='cosin'), PEAK, Span(100, 10, 0, 0.1))


# --- Updates ---------------------------------------------------------------------------


@pytest.mark.parametrize('clip', [0.0, 1.0])
def test_adamw_equals_the_paper(clip):
    """Loshchilov & Hutter 2019, algorithm 2, in float64, with clipping and a mask."""
    config = schema.Optimizer(
        learning_rate=1e-2, b1=0.8, b2=0.9, eps=1e-3, weight_decay=0.3, clip=clip,
        decay_mask=((r'.*/kernel', True), (r'.*/bias', False)),
    )  # fmt: skip
    schedule = make_schedule(schema.Schedule(name='linear'), config.learning_rate, Span(8, 2, 0, 0.0))
    rng = np.random.default_rng(0)
    params = {'a': {'kernel': rng.normal(size=(3, 4)), 'bias': rng.normal(size=4)}}
    exact = jax.tree.map(np.copy, params)
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
    optimizer = make_optimizer(config, schedule, params, {})
    state = optimizer.init(params)

    @jax.jit
    def update(grads, state, params):
        updates, state = optimizer.update(grads, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    m = v = {'kernel': 0.0, 'bias': 0.0}
    for step in range(8):
        scale = 3.0 if step % 2 else 0.1  # above and below the clipping norm
        grads = {'a': {'kernel': scale * rng.normal(size=(3, 4)), 'bias': scale * rng.normal(size=4)}}
        params, state = update(jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), grads), state, params)

        norm = math.sqrt(sum((g**2).sum() for g in grads['a'].values()))
        factor = min(1, clip / norm) if clip else 1
        rate = 1e-2 * ((step + 1) / 2 if step < 2 else 1 - (step - 1) / 6)
        m = {k: 0.8 * m[k] + 0.2 * factor * g for k, g in grads['a'].items()}
        v = {k: 0.9 * v[k] + 0.1 * (factor * g) ** 2 for k, g in grads['a'].items()}
        for k, decay in (('kernel', 0.3), ('bias', 0.0)):
            m_hat, v_hat = m[k] / (1 - 0.8 ** (step + 1)), v[k] / (1 - 0.9 ** (step + 1))
            exact['a'][k] -= rate * (m_hat / (np.sqrt(v_hat) + 1e-3) + decay * exact['a'][k])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), params, exact)


def test_a_callable_is_an_optimizer():
    called = []

    def sign(config, weights):
        called.append(weights)
        return optax.scale_by_sign()

    params, weights = {'a': {'kernel': jnp.ones(2)}}, {'a': {'kernel': Weight(('d_model',), (), 2, 1)}}
    optimizer = make_optimizer(schema.Optimizer(name=sign, weight_decay=3.0), lambda step: 0.1, params, weights)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert called == [weights]
    np.testing.assert_allclose(updates['a']['kernel'], -0.1 * (1 + 3), rtol=1e-6)


EVERYTHING = {'attention_sinks': True, 'feed_forward': 'moe', 'model__moe__balance': 'bias', 'qk_norm': 'head'}


@pytest.mark.parametrize('family', [GPT2, LLAMA, GPT2 | EVERYTHING])
def test_default_mask_decays_matrices_only(family):
    model = tiny_model(tiny_config(**family))
    params = random_params(model)
    mask = decay_mask(schema.Optimizer().decay_mask, params, parameters_of(model))
    for path, decays in jax.tree_util.tree_leaves_with_path(mask):
        assert decays == (path[-1].key in ('kernel', 'embedding'))


def test_the_first_pattern_that_matches_the_whole_path_decides():
    params = {'a': {'kernel': 0}, 'b': {'kernel': 0}, 'a_b': {'kernel': 0}}
    mask = decay_mask((('a/kernel', False), ('a', True), ('.*', True)), params, {})
    assert mask == {'a': {'kernel': False}, 'b': {'kernel': True}, 'a_b': {'kernel': True}}


def test_without_a_mask_decay_follows_from_what_a_weight_is():
    """A new vector needs no pattern; what says nothing of itself goes by the names of Linen's own modules."""
    params = dict.fromkeys(('gain', 'lookup', 'matrix'), 0) | {'dense': {'kernel': 0, 'bias': 0}}
    weights = {
        'gain': Weight((), ('residual',), 1, 8), 'lookup': Weight(('vocab',), ('d_model',), 9, 8, lookup=True),
        'matrix': Weight(('d_model',), ('d_ff',), 8, 8),
    }  # fmt: skip
    expected = {'gain': False, 'lookup': True, 'matrix': True, 'dense': {'kernel': True, 'bias': False}}
    assert decay_mask((), params, weights) == expected


def test_options_of_a_rule_and_a_shape():
    rule = lambda config, weights, beta3: optax.scale(beta3)
    config = schema.Optimizer(name=rule, options=schema.Options(beta3=0.25), weight_decay=0.0, clip=0.0)
    params = {'a': jnp.ones(2)}
    optimizer = make_optimizer(config, lambda step: 1.0, params, {})
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_allclose(updates['a'], -0.25)
    shape = lambda progress, span, power: (1 - progress) ** power
    schedule = make_schedule(schema.Schedule(name=shape, options=schema.Options(power=2)), 1.0, Span(10, 0, 0, 0.0))
    np.testing.assert_allclose(schedule(4), 0.25)


def test_a_mask_must_cover_every_parameter():
    params = {'a': {'kernel': 0, 'gain': 0}, 'b': {'gain': 0}}
    message = 'optimizer.decay_mask does not cover a/gain, b/gain: add a (regex, bool) pair for each'
    with pytest.raises(ConfigError, match=re.escape(message)):
        decay_mask(((r'.*/(kernel|embedding)', True),), params, {})
