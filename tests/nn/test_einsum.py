import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import on_mesh, tiny_config

from llm_jax.nn.einsum import Einsum

CASES = {
    'BLD,DHK->BLHK': ((2, 8, 32), (32, 4, 6), ('d_model', 'heads', 'd_head')),
    'BLHK,HKD->BLD': ((2, 8, 4, 6), (4, 6, 32), ('heads', 'd_head', 'd_model')),
    'BLD,DF->BLF': ((2, 8, 32), (32, 48), ('d_model', 'd_ff')),
}


@pytest.mark.parametrize('equation', CASES)
@pytest.mark.parametrize('sizes', [None, (1, 2, 2)])
def test_equals_numpy(equation, sizes):
    rng = np.random.default_rng(0)
    x_shape, shape, axes = CASES[equation]
    x, kernel, bias = (
        rng.normal(size=s).astype(np.float32) for s in (x_shape, shape, shape[-len(equation.split('->')[1]) + 2 :])
    )
    module = Einsum(equation, shape, axes, tiny_config().model, use_bias=True)
    with on_mesh(sizes):
        y = jax.jit(module.apply)({'params': {'kernel': kernel, 'bias': bias}}, x)
    exact = np.einsum(equation, x.astype(np.float64), kernel) + bias
    np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-5)


def test_dtype_of_the_computation_and_of_the_parameters():
    module = Einsum(
        'BLD,DF->BLF', (32, 48), ('d_model', 'd_ff'), tiny_config(dtype='bfloat16').model, use_bias=True
    )
    y, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), jnp.zeros((1, 1, 32)))
    assert y.dtype == jnp.bfloat16
    assert {v.dtype for v in variables['params'].values()} == {jnp.dtype('float32')}


@pytest.mark.parametrize('equation', ['BLD,FD->BLF', 'BLD,DF->BFL', 'BDL,DF->BLF'])
def test_other_equations_are_refused(equation):
    module = Einsum(equation, (32, 32), ('d_model', 'd_ff'), tiny_config().model)
    with pytest.raises(ValueError, match='contracted letters must end x'):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32)))
