import jax
import numpy as np
import pytest
import reference
from tiny import tiny_config

from llm_jax.nn.positions import POSITIONS, Rope

POSITIONS_BL = np.array([[0, 1, 2, 3, 4, 5, 6, 7], [5, 6, 0, 1, 2, 0, 1000, 1001]])


def rope(x_BLHK, positions_BL, theta=10_000.0):
    config = tiny_config(model__rope__theta=theta, d_head=x_BLHK.shape[-1]).model
    return jax.jit(lambda x, p: Rope.rotate(config, x, Rope.tables(config, p, x.shape[-1])))(x_BLHK, positions_BL)


@pytest.mark.parametrize('theta', [10_000.0, 500_000.0])
def test_rope_is_a_rotation_of_complex_pairs(theta):
    x = np.random.default_rng(0).normal(size=(2, 8, 3, 16)).astype(np.float32)
    y = rope(x, POSITIONS_BL, theta)
    for row in range(2):
        # Near 1000 an angle itself is only known to 1e-4 in float32.
        exact = reference.rope(x[row].astype(np.float64), POSITIONS_BL[row], theta)
        np.testing.assert_allclose(y[row], exact, atol=3e-4)


def test_rope_scores_depend_on_the_distance_alone():
    rng = np.random.default_rng(0)
    q, k = (np.broadcast_to(rng.normal(size=16), (1, 40, 1, 16)).astype(np.float32) for _ in range(2))
    positions = np.arange(40)[None]
    scores = np.einsum('lk,sk->ls', rope(q, positions)[0, :, 0], rope(k, positions)[0, :, 0])
    for distance in range(-20, 20):
        along = np.diagonal(scores, distance)
        np.testing.assert_allclose(along, along[0], atol=2e-4)
    assert np.ptp(scores[0]) > 1  # and on the distance it does depend


def test_rope_changes_nothing_at_position_0():
    x = np.random.default_rng(0).normal(size=(1, 2, 1, 8)).astype(np.float32)
    np.testing.assert_array_equal(rope(x, np.zeros((1, 2), int)), x)


def test_rope_under_bfloat16_rotates_in_float32():
    x = np.random.default_rng(0).normal(size=(1, 8, 1, 16)).astype('bfloat16')
    y = rope(x, POSITIONS_BL[:1] + 500)
    assert y.dtype == 'bfloat16'
    exact = reference.rope(np.asarray(x[0], np.float64), POSITIONS_BL[0] + 500, 10_000.0)
    np.testing.assert_allclose(np.asarray(y[0], np.float64), exact, rtol=2**-8, atol=1e-3)


def test_sinusoidal_equals_the_paper():
    config = tiny_config(position='sinusoidal').model
    x = np.random.default_rng(0).normal(size=(2, 8, 32)).astype(np.float32)
    part = POSITIONS['sinusoidal'](config)
    y = jax.jit(lambda x, p: part.apply({}, x, p, method='add'))(x, POSITIONS_BL)
    for row in range(2):
        exact = x[row] * np.sqrt(32) + reference.sinusoidal(POSITIONS_BL[row], 32)
        np.testing.assert_allclose(y[row], exact, atol=3e-4)


def test_learned_adds_the_row_of_each_position():
    config = tiny_config(position='learned', max_seq_len=16).model
    x = np.random.default_rng(0).normal(size=(1, 6, 32)).astype(np.float32)
    table = np.random.default_rng(1).normal(size=(16, 32)).astype(np.float32)
    part = POSITIONS['learned'](config)
    variables = {'params': {'table': {'embedding': table}}}
    positions = np.array([[0, 1, 15, 0, 1, 2]])
    y = jax.jit(lambda v, x, p: part.apply(v, x, p, method='add'))(variables, x, positions)
    np.testing.assert_array_equal(y[0], x[0] + table[positions[0]])


def test_none_adds_nothing():
    x = np.ones((1, 2, 32), np.float32)
    part = POSITIONS['none'](tiny_config(position='none').model)
    np.testing.assert_array_equal(part.apply({}, x, np.zeros((1, 2), int), method='add'), x)
