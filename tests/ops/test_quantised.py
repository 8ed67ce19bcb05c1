"""Weights in few bits: their layout and bytes, products against float64, in every module and on every mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import GPT2, LLAMA, VARIANTS, V, on_mesh, place_params, random_params, tiny_config, tiny_model

from llm_jax.config.schema import ConfigError
from llm_jax.nn.transformer import weights_of
from llm_jax.ops.quantised import Quantised, dequantise, multiply, quantise, quantise_params

KINDS = ('int8', 'int4')
# Relative error of Gaussian data: a step is 3 deviations / 127 (of 200 numbers), or 2.2 / 8 (of 32), over √12.
ROUNDING = {'int8': 0.009, 'int4': 0.1}
T, I, O = 5, 200, 48  # noqa: E741


def error(got, exact):
    return np.linalg.norm(np.asarray(got, np.float64) - exact) / np.linalg.norm(exact)


@pytest.fixture(scope='module')
def operands():
    rng = np.random.default_rng(0)
    return rng.normal(size=(T, I)).astype(np.float32), rng.normal(size=(I, O)).astype(np.float32)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(('shape', 'n_in', 'n_lead'), [((I, O), 1, 0), ((3, 8, 25, 6, 8), 2, 1), ((O, I), 0, 0)])
def test_back_to_float(kind, shape, n_in, n_lead):
    """Dimensions come back as they were; a number is off by half a step of its scale at most."""
    w = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    q = quantise(jnp.asarray(w), kind, n_in=n_in, n_lead=n_lead)
    assert q.kind == kind
    assert q.shape[-2] == O
    back = np.asarray(dequantise(q))
    assert back.shape == shape
    assert error(back, w) < ROUNDING[kind]
    assert np.abs(back - w).max() <= np.abs(np.asarray(q.scale)).max() * (0.5 if kind == 'int8' else 1.0) + 1e-6


def test_layout_of_int4():
    """Number j of a group is in the low half of byte j, number j + 16 in its high half, both plus 8."""
    w = np.arange(-8, 8, dtype=np.float32).repeat(4).reshape(2, 32)
    w = np.concatenate([w[:1], -w[:1]], axis=1)  # groups that reach -8 · 1 and -8 · -1
    q = quantise(jnp.asarray(w), 'int4')
    np.testing.assert_array_equal(q.scale, [[1, -1]])
    digits = w[0, :32] + 8
    np.testing.assert_array_equal(q.values[0, :16], digits[:16] + 16 * digits[16:])
    np.testing.assert_array_equal(dequantise(q), w)


def test_bytes():
    """A quarter and a fourth part more than an eighth of float32's, scales apart from those of short rows."""
    w = jnp.ones((1024, 512))
    size = lambda kind: sum(x.nbytes for x in jax.tree.leaves(quantise(w, kind, n_in=1))) / w.nbytes
    assert size('int8') < 0.2515
    assert size('int4') < 0.157


@pytest.mark.parametrize('rows', [1, 2, T])
def test_int8_rounds_both_operands_once(operands, rows):
    """The product is exactly that of the integers: scales leave it, and nothing else is rounded."""
    x, w = operands[0][:rows], operands[1]
    q = quantise(jnp.asarray(w), 'int8', n_in=1)
    scale = np.abs(x).max(-1, keepdims=True) / 127
    exact = (np.round(x / scale) * scale).astype(np.float64) @ np.asarray(dequantise(q), np.float64)
    y = jax.jit(multiply)(x, q)
    np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-4)
    assert error(y, x.astype(np.float64) @ w) < 0.015


@pytest.mark.parametrize('outputs', [1, 31, O])
@pytest.mark.parametrize('rows', [1, T])
def test_int4_multiplies_what_it_stands_for(operands, rows, outputs):
    """Also where a weight is no whole number of blocks, nor of groups."""
    x, w = operands[0][:rows], operands[1][:, :outputs]
    q = quantise(jnp.asarray(w), 'int4', n_in=1)
    exact = x.astype(np.float64) @ np.asarray(dequantise(q), np.float64)
    np.testing.assert_allclose(jax.jit(multiply)(x, q), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('kind', KINDS)
def test_zeros_and_extremes(operands, kind):
    """A column, a token or all of zeros gives 0 and no NaN; -128 is never used; NaN of a token stays its own."""
    x, w = (a.copy() for a in operands)
    w[:, 3], w[7, 5], x[1] = 0, -50, 0
    q = quantise(jnp.asarray(w), kind, n_in=1)
    if kind == 'int8':
        assert int(q.values.min()) == -127
    y = np.asarray(jax.jit(multiply)(x, q))
    assert np.isfinite(y).all()
    assert not y[1].any()
    assert not y[:, 3].any()
    assert not np.asarray(dequantise(quantise(jnp.zeros((4, 40)), kind))).any()
    x[2, 0] = np.nan
    bad = np.asarray(jax.jit(multiply)(x, q))
    assert np.isnan(bad[2, :3]).all()
    np.testing.assert_array_equal(np.delete(bad, 2, 0), np.delete(y, 2, 0))


@pytest.mark.parametrize('kind', KINDS)
def test_a_product_copies_no_weight(kind):
    """On CPU the compiled product of a single row needs no memory of the size of the weight."""
    q = jax.eval_shape(lambda: quantise(jnp.zeros((512, 4096)), kind, n_in=1))
    compiled = jax.jit(multiply).lower(jax.ShapeDtypeStruct((1, 512), jnp.float32), q).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.1 * q.values.size * q.values.dtype.itemsize


def test_an_unknown_kind_and_a_second_quantisation():
    with pytest.raises(ConfigError, match="quantise = 'int3' is not known.*int8, int4"):
        quantise(jnp.ones((4, 4)), 'int3')
    model, params = trained()
    narrow = quantise_params(params, weights_of(model), 'int8')
    assert quantise_params(narrow, weights_of(model), 'int8')['embed']['embedding'] is narrow['embed']['embedding']
    with pytest.raises(ConfigError, match="quantise = 'int4': the weights are int8 already"):
        quantise_params(narrow, weights_of(model), 'int4')


# --- In a model ------------------------------------------------------------------------


MODELS = {
    'llama': {},
    'gpt2': GPT2 | {'n_kv_heads': 0},
    'mla': VARIANTS['mla'],
    'moe': VARIANTS['moe, groups, shared'],
}


@functools.cache
def trained(name='llama'):
    model = tiny_model(
        tiny_config(**LLAMA | {'d_model': 64, 'd_ff': 96, 'n_layers': 1, 'vocab_size': V} | MODELS[name])
    )
    return model, random_params(model, scale=0.15)


def is_narrow(x):
    return isinstance(x, Quantised)


@functools.cache
def pairs(name, kind):
    """(model, params, those quantised, those as floats again)."""
    model, params = trained(name)
    narrow = quantise_params(jax.tree.map(jnp.asarray, params), weights_of(model), kind)
    wide = jax.tree.map(lambda x: dequantise(x) if is_narrow(x) else x, narrow, is_leaf=is_narrow)
    return model, params, narrow, wide


TOKENS = np.random.default_rng(0).integers(2, V, (8, 12)).astype(np.int32)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('name', ['gpt2', 'mla', 'moe'])
def test_every_module_takes_quantised_weights(name, kind):
    """A model applied to quantised weights is the one of the floats that they stand for."""
    model, params, narrow, wide = pairs(name, kind)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), params, wide)
    run = jax.jit(model.apply)
    expected, got = run({'params': wide}, TOKENS), run({'params': narrow}, TOKENS)
    # Of each token, since a router that chooses other experts for a few changes these alone.
    errors = np.linalg.norm(got - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert np.median(errors) < (0.06 if kind == 'int8' else 1e-4)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(
    ('name', 'sizes'), [('llama', (2, 2, 2)), ('mla', (1, 4, 2)), ('moe', {'data': 2, 'expert': 2, 'tensor': 2})]
)
def test_the_same_on_a_mesh(name, sizes, kind):
    """Weights are quantised where they are, and stay sharded: integers equal those of one device."""
    model, params, narrow, _ = pairs(name, kind)
    expected = jax.jit(model.apply)({'params': narrow}, TOKENS)
    with on_mesh(sizes):
        placed = place_params(model, params)
        split = jax.jit(lambda params: quantise_params(params, weights_of(model), kind))(placed)
        got = jax.jit(model.apply)({'params': split}, TOKENS)
    flat, sharded = (jax.tree.leaves(tree, is_leaf=is_narrow) for tree in (placed, split))
    for w, q in zip(flat, sharded, strict=True):
        if is_narrow(q) and kind == 'int8':
            assert len(q.values.sharding.device_set) == len(w.sharding.device_set)
            assert q.values.sharding.shard_shape(q.shape) != q.shape or w.sharding.is_fully_replicated
    near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 if a.dtype == jnp.float32 else 1)
    jax.tree.map(near, *(jax.tree.map(np.float32, jax.device_get(tree)) for tree in (narrow, split)))
    # An activation between two integers may be rounded to the other, as sums are in another order.
    assert np.median(np.abs(got - expected)) < 1e-4 * np.std(expected)
    assert error(got, np.asarray(expected)) < 0.02
