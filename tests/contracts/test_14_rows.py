"""Contract 14: a row's tokens depend on its request alone."""

import functools

import numpy as np
import pytest
from tiny import LLAMA, VARIANTS, on_mesh, place_params, random_params, tiny_config, tiny_model

from llm_jax.generate.engine import Engine
from llm_jax.generate.requests import Finish, Request
from llm_jax.generate.settings import Sampler

LONG = 256


@functools.cache
def trained(**overrides):
    model = tiny_model(tiny_config(**LLAMA | overrides, data__seq_len=LONG))
    return model, random_params(model)


def requests(n_begin=130):
    """Greedy and drawn, with penalties, short and long; the last three begin alike."""
    rng = np.random.default_rng(0)
    prompt = lambda n: rng.integers(2, 60, n).tolist()
    begin = prompt(n_begin)
    sampler = Sampler(1.3, top_k=20, repetition_penalty=1.2, frequency_penalty=0.1, logit_bias={5: -2.0})
    return [
        Request([1], 20, seed=3),
        Request(prompt(100), 20, Sampler(0)),
        Request([*begin, 9], 20, sampler, seed=5, stop_ids=(4, 8)),
        Request([*begin, 9, 11], 20, Sampler(0, repetition_penalty=1.5)),
        Request([*begin, 9], 20, sampler, seed=5, choice=1, alternatives=3),
    ]


def decode(model, params, wanted, **options):
    engine = Engine(model, params, **{'n_slots': 1, 'context': LONG} | options)
    return engine, engine.run(wanted)


def assert_same(rows, others):
    for row, other in zip(rows, others, strict=True):
        assert (row.tokens, row.finish) == (other.tokens, other.finish)
        np.testing.assert_allclose(row.log_probs, other.log_probs, atol=1e-4)


@pytest.fixture(scope='module')
def alone():
    """Each row by itself, from a fresh engine."""
    rows = [decode(*trained(), [request])[1][0] for request in requests()]
    assert len({tuple(row.tokens) for row in rows}) == len(rows)
    return rows


def test_neighbours_slots_and_chunks(alone):
    for options in ({'n_slots': 2, 'chunk': 32}, {'n_slots': 5, 'chunk': 512}):
        for order in (slice(None), slice(None, None, -1)):
            _, rows = decode(*trained(), requests()[order], **options)
            assert_same(rows, alone[order])


def test_kept_prefixes_and_cancelled_rows(alone):
    engine, rows = decode(*trained(), requests(), n_slots=2, prefix_tokens=1024)
    assert_same(rows, alone)
    assert [row.n_reused for row in rows] == [0, 0, 0, 0, 128]  # two enter together
    strangers = [engine.submit(Request([*requests()[2].prompt[:70], i], 50)) for i in range(4)]
    engine.step()
    again = [engine.submit(request) for request in requests()]
    while not engine.is_idle:
        engine.step()
        for row in strangers[::2]:
            engine.cancel(row)
    assert_same(again, alone)
    assert [row.n_reused for row in again] == [0, 64, 128, 128, 128]
    assert [row.finish for row in strangers] == [Finish.CANCELLED, Finish.LENGTH] * 2
    assert [row.n_reused for row in strangers] == [64, 64, 0, 64]  # the third never entered


@pytest.mark.parametrize('sizes', [pytest.param((1, 4, 2), marks=pytest.mark.slow), (2, 2, 2)], ids=str)
def test_meshes(alone, sizes):
    with on_mesh(sizes):
        model, params = trained()
        engine, rows = decode(model, place_params(model, params), requests(), n_slots=8, prefix_tokens=1024)
        assert_same(rows, alone)
        again = engine.run(requests())
        assert_same(again, alone)
        assert min(row.n_reused for row in again[1:]) >= 64


@pytest.mark.parametrize('name', ['mla', 'moe, groups, shared'])
def test_other_parts(name):
    """The second time every prompt but its last tokens is there."""
    model, params = trained(**VARIANTS[name])
    wanted = requests(n_begin=70)[1:]
    options = {'n_slots': 2, 'context': 128, 'chunk': 32}
    rows = [decode(model, params, [request], **options)[1][0] for request in wanted]
    engine, together = decode(model, params, wanted, prefix_tokens=512, **options)
    assert_same(together, rows)
    again = engine.run(wanted)
    assert_same(again, rows)
    assert [row.n_reused for row in again] == [64] * 4
