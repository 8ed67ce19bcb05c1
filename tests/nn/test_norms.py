import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from tiny import tiny_config

from llm_jax.nn.norms import NORMS

FORMULA = {'layernorm': reference.layer_norm, 'rmsnorm': reference.rms_norm}


@pytest.mark.parametrize('name', NORMS)
@pytest.mark.parametrize('bias', [False, True])
def test_equals_the_paper(name, bias):
    rng = np.random.default_rng(0)
    config = tiny_config(norm=name, norm_bias=bias, norm_eps=1e-2).model
    x = rng.normal(3, 2, (2, 5, 32)).astype(np.float32)
    x[0, 0] = 0  # where eps alone is under the root
    params = {'scale': rng.normal(size=32).astype(np.float32)}
    if bias:
        params['bias'] = rng.normal(size=32).astype(np.float32)
    y = jax.jit(NORMS[name](config).apply)({'params': params}, x)
    np.testing.assert_allclose(y, FORMULA[name](x.astype(np.float64), 1e-2, **params), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize('name', NORMS)
def test_statistics_are_float32_under_bfloat16(name):
    config = tiny_config(norm=name, dtype='bfloat16').model
    x = (100 + np.random.default_rng(0).normal(size=(1, 4, 32))).astype(jnp.bfloat16)
    y = jax.jit(NORMS[name](config).apply)({'params': {'scale': np.ones(32, np.float32)}}, x)
    assert y.dtype == jnp.bfloat16
    exact = FORMULA[name](np.asarray(x, np.float64), config.norm_eps)
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize('name', NORMS)
def test_parameters(name):
    shapes = lambda **kw: jax.eval_shape(
        NORMS[name](tiny_config(norm=name, **kw).model).init, jax.random.key(0), jnp.zeros((1, 1, 32))
    )['params']
    assert {k: v.shape for k, v in shapes().items()} == {'scale': (32,)}
    assert {k: v.shape for k, v in shapes(norm_bias=True).items()} == {'scale': (32,), 'bias': (32,)}


@pytest.mark.parametrize('name', NORMS)
def test_nothing_in_float32_is_kept_for_the_backward_pass(name):
    module = NORMS[name](tiny_config(norm=name, dtype='bfloat16').model)
    x = jnp.zeros((2, 5, 32), jnp.bfloat16)
    params = jax.eval_shape(module.init, jax.random.key(0), x)
    kept = jax.eval_shape(lambda p, x: jax.tree.leaves(jax.vjp(module.apply, p, x)[1]), params, x)
    assert [leaf.dtype for leaf in kept if leaf.size == x.size] == [jnp.bfloat16]
