"""What an objective may be, and what is said of one that does not fit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from policy import OnlinePolicy, Policy
import pytest
from tiny import BOS, LLAMA, L, V, on_mesh, packed_tokens, place, tiny_config, tiny_model

from llm_jax.config.schema import ConfigError
from llm_jax.data import batches
from llm_jax.data.batch import Batch, split_length, split_rows, take_micro_batch, unpack_rows
from llm_jax.train import setup
from llm_jax.train.objectives import NextToken, make_objective


def no_objective(model, config, bos_id):
    return model


def make(**fields):
    config = tiny_config(**LLAMA | fields)
    return make_objective(tiny_model(config), config, bos_id=BOS)


@pytest.mark.parametrize('objective', ['next_token', 'llm_jax.train.objectives:NextToken', NextToken])
def test_by_name_or_class(objective):
    assert type(make(train__objective=objective)) is NextToken


@pytest.mark.parametrize(
    ('objective', 'message'),
    [
        ('next_tokens', "train.objective = 'next_tokens' is not a known part; did you mean 'next_token'?"),
        (no_objective, 'gives Transformer, which is no Objective; make it a subclass of llm_jax.train.objectives'),
    ],
)
def test_what_is_no_objective(objective, message):
    with pytest.raises(ConfigError, match=message.replace('?', r'\?')):
        make(train__objective=objective)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'train__objective': Policy}, 'must take one array of rows, and nothing over the whole batch'),
        ({'train__trainable': 'unembed/.*'}, "train.trainable = 'unembed/.*' must be"),
    ],
)
def test_what_cannot_be_reproducible(fields, message):
    config = tiny_config(**LLAMA | fields, train__reproducible=True)
    with on_mesh((1, 1, 1)), pytest.raises(ConfigError, match=f'train.reproducible = True: .*{message}'):
        setup.plan(config, jax.sharding.get_mesh(), rows=100, vocab_size=V, bos_id=BOS)


def test_what_is_collected_is_what_was_said():
    @dataclasses.dataclass(frozen=True)
    class Wrong(OnlinePolicy):
        def collect(self, params, rows, step):
            return super().collect(params, rows, step) | {'reward': jnp.zeros(3)}

    def collected(objective):
        config = tiny_config(**LLAMA, train__objective=objective)
        with on_mesh((2, 2, 2)):
            plan = setup.plan(config, jax.sharding.get_mesh(), rows=100, vocab_size=V, bos_id=BOS)
            state, _ = jax.jit(plan.init)(jax.random.key(0))
            made = plan.collect(state.params, place(packed_tokens(8), config), 0)
            assert jax.tree.map(jax.typeof, made) == jax.tree.map(jax.typeof, plan.step_shapes)
            with jax.transfer_guard('disallow'):
                _, metrics = plan.lowered_step(state).compile()(state, made)
            return metrics

    assert np.isfinite(collected(OnlinePolicy)['loss'])
    with pytest.raises(ConfigError, match=r"collect\(\) gives .*'reward': \(\(3,\), 'float32'\).* but step_shapes"):
        collected(Wrong)


def test_a_batch_is_cut_and_split_with_its_extras():
    rows = packed_tokens(8)
    batch = unpack_rows(jnp.asarray(rows), BOS)
    extras = {'score': jnp.arange(8.0), 'mask': jnp.ones((8, L)), 'logits': jnp.zeros((8, 3))}
    batch = batch.replace(extras=extras)
    micro = take_micro_batch(split_rows(batch, 4), 1)
    for whole, part in zip(jax.tree.leaves(batch), jax.tree.leaves(micro), strict=True):
        np.testing.assert_array_equal(part, whole[1::4])
    rules = tiny_config().model.rules
    with on_mesh({'fsdp': 2, 'context': 4}):
        on_devices = jax.tree.map(lambda x: jax.device_put(x, jax.P('fsdp')), batch)
        split = jax.jit(lambda batch: split_length(batch, rules))(on_devices)
        spec = lambda x: jax.typeof(x).sharding.spec
        # What goes with tokens is split as they are; what a row has once, and segments, are whole.
        assert spec(split.extras['mask']) == spec(split.tokens) == jax.P('fsdp', 'context')
        assert spec(split.extras['score']) == jax.P('fsdp')
        assert spec(split.extras['logits']) == spec(split.segments) == jax.P('fsdp', None)
        assert isinstance(split, Batch)


def test_rows_of_several_arrays_are_read_ahead():
    class Pairs:
        steps_per_read = 2

        def read(self, start, stop):
            steps = np.arange(start, stop)
            return {'row': np.stack([np.full((2, 3), step) for step in steps]), 'score': steps[:, None] + [0.25, 0.5]}

    read = list(batches.loader(Pairs(), 3, 8, prefetch=4))
    assert [batch['row'][0, 0] for batch in read] == [3, 4, 5, 6, 7]
    assert [batch['score'].tolist() for batch in read][-1] == [7.25, 7.5]
