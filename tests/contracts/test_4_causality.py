"""Contract 4: no output depends on a later token, nor on another document, proved by gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import BOS, LLAMA, V, random_params, tiny_config, tiny_model
from tiny import VARIANTS as PARTS

from llm_jax.data.batch import unpack_rows
from llm_jax.ops.attend import xla as attend

# Every attention and every position part, with both kinds of block.
VARIANTS = {
    'mha, rope': {'attention': 'mha', 'n_kv_heads': 0},
    'mha, learned': {'attention': 'mha', 'n_kv_heads': 0, 'position': 'learned'},
    'gqa, none': {'position': 'none'},
    'mqa, sinusoidal': {'attention': 'mqa', 'n_kv_heads': 0, 'position': 'sinusoidal'},
    'gqa, rope, parallel': {'residual': 'parallel'},
}
# Tokens differ from one another, so that the gradient of an embedding row is that of one
# input. The first row has documents of 3, 6, 1 and 6 tokens, the second is one document.
TOKENS = np.arange(10, 42).reshape(2, 16)
SEGMENTS = np.array([[0] * 3 + [1] * 6 + [2] + [3] * 6, [0] * 16])
POSITIONS = np.array([[*range(3), *range(6), 0, *range(6)], range(16)])
MAY_DEPEND = np.tril(SEGMENTS[:, :, None] == SEGMENTS[:, None, :])


def dependence(**overrides):
    """bool[B, L, L]: whether the logits at t depend on the input at s of the same row."""
    model = tiny_model(tiny_config(**(LLAMA | overrides)))
    params = random_params(model)
    probe = np.random.default_rng(1).normal(size=V).astype(np.float32)

    def logits(table):
        """One direction of the logits: [B, L]."""
        return model.apply({'params': params | {'embed': {'embedding': table}}}, TOKENS, POSITIONS, SEGMENTS) @ probe

    @jax.jit
    def jacobian(table):
        # One output after another: a grouped product of experts cannot be batched.
        y_BL, pull = jax.vjp(logits, table)
        basis = jnp.eye(y_BL.size).reshape(y_BL.size, *y_BL.shape)
        return jax.lax.map(lambda one: pull(one)[0], basis).reshape(*y_BL.shape, *table.shape)

    gradients_BLVD = jacobian(jnp.asarray(params['embed']['embedding']))
    depends_BLV = np.any(np.asarray(gradients_BLVD) != 0, axis=-1)
    own = np.stack([depends_BLV[row][:, TOKENS[row]] for row in range(2)])
    assert depends_BLV.sum() == own.sum()  # rows know nothing of one another
    return own


@pytest.mark.parametrize('name', PARTS)
def test_no_part_looks_ahead(name):
    """A window leaves out more, and a router passes gradients to what it does not use: nothing ever comes in."""
    assert not np.any(dependence(**PARTS[name]) & ~MAY_DEPEND)


@pytest.mark.parametrize('name', VARIANTS)
def test_dependence(name):
    np.testing.assert_array_equal(dependence(**VARIANTS[name]), MAY_DEPEND)


def test_dependence_with_sliced_queries(monkeypatch):
    monkeypatch.setattr(attend, 'MIN_SLICE', 4)
    np.testing.assert_array_equal(dependence(), MAY_DEPEND)


def test_dependence_without_segments():
    """One document per row is the default."""
    model = tiny_model(tiny_config(**LLAMA))
    params = random_params(model)
    run = jax.jit(lambda tokens: model.apply({'params': params}, tokens))
    changed = TOKENS[:1].copy()
    changed[0, 7] += 1
    differs = np.any(np.asarray(run(TOKENS[:1])) != np.asarray(run(changed)), axis=-1)[0]
    np.testing.assert_array_equal(differs, np.arange(16) >= 7)


def test_dependence_under_bfloat16():
    assert not np.any(dependence(dtype='bfloat16') & ~MAY_DEPEND)


def test_these_are_the_segments_that_unpack_finds():
    starts = np.diff(SEGMENTS, prepend=0) > 0
    tokens = np.concatenate([np.where(starts, BOS, TOKENS), [[2], [2]]], axis=1)
    rows = unpack_rows(jnp.asarray(tokens), BOS)
    np.testing.assert_array_equal(rows.segments, SEGMENTS)
    np.testing.assert_array_equal(rows.positions, POSITIONS)
