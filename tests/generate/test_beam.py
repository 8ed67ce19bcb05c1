"""Beam search against all texts of a small vocabulary, on meshes, and beside other prompts."""

import functools
import itertools

import jax
import numpy as np
import pytest
from tiny import LLAMA, V, on_mesh, place_params, random_params, tiny_config, tiny_model

from llm_jax.config.schema import ConfigError
from llm_jax.generate import beam
from llm_jax.generate.beam import Beams
from llm_jax.generate.requests import Finish

PROMPTS = [[1, 5, 9], [1], [1, 7, 7, 7, 30, 31, 32, 33, 34, 2, 3], [40, 41]]
STOPS = [3, 17]


@functools.cache
def trained():
    model = tiny_model(tiny_config(**LLAMA, data__seq_len=64))
    return model, random_params(model)


@functools.cache
def forward(model):
    return jax.jit(model.apply)


@functools.cache
def log_probs(tokens, vocab_size=V):
    """float[L, vocab_size] after each of some tokens, by the whole model."""
    model, params = trained()
    padded = np.zeros((1, 64), np.int32)
    padded[0, : len(tokens)] = tokens
    logits = np.asarray(forward(model)({'params': params}, padded)[0, : len(tokens), :vocab_size], np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def every_text(prompt, vocab_size, stop, length, penalty):
    """(score, tokens) of all texts that end with the stop id or are `length` long, the best first."""
    found = []
    for n in range(1, length + 1):
        for text in itertools.product(range(vocab_size), repeat=n):
            ends = text[-1] == stop
            if stop in text[:-1] or (n < length and not ends):
                continue
            total = sum(log_probs((*prompt, *text[:i]), vocab_size)[-1, token] for i, token in enumerate(text))
            found.append((total / n**penalty, list(text[:-1] if ends else text), ends))
    return sorted(found, reverse=True)


@pytest.mark.parametrize('penalty', [0.0, 1.0, 2.5, -1.0])
def test_enough_beams_find_the_best_of_all_texts(penalty):
    prompt, vocab_size, stop, length = (1, 5, 9), 4, 2, 3
    best = every_text(prompt, vocab_size, stop, length, penalty)
    # With a penalty below 0, a running beam may fall behind for good and is then given up.
    beams = Beams(48, length_penalty=penalty, early_stopping='never', n_return=6)
    (found,) = beam.search(
        *trained(), [prompt], max_new_tokens=length, beams=beams, stop_ids=[stop], vocab_size=vocab_size
    )
    assert [one.tokens for one in found] == [tokens for _, tokens, _ in best[:6]]
    np.testing.assert_allclose([one.score for one in found], [score for score, _, _ in best[:6]], rtol=1e-5)
    assert [one.finish is Finish.STOP_ID for one in found] == [ends for _, _, ends in best[:6]]


def test_the_penalty_of_length_decides_between_texts():
    """Sums of all tokens are compared at 0; above it, texts that are longer come to the front."""
    lengths = {}
    for penalty in (0.0, 1.0, 3.0):
        beams = Beams(48, length_penalty=penalty, early_stopping='never')
        (found,) = beam.search(*trained(), [[1, 5, 9]], max_new_tokens=3, beams=beams, stop_ids=[2], vocab_size=4)
        lengths[penalty] = len(found[0].tokens) + (found[0].finish is Finish.STOP_ID)
    assert lengths[0.0] < lengths[3.0] == 3 and lengths[0.0] <= lengths[1.0] <= lengths[3.0]


def test_fewer_texts_than_beams():
    (found,) = beam.search(*trained(), [[1]], max_new_tokens=2, beams=Beams(8, n_return=8), stop_ids=[0], vocab_size=2)
    assert sorted(one.tokens for one in found) == [[], [1], [1, 1]]


@pytest.fixture(scope='module')
def expected():
    return beam.search(*trained(), PROMPTS, max_new_tokens=20, beams=Beams(4, n_return=4), stop_ids=STOPS)


def test_scores_are_those_of_the_model(expected):
    assert {one.finish for row in expected for one in row} == {Finish.STOP_ID, Finish.LENGTH}
    for prompt, row in zip(PROMPTS, expected, strict=True):
        assert len(row) == 4 and [one.score for one in row] == sorted((one.score for one in row), reverse=True)
        for one in row:
            after = log_probs((*prompt, *one.tokens))[len(prompt) - 1 :]
            total = sum(after[i, token] for i, token in enumerate(one.tokens))
            if one.finish is Finish.LENGTH:
                assert len(one.tokens) == 20
                assert np.isclose(one.score, total / 20, rtol=1e-4)
            else:
                ends = (total + after[len(one.tokens), STOPS]) / (len(one.tokens) + 1)
                assert np.isclose(ends, one.score, rtol=1e-4).any()


def same(found, expected):
    for row, other in zip(found, expected, strict=True):
        assert [(one.tokens, one.finish) for one in row] == [(one.tokens, one.finish) for one in other]
        np.testing.assert_allclose([one.score for one in row], [one.score for one in other], rtol=1e-4)


def test_a_prompt_does_not_depend_on_the_others(expected):
    options = {'max_new_tokens': 20, 'beams': Beams(4, n_return=4), 'stop_ids': STOPS}
    same(beam.search(*trained(), [PROMPTS[3], *PROMPTS[:1], [9] * 40, PROMPTS[2]], **options)[::3], expected[3:1:-1])
    same(beam.search(*trained(), PROMPTS[:1] * 20, **options)[16:], expected[:1] * 4)  # more than fit together


@pytest.mark.parametrize('sizes', [pytest.param((1, 4, 2), marks=pytest.mark.slow), (2, 2, 2)], ids=str)
def test_same_on_every_mesh(expected, sizes):
    model, params = trained()
    with on_mesh(sizes):
        params = place_params(model, params)
        options = {'max_new_tokens': 20, 'beams': Beams(4, n_return=4), 'stop_ids': STOPS}
        same(beam.search(model, params, PROMPTS, **options), expected)


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda: Beams(1), 'n_beams = 1 must be at least 2'),
        (lambda: Beams(4, n_return=5), 'n_return = 5 must be from 1 to n_beams = 4'),
        (lambda: Beams(4, length_penalty=float('nan')), 'length_penalty = nan must be a finite number'),
        (lambda: Beams(4, early_stopping='always'), "early_stopping = 'always' must be True, False or 'never'"),
        (lambda: beam.search(*trained(), [[1], []], max_new_tokens=3), 'prompt 1: the prompt has no tokens'),
        (lambda: beam.search(*trained(), [[1, V]], max_new_tokens=3), 'prompt 0: the prompt has token 64'),
        (lambda: beam.search(*trained(), [[1] * 60], max_new_tokens=5), 'past the context of 64'),
        (lambda: beam.search(*trained(), [[1]], max_new_tokens=0), 'max_new_tokens = 0'),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_logits_that_are_no_numbers_are_an_error():
    model, params = trained()
    broken = jax.tree.map(lambda x: np.full_like(x, np.nan), params)
    with pytest.raises(ConfigError, match='prompt 0: the logits are not finite'):
        beam.search(model, broken, [[1, 5, 9]], max_new_tokens=3, beams=Beams(2))


def test_no_prompts():
    assert beam.search(*trained(), [], max_new_tokens=3) == []
