"""A frozen base in few bits: how near it is, on which mesh, and that adapters train on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import LLAMA, VARIANTS, on_mesh, packed_tokens, place, place_params, random_params, tiny_config, tiny_model

from llm_jax.adapt import lora, quantise
from llm_jax.config.schema import ConfigError
from llm_jax.data.batch import unpack_rows
from llm_jax.ops.blockwise import Blockwise
from llm_jax.ops.blockwise import quantise as to_bits
from llm_jax.train.forward import per_token_nll

BOS = 1
BLOCK = {'model__adapter__block': 8, 'model__adapter__kind': 'lora', 'model__adapter__rank': 2}


def make(base, **fields):
    adapter = {'model__adapter__base': base, **BLOCK}
    model = tiny_model(tiny_config(**LLAMA | adapter | fields))
    return model, random_params(model, scale=0.2)


@pytest.mark.parametrize('double', [False, True])
@pytest.mark.parametrize(('kind', 'error'), [('int8', 1 / 254), ('nf4', 0.16)])
def test_there_and_back(kind, error, double):
    """Within half a step of each block's largest entry, along any dimension; what is 0 stays 0."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(3, 16, 10)).astype(np.float32)
    w[0, :8] = 0
    for axis, block in ((1, 8), (2, 2), (1, 16)):
        made = to_bits(w, kind, axis=axis, block=block, double=double)
        back = Blockwise(made, w.shape, ('experts', 'scores', 'scores')).astype(jnp.float32)
        n = w.shape[axis] // block
        shape = (*w.shape[:axis], n, block, *w.shape[axis + 1 :])
        absmax = np.abs(w.reshape(shape)).max(axis + 1, keepdims=True)
        slack = 0.02 * absmax.max() if double else 1e-6
        assert np.all(np.abs(np.reshape(back - w, shape)) <= error * absmax + slack)
        assert np.all(np.asarray(back)[0, :8] == 0) or double
    size = made['codes'].size * made['codes'].dtype.itemsize
    assert size == w.size // (2 if kind == 'nf4' else 1)


@pytest.mark.parametrize('variant', [VARIANTS['moe'], VARIANTS['mla']], ids=['moe', 'mla'])
def test_a_model_computes_with_what_its_base_dequantises_to(variant):
    """Also experts, whose matrices have no adapter; merging gives float32 parameters of the same model."""
    model, params = make('nf4', **variant)
    held = jax.jit(lambda params: quantise.hold_base(model, params))(params)
    codes = [leaf for leaf in jax.tree.leaves(held) if leaf.dtype == jnp.uint8]
    kernels = [leaf for leaf in jax.tree.leaves(params['layers']) if leaf.ndim > 2]
    assert 2 * sum(leaf.size for leaf in codes) >= 0.9 * sum(leaf.size for leaf in kernels)
    adapters = lora.init_adapters(model, held, jax.random.key(0))
    both = lora.attach(held, jax.tree.map(lambda x: x + 0.1, adapters))
    plain, merged = jax.jit(lambda params: lora.merge(model, params)[1])(both), None
    del merged
    assert jax.tree.map(jnp.shape, plain) == jax.tree.map(jnp.shape, params)
    batch = unpack_rows(jnp.asarray(packed_tokens(4)), BOS)
    run = jax.jit(lambda params: per_token_nll(model, params, batch))
    np.testing.assert_allclose(run(both), run(plain), rtol=1e-3, atol=1e-3)
    assert np.abs(run(lora.attach(params, lora.detach(both)[1])) - run(both)).max() > 1e-3


@pytest.mark.parametrize(
    'base', [pytest.param('bfloat16', marks=pytest.mark.slow), pytest.param('int8', marks=pytest.mark.slow), 'nf4']
)
def test_adapters_train_on_it_the_same_on_a_mesh(base):
    model, params = make(base, model__adapter__kind='dora', model__adapter__double_quantise=True)
    rows = packed_tokens(8)

    def hold(params):
        held = quantise.hold_base(model, params)
        return held, lora.init_adapters(model, held, jax.random.key(0))

    def run(held, adapters, rows):
        batch = unpack_rows(rows, BOS)
        loss = lambda adapters: jnp.mean(per_token_nll(model, lora.attach(held, adapters), batch))
        return jax.value_and_grad(loss)(jax.tree.map(lambda x: x + 0.05, adapters))

    held, adapters = jax.jit(hold)(params)
    wanted = jax.jit(run)(held, adapters, rows)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(wanted[1]))
    with on_mesh({'fsdp': 2, 'tensor': 2}):
        held, adapters = jax.jit(hold)(place_params(model, params))
        got = jax.jit(run)(held, adapters, place(rows, tiny_config()))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max())
    jax.tree.map(close, jax.device_get(got), wanted)


def test_a_block_that_fits_nothing():
    model, params = make('nf4', model__adapter__block=7)
    with pytest.raises(ConfigError, match=r'model.adapter.block = 7: layers/.*/kernel, \[.*\], has no dimension'):
        quantise.hold_base(model, params)
