"""Adapters on whole models: nothing at the start, the same merged, on every mesh, in loops and in decoding."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import LLAMA, VARIANTS, on_mesh, packed_tokens, place, place_params, random_params, tiny_config, tiny_model

from llm_jax.adapt import lora
from llm_jax.config.schema import Adapter
from llm_jax.data.batch import split_length, unpack_rows
from llm_jax.generate import decode
from llm_jax.train.forward import per_token_nll

BOS = 1


def make(kind='lora', **fields):
    """(model, parameters of the base, adapters with B drawn at random)."""
    names = {name: fields.pop(name) for name in list(fields) if name in ('rank', 'alpha', 'targets', 'dropout', 'base')}
    adapter = {f'model__adapter__{name}': value for name, value in ({'rank': 3, 'alpha': 3.0} | names).items()}
    model = tiny_model(tiny_config(**LLAMA | fields, **adapter, model__adapter__kind=kind))
    params = random_params(model, scale=0.2)
    init = jax.jit(lambda params: lora.init_adapters(model, params, jax.random.key(0)))
    return model, params, draw(init(params))


def draw(adapters, seed=1):
    rng = np.random.default_rng(seed)
    noise = lambda leaf: leaf + (0.2 * rng.standard_normal(leaf.shape)).astype(np.float32)
    return jax.tree.map(noise, adapters)


def merge(model, params):
    """`lora.merge`, compiled."""
    plain = type(model)(dataclasses.replace(model.config, adapter=Adapter()))
    return plain, jax.jit(lambda params: lora.merge(model, params)[1])(params)


def logits_of(model, params, rows=4):
    batch = unpack_rows(jnp.asarray(packed_tokens(rows)), BOS)
    return jax.jit(lambda params: model.apply({'params': params}, batch.tokens, batch.positions, batch.segments))(
        params
    )


def test_fresh_adapters_are_the_base_and_merged_ones_are_what_they_were():
    fields = LLAMA | VARIANTS['local and global'] | {'bias': True}
    model, params, adapters = make('dora', **fields)
    fresh = lora.init_adapters(model, params, jax.random.key(0))
    base = logits_of(model, params)
    np.testing.assert_allclose(logits_of(model, lora.attach(params, fresh)), base, rtol=2e-5, atol=2e-5)
    both = lora.attach(params, adapters)
    changed = logits_of(model, both)
    assert np.abs(changed - base).max() > 0.1
    plain, merged = merge(model, both)
    assert plain.config.adapter.kind == 'none'
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    np.testing.assert_allclose(logits_of(plain, merged), changed, rtol=1e-4, atol=1e-4)
    back, again = lora.detach(both)
    jax.tree.map(np.testing.assert_array_equal, (back, again), (params, adapters))


def test_an_adapter_of_b_zero_is_the_base_to_the_bit():
    model, params, _ = make()
    fresh = lora.init_adapters(model, params, jax.random.key(0))
    np.testing.assert_array_equal(logits_of(model, lora.attach(params, fresh)), logits_of(model, params))


@pytest.mark.parametrize(
    ('variant', 'targets'),
    [
        ('mla', '.*'),
        pytest.param('moe, groups, shared', '.*', marks=pytest.mark.slow),
        ('parallel, two norms', '(layers/.*/(up|down)|unembed|embed)/.*'),
    ],
)
def test_any_matrix_of_any_part(variant, targets):
    """Which matrices get one; merging gives the same in a whole pass, and decoding with a cache as well."""
    model, params, adapters = make(**LLAMA | VARIANTS[variant], targets=targets)
    paths = lora.find_targets(model)
    assert all(re.fullmatch(targets, path) for path in paths)
    assert {path.rpartition('/')[0] for path in lora._flat(adapters)} == {t.place for t in paths.values()}
    assert not any('router' in path or 'experts' in path for path in paths)
    both = lora.attach(params, adapters)
    plain, merged = merge(model, both)
    wanted = logits_of(plain, merged)
    np.testing.assert_allclose(logits_of(model, both), wanted, rtol=2e-4, atol=2e-4)
    tokens = np.random.default_rng(0).integers(2, 60, (2, 5))
    positions, last = np.broadcast_to(np.arange(5), (2, 5)), np.full(2, 4)

    def decoded(model, params):
        weights = decode.prepare(model, params)
        return decode.forward(model, weights, tokens, positions, decode.empty_caches(model.config, 2, 8), last)[0]

    run = lambda model, params: jax.jit(lambda params: decoded(model, params))(params)
    np.testing.assert_allclose(run(model, both), run(plain, merged), rtol=2e-4, atol=2e-4)


def test_unrolled_layers_and_muP_are_no_others():
    model, params, adapters = make(
        'dora', targets='(layers|unembed).*', model__mup__base_width=16, scan=True, dtype='float32', n_layers=3
    )
    both = lora.attach(params, adapters)
    wanted = logits_of(model, both)
    unrolled = type(model)(dataclasses.replace(model.config, scan=False))
    np.testing.assert_allclose(logits_of(unrolled, both), wanted, rtol=2e-5, atol=2e-5)
    plain, merged = merge(model, both)
    np.testing.assert_allclose(logits_of(plain, merged), wanted, rtol=2e-4, atol=2e-4)


SEQUENCE = {'mesh__rules__residual_length': ('context', 'tensor')}
MESHES = {
    'fsdp, tensor': ('dora', {'fsdp': 2, 'tensor': 2}, {}),
    'context, tensor': ('dora', {'fsdp': 2, 'context': 2, 'tensor': 2}, SEQUENCE),
    'stages': ('lora', {'stage': 2, 'fsdp': 2}, {'mesh__stage': 2, 'mesh__pipeline_microbatches': 2}),
}


@pytest.mark.parametrize('name', ['fsdp, tensor', 'stages', pytest.param('context, tensor', marks=pytest.mark.slow)])
def test_every_mesh_gives_the_same(name):
    """Adapters, the loss, and its gradients, each sharded as its kernel's sides."""
    kind, sizes, fields = MESHES[name]
    model, params, adapters = make(kind, **fields, targets='.*' if kind == 'lora' else '(layers|unembed)/.*')
    rows = packed_tokens(8)

    def init(params):
        return lora.init_adapters(model, params, jax.random.key(0))

    def run(adapters, params, rows):
        batch = split_length(unpack_rows(rows, BOS), model.config.rules)

        def loss(adapters):
            both = lora.attach(params, adapters)
            return jnp.sum(per_token_nll(model, both, batch) * batch.loss_weights) / 50

        return jax.value_and_grad(loss)(adapters)

    def merged(params, adapters):
        return lora.merge(model, lora.attach(params, adapters))[1]

    wanted = jax.jit(init)(params), jax.jit(run)(adapters, params, rows), jax.jit(merged)(params, adapters)
    with on_mesh(sizes):
        base = place_params(model, params)
        fresh = jax.jit(init)(base)
        side = lambda x, index: tuple(jax.typeof(x).sharding.spec)[index]
        for matrix, inputs in (('q', 1), ('out', 2)):
            kernel = base['layers']['attention'][matrix]['kernel']
            adapter = fresh['layers']['attention'][matrix]['lora']
            assert side(adapter['a'], slice(0, inputs + 1)) == side(kernel, slice(0, inputs + 1))
            assert side(adapter['b'], slice(2, None)) == side(kernel, slice(inputs + 1, None))
        placed = jax.tree.map(lambda x, leaf: jax.device_put(x, leaf.sharding.spec), adapters, fresh)
        got = fresh, jax.jit(run)(placed, base, place(rows, tiny_config())), jax.jit(merged)(base, placed)
        same_types = lambda a, b: jax.tree.map(jax.typeof, a) == jax.tree.map(jax.typeof, b)
        assert same_types(got[1][1], placed)
        assert same_types(got[2], base)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5 + 1e-4 * np.abs(b).max())
    jax.tree.map(close, jax.device_get(got), wanted)
