"""Products in narrow types, against float64; the same on every mesh; and that they train."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import LLAMA, on_mesh, packed_tokens, place, tiny_config, tiny_training

from llm_jax.config.schema import ConfigError
from llm_jax.ops.matmul import check_device, matmul

T, I, O = 24, 64, 40  # noqa: E741


@pytest.fixture(scope='module')
def operands():
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in ((T, I), (I, O), (T, O)))


def error(got, exact):
    return np.linalg.norm(np.asarray(got, np.float64) - exact) / np.linalg.norm(exact)


def with_gradients(x, w, probe, **how):
    loss = lambda x, w: (lambda y: (jnp.sum(y.astype(jnp.float32) * probe), y))(matmul(x, w, **how))
    grads, y = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(x, w)
    return y, *grads


# Relative errors of Gaussian data: rounding to 3 bits of mantissa (e4m3) is off by 2.6 % in the root mean square, to
# 2 bits (e5m2) by 5.2 %, and those of two operands add up; 8-bit integers of a row whose largest entry is about
# three deviations are off by 3 / 127 / √12 = 0.7 %.
@pytest.mark.parametrize(
    ('kind', 'most', 'most_backward'), [('default', 1e-6, 1e-6), ('fp8', 0.045, 0.075), ('int8', 0.015, 1e-6)]
)
def test_error_against_float64(operands, kind, most, most_backward):
    x, w, probe = (a.astype(np.float64) for a in operands)
    y, d_x, d_w = with_gradients(*operands, kind=kind)
    assert error(y, x @ w) < most
    assert error(d_x, probe @ w.T) < most_backward
    assert error(d_w, x.T @ probe) < most_backward
    if kind != 'default':
        assert error(y, x @ w) > most / 4  # it is rounded indeed


@pytest.mark.parametrize('kind', ['fp8', 'int8'])
def test_outliers_and_zeros(operands, kind):
    """Scales follow the data: any power of two of either operand gives the same digits; zeros give zeros."""
    x, w, _ = operands
    run = jax.jit(lambda x, w: matmul(x, w, kind))
    np.testing.assert_allclose(run(x * 2.0**40, w * 2.0**-60), run(x, w) * 2.0**-20, rtol=1e-6)
    np.testing.assert_array_equal(run(x * 0, w), np.zeros((T, O)))


def test_a_wide_result_is_not_rounded(operands):
    """bfloat16 operands: float32 out is the exact product of what they hold; their gradients stay bfloat16."""
    x, w = (jnp.asarray(a, jnp.bfloat16) for a in operands[:2])
    exact = np.asarray(x, np.float64) @ np.asarray(w, np.float64)
    y, d_x, d_w = with_gradients(x, w, operands[2], out_dtype='float32')
    assert (y.dtype, d_x.dtype, d_w.dtype) == (jnp.float32, jnp.bfloat16, jnp.bfloat16)
    assert error(y, exact) < 1e-6 < 1e-3 < error(matmul(x, w), exact)
    plain = with_gradients(x, w, operands[2])
    jax.tree.map(np.testing.assert_array_equal, plain[1:], (d_x, d_w))


@pytest.mark.parametrize('kind', ['fp8', pytest.param('int8', marks=pytest.mark.slow)])
def test_same_step_on_a_mesh(kind):
    """Scales are those of the whole array however it is split: by rows, columns and the tokens of a row."""
    sequence = {'mesh__rules__residual_length': ('context', 'tensor')}
    meshes = [
        ((1, 1, 1), {}), ((2, 2, 2), {}), ({'fsdp': 2, 'context': 2, 'tensor': 2}, sequence),
    ]  # fmt: skip
    results = []
    for sizes, rules in meshes:
        config = tiny_config(**LLAMA | rules, matmul=kind, optimizer__eps=1e-2)
        with on_mesh(sizes):
            step, state = tiny_training(config)
            new, metrics = step(state, place(packed_tokens(8), config))
            assert jax.tree.map(jax.typeof, new) == jax.tree.map(jax.typeof, state)
            results.append(jax.device_get((metrics, new.params)))
    for (metrics, params), (metrics_1, params_1) in zip(results[1:], results[:1] * 2, strict=True):
        # A rounding error of float32 may take an entry over the border between two of float8; the norm of the gradients
        # then differs by up to .5 % between one kind of CPU and another.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2), metrics, metrics_1)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), params, params_1)


def test_it_trains_as_well():
    """The same batches by heart: after 60 steps, the loss in 8 bits is nearly that in 32."""
    losses = {}
    for kind in ('default', 'fp8', 'int8'):
        step, state = tiny_training(
            tiny_config(**LLAMA, matmul=kind, optimizer__learning_rate=3e-3, schedule__name='constant')
        )
        tokens = jax.device_put(packed_tokens(8, seed=3))
        for _ in range(60):
            state, metrics = step(state, tokens)
        losses[kind] = float(metrics['loss'])
    assert losses['default'] < 3
    assert abs(losses['fp8'] - losses['default']) < 0.1
    assert abs(losses['int8'] - losses['default']) < 0.1


def device(platform, kind, capability=''):
    return types.SimpleNamespace(platform=platform, device_kind=kind, compute_capability=capability)


@pytest.mark.parametrize(
    ('kind', 'bad', 'good'),
    [
        ('fp8', device('gpu', 'NVIDIA A100-SXM4-80GB', '8.0'), device('gpu', 'NVIDIA H100 80GB HBM3', '9.0')),
        ('fp8', device('tpu', 'TPU v5'), device('tpu', 'TPU7x')),
        ('fp8', device('gpu', 'AMD Instinct MI300X', 'gfx942'), device('gpu', 'NVIDIA B200', '10.0')),
        ('int8', device('tpu', 'TPU v3'), device('tpu', 'TPU v6 lite')),
        ('int8', device('gpu', 'Tesla V100-SXM2-16GB', '7.0'), device('cpu', 'cpu')),
    ],
)
def test_a_chip_without_the_unit_is_refused(kind, bad, good):
    check_device(kind, good)
    check_device('default', bad)
    with pytest.raises(ConfigError, match=rf"model.matmul = '{kind}': {bad.device_kind} has no {kind} matrix unit"):
        check_device(kind, bad)


def test_an_unknown_kind_is_named():
    with pytest.raises(ConfigError, match=r"model.matmul = 'fp9' is not known; did you mean 'fp8'\? Known: default"):
        matmul(jnp.ones((2, 2)), jnp.ones((2, 2)), 'fp9')
