"""Decoding with weights in few bits and a cache in int8: the same tokens, no weight is copied, bad names are told."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import LLAMA, VARIANTS, V, on_mesh, place_params, random_params, tiny_config, tiny_model

from llm_jax.config.schema import ConfigError
from llm_jax.generate import blocks, decode
from llm_jax.generate.engine import Engine, generate
from llm_jax.generate.requests import Request
from llm_jax.generate.settings import Sampler
from llm_jax.nn.transformer import weights_of
from llm_jax.ops.quantised import Quantised, dequantise_params, quantise_params

PROMPTS, N = [[1, 5, 9, 30, 31, 32, 33], [1]], 12
ENGINE = {'max_new_tokens': N, 'sampler': Sampler(0)}
LENGTH = 24


@functools.cache
def trained(name=''):
    model = tiny_model(tiny_config(**LLAMA | VARIANTS.get(name, {}), n_layers=1, data__seq_len=LENGTH))
    return model, jax.tree.map(jnp.asarray, random_params(model))


@functools.cache
def narrowed(kind):
    model, params = trained()
    return quantise_params(params, weights_of(model), kind)


def naive(model, params, prompt):
    """Greedy, with a full forward pass for each token."""
    run = jax.jit(model.apply)
    tokens = np.zeros(LENGTH, np.int32)
    tokens[: len(prompt)] = prompt
    for i in range(len(prompt), len(prompt) + N):
        tokens[i] = np.argmax(run({'params': params}, tokens[None])[0, i - 1])
    return tokens[len(prompt) : len(prompt) + N].tolist()


@pytest.mark.parametrize('kind', ['int8', 'int4'])
def test_greedy_equals_a_loop_of_full_forward_passes(kind):
    """Integers are exact, so that what a token gives depends neither on the cache nor on its neighbours.

    The products of int4 are those of floats on this platform: the reference has the floats that they stand for.
    """
    model, params = trained()
    reference = narrowed(kind) if kind == 'int8' else dequantise_params(narrowed(kind))
    expected = [naive(model, reference, prompt) for prompt in PROMPTS]
    assert generate(model, params, PROMPTS, quantise=kind, **ENGINE) == expected
    assert generate(model, narrowed(kind), PROMPTS[:1], **ENGINE) == expected[:1]  # of a converted run


@pytest.mark.parametrize('name', ['', 'mla'])
def test_a_cache_in_int8_is_near_that_in_floats(name):
    """Keys and values are rounded to a part in 254 of their largest: so near are the logits; no float is stored."""
    model, params = trained(name)
    model = decode.decoding_model(model)
    tokens = np.random.default_rng(0).integers(2, V, (2, LENGTH)).astype(np.int32)
    positions = np.broadcast_to(np.arange(LENGTH), tokens.shape)
    weights = decode.prepare(model, params)
    logits = {}
    for kind in ('', 'int8'):
        caches = jax.jit(lambda kind=kind: decode.empty_caches(model.config, 2, LENGTH, kind))()
        run = jax.jit(functools.partial(decode.forward, model))
        first, caches = run(weights, tokens[:, :8], positions[:, :8], caches, np.full(2, 7))
        second, caches = run(weights, tokens[:, 8:9], positions[:, 8:9], caches, np.zeros(2, int))
        logits[kind] = np.stack([first, second])
    kept = jax.tree.leaves(caches, is_leaf=lambda x: isinstance(x, Quantised))
    assert {leaf.values.dtype.name for leaf in kept} == {'int8'}
    assert all(leaf.scale.shape == (*leaf.shape[:3], 1) for leaf in kept)
    error = np.linalg.norm(logits['int8'] - logits['']) / np.linalg.norm(logits[''])
    assert 1e-5 < error < 0.03


def test_rows_do_not_depend_on_slots_chunks_or_kept_prefixes():
    model, params = trained()
    requests = [Request(prompt, 8, Sampler(1.0), seed=i) for i, prompt in enumerate(PROMPTS * 2)]
    options = {'quantise': 'int8', 'cache': 'int8', 'context': LENGTH}
    alone = Engine(model, params, n_slots=1, **options).run(requests)
    together = Engine(model, params, n_slots=3, chunk=4, **options).run(requests)
    assert [row.tokens for row in alone] == [row.tokens for row in together]


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['int8', 'int4'])
def test_the_same_tokens_on_a_mesh(kind):
    model, params = trained()
    options = {'quantise': kind, 'cache': 'int8', **ENGINE}
    expected = generate(model, params, PROMPTS, **options)
    with on_mesh((2, 2, 2)):
        assert generate(model, place_params(model, params), PROMPTS, **options) == expected


@pytest.mark.parametrize(('kind', 'most'), [('int8', 0.27), ('int4', 0.17)])
def test_a_block_of_tokens_copies_no_weight(kind, most):
    """Bytes of the weights, and the memory that the compiled program needs besides."""
    sizes = {'d_model': 512, 'd_ff': 512, 'n_layers': 2, 'vocab_size': 2048, 'data__seq_len': 32}
    model = tiny_model(tiny_config(**LLAMA | sizes | {'tie_embeddings': True}))
    params = jax.tree.map(jnp.asarray, random_params(model))
    engine = Engine(model, params, n_slots=1, cache='int8', quantise=kind)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(engine._weights))
    assert size < most * sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    arguments = engine._weights, None, engine._slots, np.int32(16), engine._all_allowed
    block = blocks.decode_block.lower(engine.model, None, engine.vocab_size, 32, *arguments).compile()
    assert block.memory_analysis().temp_size_in_bytes < 0.1 * size


def test_unknown_kinds():
    model, params = trained()
    with pytest.raises(ConfigError, match="quantise = 'int3' is not known; use 'int8' or 'int4', or '' for none"):
        Engine(model, params, quantise='int3')
    with pytest.raises(ConfigError, match="cache = 'int4' is not known; use 'int8', or '' for none"):
        Engine(model, params, cache='int4')
    with pytest.raises(ConfigError, match="quantise = 'int4': the weights are int8 already"):
        Engine(model, narrowed('int8'), quantise='int4')
