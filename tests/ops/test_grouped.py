"""Products of groups of rows, against a product for each row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.ops.grouped import grouped_product, loop
from llm_jax.plan.cost import analyse

SIZES = {
    'several turns of some': ((600, 100, 3, 250), 1000),
    'all rows in one group': ((0, 40, 0), 40),
    'no rows at all': ((0, 0, 0), 40),
    'groups smaller than a turn': ((3, 0, 17, 8, 1, 0, 20, 5), 64),
    'one group': ((13,), 13),
}


def drawn(sizes, n_rows, dtype=np.float32):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(n_rows, 16))
    kernels = rng.normal(size=(len(sizes), 16, 24))
    return rows.astype(dtype), kernels.astype(dtype), jnp.array(sizes, jnp.int32), rng.normal(size=(n_rows, 24))


def one_by_one(rows, kernels, sizes):
    """Each row with its own matrix, in float64."""
    group = np.repeat(np.arange(len(sizes)), sizes)
    return np.einsum('nd,ndf->nf', rows[: len(group)].astype(np.float64), kernels[group].astype(np.float64)), group


@pytest.mark.parametrize('case', SIZES)
def test_each_row_meets_the_matrix_of_its_group(case):
    sizes, n_rows = SIZES[case]
    rows, kernels, sizes, _ = drawn(sizes, n_rows)
    exact, group = one_by_one(rows, kernels, sizes)
    y = jax.jit(grouped_product)(rows, kernels, sizes)
    np.testing.assert_allclose(y[: len(group)], exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('case', SIZES)
def test_gradients(case):
    sizes, n_rows = SIZES[case]
    rows, kernels, sizes, d = drawn(sizes, n_rows)
    _, group = one_by_one(rows, kernels, sizes)
    d[len(group) :] = 0
    loss = lambda rows, kernels: jnp.sum(grouped_product(rows, kernels, sizes) * d)
    d_rows, d_kernels = jax.jit(jax.grad(loss, argnums=(0, 1)))(rows, kernels)
    exact = np.zeros(kernels.shape)
    np.add.at(exact, group, np.einsum('nd,nf->ndf', rows, d)[: len(group)])
    np.testing.assert_allclose(d_kernels, exact, rtol=1e-5, atol=2e-4)
    exact = np.einsum('nf,ndf->nd', d[: len(group)], kernels[group])
    np.testing.assert_allclose(d_rows[: len(group)], exact, rtol=1e-5, atol=1e-4)


def test_rows_of_nobody_spoil_nothing():
    """Neither they nor what comes back for them count, whatever it is."""
    rows, kernels, sizes, d = drawn((5, 0, 9), 40)
    run = jax.jit(lambda rows, d: jax.vjp(lambda *args: grouped_product(*args, sizes), rows, jnp.array(kernels))[1](d))
    clean = run(rows, d.astype(np.float32))
    rows[14:], d[14:] = np.nan, np.nan
    spoilt = run(rows, d.astype(np.float32))
    np.testing.assert_array_equal(clean[0][:14], spoilt[0][:14])
    np.testing.assert_array_equal(clean[1], spoilt[1])


def test_gradients_of_matrices_are_summed_in_float32():
    """Ones over more turns than bfloat16 could count: it has 8 bits, so that 256 + 1 = 256."""
    n = 40_000
    rows, kernels = jnp.ones((n, 8), jnp.bfloat16), jnp.ones((1, 8, 8), jnp.bfloat16)
    loss = lambda kernels: jnp.sum(grouped_product(rows, kernels, jnp.array([n])).astype(jnp.float32))
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(kernels).astype(np.float32), n, rtol=2**-8)


def test_the_work_does_not_grow_with_the_groups():
    """FLOPs, forward and backward. `ragged_dot` multiplies all rows once for each group on CPU."""
    rows = jax.ShapeDtypeStruct((4096, 64), jnp.float32)

    def flops(product, n_groups):
        kernels = jax.ShapeDtypeStruct((n_groups, 64, 64), jnp.float32)
        sizes = jax.ShapeDtypeStruct((n_groups,), jnp.int32)
        loss = lambda rows, kernels, sizes: jnp.sum(jnp.sin(product(rows, kernels, sizes)))
        cost = analyse(jax.jit(jax.grad(loss, argnums=(0, 1))).lower(rows, kernels, sizes).compile().as_text())
        assert not cost.unknown_loops
        return cost.flops / (3 * 2 * 4096 * 64 * 64)

    assert flops(grouped_product, 1) == pytest.approx(1, abs=0.01)
    assert flops(grouped_product, 16) == pytest.approx(1, abs=0.01)
    assert flops(jax.lax.ragged_dot, 16) > 15


def test_a_loop_says_what_to_expect():
    body = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    end = jax.ShapeDtypeStruct((), jnp.int32)
    flops = lambda about: (
        analyse(
            jax.jit(lambda x, end: loop(0, end, about, lambda i, y: y @ x, x)).lower(body, end).compile().as_text()
        ).flops
    )
    assert flops(0) == 0
    assert flops(7) == 7 * 2 * 64**3
