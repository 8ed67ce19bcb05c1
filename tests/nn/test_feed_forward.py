import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from tiny import tiny_config

from llm_jax.nn.feed_forward import DENSE


@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('name', DENSE)
def test_equals_the_formula(name, bias):
    rng = np.random.default_rng(0)
    config = tiny_config(feed_forward=name, bias=bias, d_ff=48).model
    module = DENSE[name](config)
    x = rng.normal(size=(2, 5, 32)).astype(np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)['params']
    assert set(shapes) == ({'gate', 'up', 'down'} if name in reference.GATES else {'up', 'down'})
    assert all(('bias' in part) == bias for part in shapes.values())
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)
    y = jax.jit(module.apply)({'params': params}, x)
    exact = reference.feed_forward(name, x.astype(np.float64), params)
    np.testing.assert_allclose(y, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(('name', 'd_ff', 'expected'), [
    ('gelu', 0, 4 * 32), ('relu2', 0, 4 * 32), ('swiglu', 0, 128), ('geglu', 0, 128), ('swiglu', 96, 96),
])  # fmt: skip
def test_hidden_width(name, d_ff, expected):
    config = tiny_config(feed_forward=name, d_ff=d_ff).model  # 8/3 · 32 = 85.3, up to a multiple of 64
    shapes = jax.eval_shape(DENSE[name](config).init, jax.random.key(0), jnp.zeros((1, 1, 32)))['params']
    assert shapes['up']['kernel'].shape == (32, expected)
    assert shapes['down']['kernel'].shape == (expected, 32)


@pytest.mark.parametrize('name', DENSE)
def test_the_steps_of_an_activation_are_not_kept(name):
    """Only what products give and take is, of arrays as wide as the hidden layer."""
    module = DENSE[name](tiny_config(feed_forward=name, d_ff=48).model)
    x = jnp.zeros((2, 5, 32))
    params = jax.eval_shape(module.init, jax.random.key(0), x)
    kept = jax.eval_shape(lambda p, x: jax.tree.leaves(jax.vjp(module.apply, p, x)[1]), params, x)
    assert sum(leaf.size == 2 * 5 * 48 for leaf in kept) == (3 if name in reference.GATES else 2)
