"""Distillation slice by slice: the same gradients, on a mesh too, without an array of all logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import on_mesh

from llm_jax.align.distill import divergences, sum_divergence

B, L, D, V = 4, 8, 6, 16
RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(size=(D, V)).astype(np.float32), RNG.normal(size=(2 * D, V)).astype(np.float32)
X, Y = RNG.normal(size=(B, L, D)).astype(np.float32), RNG.normal(size=(B, L, 2 * D)).astype(np.float32)
WEIGHTS = (RNG.random((B, L)) < 0.7).astype(np.float32)


def head(kernel, x_BLD):
    return jnp.einsum('BLD,DV->BLV', x_BLD, kernel).astype(jnp.float32)


def chunked(student, x, teacher, y, weights, chunk, **options):
    args = (head, student, x, head, teacher, y, weights)
    total, n = sum_divergence(*args, chunk=chunk, **options)
    return total / n


@pytest.mark.parametrize('beta', [0.0, 0.3, 1.0])
def test_slices_add_up(beta):
    """Against all logits at once; no gradient reaches the teacher; padded rows of the vocabulary have no part."""
    options = {'beta': beta, 'temperature': 1.5, 'vocab_size': V - 3}

    def whole(student, x, teacher):
        logits = head(student, x)[..., : V - 3], head(teacher, Y)[..., : V - 3]
        values = divergences(*logits, beta=beta, temperature=1.5)
        return jnp.sum(values * WEIGHTS) / jnp.sum(WEIGHTS)

    wanted = jax.jit(jax.value_and_grad(whole, argnums=(0, 1)))(STUDENT, X, TEACHER)
    got = jax.jit(jax.value_and_grad(lambda *args: chunked(*args, Y, WEIGHTS, 2, **options), argnums=(0, 1, 2)))(
        STUDENT, X, TEACHER
    )
    assert not np.any(got[1][2])
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, (got[0], got[1][:2]), wanted)


def test_a_mesh_gives_the_same():
    run = jax.jit(jax.value_and_grad(lambda *args: chunked(*args, 4, beta=0.5), argnums=(0, 1)))
    wanted = run(STUDENT, X, TEACHER, Y, WEIGHTS)
    with on_mesh({'fsdp': 2, 'context': 2}):
        place = lambda x, *axes: jax.device_put(x, jax.P(*axes))
        rows = [place(x, 'fsdp', 'context') for x in (X, Y, WEIGHTS)]
        got = run(place(STUDENT), rows[0], place(TEACHER), rows[1], rows[2])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), jax.device_get(got), wanted)


def test_logits_of_a_slice_are_all_that_is_in_memory():
    rows, length, width, vocab, chunk = 4, 256, 32, 4096, 16
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    loss = lambda *args: chunked(*args, chunk, beta=0.5)
    args = (shape(width, vocab), shape(rows, length, width)) * 2
    args = (args[0], args[1], args[2], args[3], shape(rows, length))
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*args).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * rows * length * vocab / 1.5
