"""Parameters in two: trained and frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import BOS, LLAMA, V, on_mesh, packed_tokens, place, random_params, tiny_config, tiny_model

from llm_jax.config.schema import ConfigError
from llm_jax.plan.cases import Case
from llm_jax.plan.memory import gradient_bytes, residual_bytes, state_parts
from llm_jax.train import setup
from llm_jax.train.state import start_training
from llm_jax.train.step import make_train_step
from llm_jax.train.trainable import merge_params, select_like, split_params

PARAMS = {'embed': {'embedding': 1}, 'layers': {'q': {'kernel': 2, 'bias': 3}, 'norm': {'scale': 4}}}


def only_biases(path):
    return path.endswith('bias')


@pytest.mark.parametrize(
    'trainable', [r'layers/(?:q|k)/.*', only_biases, f'{__name__}:only_biases'], ids=('regex', 'function', 'name')
)
def test_split_and_merged(trainable):
    trained, frozen = split_params(PARAMS, trainable)
    assert len(jax.tree.leaves(trained)) in (1, 2)
    assert 'norm' not in trained['layers']
    assert merge_params(trained, frozen) == PARAMS
    assert select_like(PARAMS, trained) == trained


def test_everything_is_trained_by_default():
    trained, frozen = split_params(PARAMS, tiny_config().train.trainable)
    assert trained == PARAMS
    assert frozen is None


@pytest.mark.parametrize(
    ('trainable', 'message'),
    [
        ('layers/k/.*', "train.trainable = 'layers/k/.*' matches no parameter; there are embed/embedding, "),
        ('layers/(', r"train.trainable = 'layers/\(' is not a regular expression"),
        ('nowhere:name', "train.trainable = 'nowhere:name' cannot be imported"),
    ],
)
def test_what_trains_nothing_is_refused(trainable, message):
    with pytest.raises(ConfigError, match=message):
        split_params(PARAMS, trainable)


def test_what_is_trained_moves_as_if_all_were():
    """Of plain gradient descent: a frozen part changes no gradient of the rest, nor may its routers be balanced."""
    fields = {'feed_forward': 'moe', 'model__moe__n_experts': 4, 'model__moe__balance': 'bias', 'n_layers': 2}
    config = tiny_config(**LLAMA | fields, train__grad_accumulation=2)
    model, optimizer = tiny_model(config), optax.sgd(0.1)
    params = jax.tree.map(jnp.asarray, random_params(model))
    step = jax.jit(make_train_step(model, config, optimizer, lambda _: 0.1, bos_id=BOS))
    whole, _ = step(start_training(params, optimizer, with_ema=False), packed_tokens(8))
    trained, frozen = split_params(params, 'layers/attention/.*')
    part, metrics = step(start_training(trained, optimizer, with_ema=False), packed_tokens(8), frozen)
    jax.tree.map(np.testing.assert_array_equal, part.params, select_like(whole.params, trained))
    assert np.isfinite(metrics['grad_norm'])
    # What the step returns is what it was given.
    assert jax.tree.structure(part.params) == jax.tree.structure(trained)


def test_frozen_parameters_are_not_donated_and_take_no_memory_of_training():
    every, heads = (tiny_config(**LLAMA, train__trainable=what) for what in ('.*', 'unembed/.*'))
    sizes = {'fsdp': 4, 'tensor': 2}
    with on_mesh(sizes):
        mesh = jax.sharding.get_mesh()
        plans = [setup.plan(config, mesh, rows=100, vocab_size=V, bos_id=BOS) for config in (every, heads)]
        whole, part = (Case(plan.config, None, plan, None) for plan in plans)
        state, frozen = jax.jit(plans[1].init)(jax.random.key(0))
        before = jax.tree.leaves(state.params)
        rows = place(packed_tokens(8), heads)
        _, metrics = plans[1].lowered_step(state).compile()(state, rows, frozen)
        jax.block_until_ready(metrics)
        assert all(leaf.is_deleted() for leaf in before)
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(frozen))

    kernel = 4 * 32 * V / 8  # bytes of the head on each device
    assert gradient_bytes(part) == kernel < gradient_bytes(whole)
    assert state_parts(part)['optimizer'] < 2 * kernel + 100 < state_parts(whole)['optimizer']
    assert state_parts(part)['parameters'] == state_parts(whole)['parameters']
    # No layer is differentiated, so none keeps anything for a backward pass.
    assert residual_bytes(part) < residual_bytes(whole) / 4
