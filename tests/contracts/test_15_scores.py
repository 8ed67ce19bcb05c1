"""Contract 15: the score of an item does not depend on its batch or mesh."""

import functools

import numpy as np
import pytest
from tiny import LLAMA, on_mesh, place_params, random_params, tiny_config, tiny_model

from llm_jax.evals.score import Scorer


@functools.cache
def model_and_params(**overrides):
    model = tiny_model(tiny_config(**LLAMA | overrides, data__seq_len=64))
    return model, random_params(model)


def make_rows():
    """Short and long, of one beginning, with one scored token and with many."""
    rng = np.random.default_rng(0)
    draw = lambda n: rng.integers(2, 60, n).tolist()
    begin = [1, *draw(40)]
    return [
        ([*begin, 7], 1), ([*begin, 9], 1), ([*begin, 9, 11], 2), ([1, 5], 1), ([1, *draw(64)], 64),
        ([1, *draw(30)], 9),
    ]  # fmt: skip


NAMES = ['a', 'a', 'a', 'b', 'c', 'd']


def score(rows, names, sizes=None, **overrides):
    model, params = model_and_params(**overrides)
    with on_mesh(sizes):
        answers = Scorer(model, place_params(model, params)).score(rows, names)
        return np.array([one.log_likelihood for one in answers]), [one.is_greedy for one in answers]


def test_a_score_alone_is_that_among_others():
    rows = make_rows()
    together = score(rows, NAMES)
    for size in (1, 2):
        parts = [score(rows[i : i + size], NAMES[i : i + size]) for i in range(0, len(rows), size)]
        np.testing.assert_allclose(np.concatenate([values for values, _ in parts]), together[0], atol=1e-4)
    rng = np.random.default_rng(1)
    others = [([1, *rng.integers(2, 60, 50).tolist()], 20) for _ in range(150)]
    values, greedy = score([*others, *rows], [*map(str, range(150)), *NAMES])
    np.testing.assert_array_equal(values[150:], together[0])
    assert greedy[150:] == together[1]


@pytest.mark.parametrize(
    ('sizes', 'overrides'),
    [
        ((1, 8, 1), {}),
        ((1, 4, 2), {}),
        ({'fsdp': 2, 'context': 2, 'tensor': 2}, {}),
        ({'stage': 2, 'fsdp': 2}, {'n_layers': 4}),
        ({'expert': 2, 'fsdp': 2}, {'feed_forward': 'moe', 'model__moe__n_experts': 4}),
    ],
    ids=str,
)
def test_a_score_is_the_same_on_every_mesh(sizes, overrides):
    values, greedy = score(make_rows(), NAMES, sizes, **overrides)
    expected, expected_greedy = score(make_rows(), NAMES, **overrides)
    np.testing.assert_allclose(values, expected, atol=1e-4)
    assert greedy == expected_greedy
