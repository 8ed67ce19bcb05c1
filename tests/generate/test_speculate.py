import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import LLAMA, on_mesh, place_params, random_params, tiny_config, tiny_model

from llm_jax.config.schema import ConfigError
from llm_jax.generate import decode, speculate
from llm_jax.generate.engine import Engine
from llm_jax.generate.requests import Request
from llm_jax.generate.settings import Sampler
from llm_jax.generate.speculate import Speculation

LOOK_UP = Speculation(n_draft=4)


@functools.cache
def trained(**overrides):
    model = tiny_model(tiny_config(**LLAMA | overrides, data__seq_len=128))
    return model, random_params(model)


def requests():
    """Texts that repeat themselves and texts that do not; greedy, drawn, with penalties, with an early end."""
    rng = np.random.default_rng(0)
    again, once = [5, 6, 7, 8, 9] * 6, rng.integers(2, 60, 20).tolist()
    return [
        Request(again, 40, Sampler(0)),
        Request(once, 40, Sampler(0)),
        Request(again, 30, Sampler(0.8), seed=1),
        Request(again, 30, Sampler(1.5, frequency_penalty=0.5, repetition_penalty=1.2), seed=2, stop_ids=(4, 40)),
        Request([1], 9, Sampler(0.5), seed=3, alternatives=2),
    ]


@pytest.fixture(scope='module')
def expected():
    model, params = trained()
    return [Engine(model, params, n_slots=1).run([request])[0] for request in requests()]


def assert_same(rows, expected):
    for row, other in zip(rows, expected, strict=True):
        assert (row.tokens, row.finish) == (other.tokens, other.finish)
        np.testing.assert_allclose(row.log_probs, other.log_probs, atol=1e-4)
        np.testing.assert_allclose(row.sampled_log_probs, other.sampled_log_probs, atol=1e-3)
        assert [[i for i, _ in top] for top in row.top] == [[i for i, _ in top] for top in other.top]


@pytest.mark.parametrize('n_slots', [1, 5])
def test_looked_up_guesses_change_no_token(expected, n_slots):
    engine = Engine(*trained(), n_slots=n_slots, speculation=LOOK_UP, prefix_tokens=512)
    assert_same(engine.run(requests()), expected)
    assert_same(engine.run(requests()), expected)


def drafts():
    """A model that guesses at random, and the model itself, which guesses right."""
    small = tiny_model(tiny_config(**LLAMA | {'n_layers': 1}, data__seq_len=128))
    return {'another': (small, random_params(small)), 'itself': trained()}


@pytest.mark.parametrize('name', ['another', 'itself'])
def test_guesses_of_a_draft_model_change_no_token(expected, name):
    draft, draft_params = drafts()[name]
    options = {'speculation': Speculation(4, draft), 'draft_params': draft_params, 'prefix_tokens': 512}
    engine = Engine(*trained(), n_slots=3, **options)
    assert_same(engine.run(requests()), expected)
    assert_same(engine.run(requests()), expected)


def test_meshes(expected):
    with on_mesh((1, 4, 2)):
        model, params = trained()
        draft, draft_params = drafts()['another']
        place = lambda model, params: place_params(model, params)
        for options in (
            {'speculation': LOOK_UP},
            {'speculation': Speculation(3, draft), 'draft_params': place(draft, draft_params)},
        ):
            assert_same(Engine(model, place(model, params), n_slots=4, **options).run(requests()), expected)


def passes_of(speculation, request):
    """Number of forward passes by their tokens, and the row."""
    model, params = trained()
    counts, forward = collections.Counter(), decode.forward

    def counting(model, weights, tokens, *args):
        jax.debug.callback(lambda: counts.update([tokens.shape[1]]), ordered=True)
        return forward(model, weights, tokens, *args)

    decode.forward = counting
    try:
        jax.clear_caches()
        (row,) = Engine(model, params, n_slots=1, speculation=speculation, draft_params=params).run([request])
        jax.effects_barrier()
    finally:
        decode.forward = forward
        jax.clear_caches()
    return counts, row


def test_right_guesses_save_passes_and_wrong_ones_are_given_up():
    loop = Request([5, 6, 7, 8, 9] * 6, 60, Sampler(0, frequency_penalty=-3.0))  # likes what it has said
    once = Request([1, 2, 3], 60, Sampler(1.5), seed=4)
    counts, row = passes_of(LOOK_UP, loop)
    assert len(row.tokens) > 2 * (counts[1] + counts[5])
    counts, row = passes_of(LOOK_UP, once)
    assert len(row.tokens) < 1.1 * (counts[1] + counts[5]) and counts[5] < 5
    # The model itself is always right: five tokens of each pass, but for the last of a block.
    counts, row = passes_of(Speculation(4, trained()[0]), once)
    assert len(row.tokens) >= 4 * counts[5]


@pytest.mark.parametrize(
    'ids, guess',
    [
        ([1, 2, 3, 4, 5, 1, 2, 3], [4, 5, 1, 2]),
        ([1, 2, 3, 9, 1, 2, 3, 8, 1, 2, 3], [8, 1, 2, 3]),  # the last time counts
        ([7, 7, 7, 7], [7, 7, 7, 7]),
        ([6, 7, 6, 7, 6], [7, 6, 7, 6]),
        ([1, 2, 3, 4, 2, 3], None),  # two are not enough
        ([1, 2], None),
    ],
)
def test_look_up(ids, guess):
    slots = Engine(*trained(), n_slots=1)._slots
    held = jnp.zeros_like(slots.ids).at[0, : len(ids)].set(jnp.asarray(ids))
    slots = dataclasses.replace(slots, ids=held, positions=jnp.array([len(ids) - 1]))
    draft, found = speculate.look_up(slots, jnp.array([True]), 4)
    assert bool(found[0]) == (guess is not None)
    if guess:
        assert draft[0].tolist() == guess


def test_mistakes():
    model, params = trained()
    other = tiny_model(tiny_config(**LLAMA | {'vocab_size': 96}, data__seq_len=128))
    with pytest.raises(ConfigError, match='vocabulary of 64 and the model one of 96'):
        Engine(other, random_params(other), speculation=Speculation(4, model), draft_params=params)
    short = tiny_model(tiny_config(**LLAMA, data__seq_len=64))
    with pytest.raises(ConfigError, match='max_seq_len = 64 is shorter than the context of 128'):
        Engine(model, params, speculation=Speculation(4, short), draft_params=params)
    with pytest.raises(ConfigError, match='n_draft = 0'):
        Speculation(0)
