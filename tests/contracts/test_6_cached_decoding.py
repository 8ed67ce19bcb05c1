"""Contract 6: decoding over a cache equals the full forward pass."""

import functools

import jax
import numpy as np
import pytest
from tiny import LLAMA, VARIANTS, L, V, on_mesh, place, place_params, random_params, tiny_config, tiny_model

from llm_jax.generate import decode
from llm_jax.ops.attend import xla as attend

POSITIONS = ('none', 'learned', 'sinusoidal', 'rope')
ATTENTIONS = ({'attention': 'mha', 'n_kv_heads': 0}, {'attention': 'gqa'}, {'attention': 'mqa', 'n_kv_heads': 0})
# Prompts of several lengths, padded to the longest by tokens that nothing may see.
LENGTHS = np.array([5, 1, 3, 4])
PAD = 13


def tokens():
    return np.random.default_rng(0).integers(0, V, (len(LENGTHS), L)).astype(np.int32)


def padded(tokens):
    prompts = tokens[:, : LENGTHS.max()].copy()
    prompts[np.arange(prompts.shape[1]) >= LENGTHS[:, None]] = PAD
    return prompts, np.broadcast_to(np.arange(prompts.shape[1]), prompts.shape)


def cached(model, params, tokens, lay):
    """Logits of each row from its last prompt token on, by `decode.forward` over a cache."""
    forward = jax.jit(functools.partial(decode.forward, model))
    weights = decode.prepare(model, params)
    caches = jax.jit(lambda: decode.empty_caches(model.config, len(tokens), L))()
    logits, caches = forward(weights, *map(lay, padded(tokens)), caches, LENGTHS - 1)
    out, rows = [logits], np.arange(len(tokens))
    for step in range(L - LENGTHS.max()):
        at = LENGTHS + step
        logits, caches = forward(weights, lay(tokens[rows, at][:, None]), lay(at[:, None]), caches, at)
        out.append(logits)
    return np.stack(out, axis=1)


def full(model, params, tokens):
    logits = jax.jit(model.apply)({'params': params}, tokens)
    steps = LENGTHS[:, None] - 1 + np.arange(L - LENGTHS.max() + 1)
    return np.take_along_axis(np.asarray(logits), steps[..., None], axis=1)


def check(config, sizes=None):
    model = tiny_model(config)
    params = random_params(model)
    exact = full(model, params, tokens())
    with on_mesh(sizes):
        lay = functools.partial(place, config=config)
        params = place_params(model, params)
        np.testing.assert_allclose(cached(model, params, tokens(), lay), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('residual', ['sequential', 'parallel'])
@pytest.mark.parametrize('attention', ATTENTIONS, ids=lambda a: a['attention'])
@pytest.mark.parametrize('position', POSITIONS)
def test_every_part(position, attention, residual):
    check(tiny_config(**(LLAMA | attention | {'position': position, 'residual': residual})))


@pytest.mark.parametrize('name', VARIANTS)
def test_every_variant(name):
    check(tiny_config(**(LLAMA | VARIANTS[name])))


@pytest.mark.parametrize('sizes', [None, pytest.param((1, 4, 2), marks=pytest.mark.slow), (2, 2, 2)], ids=str)
def test_unrolled_and_on_meshes(sizes):
    check(tiny_config(**LLAMA, scan=False), sizes=sizes)
    if sizes:
        check(tiny_config(**LLAMA), sizes=sizes)


def test_sliced_queries(monkeypatch):
    monkeypatch.setattr(attend, 'MIN_SLICE', 1)
    check(tiny_config(**LLAMA))
