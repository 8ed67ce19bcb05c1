import jax
import numpy as np
import pytest
from tiny import on_mesh, tiny_config

from llm_jax.ops import zigzag

RULES = tiny_config().model.rules


@pytest.mark.parametrize('parts', [2, 4, 8])
def test_each_device_holds_an_early_and_a_late_chunk(parts):
    x_BL = np.arange(2 * 32).reshape(2, 32)
    with on_mesh({'context': parts}):
        y_BL = jax.jit(lambda x: zigzag.split(x, RULES))(x_BL)
        back = jax.jit(lambda x: zigzag.restore(x, RULES, ()))(y_BL)
        assert y_BL.sharding.spec == back.sharding.spec == jax.P(None, 'context')
    chunks = x_BL.reshape(2, 2 * parts, -1)
    for i, shard in enumerate(y_BL.addressable_shards):
        expected = np.concatenate([chunks[:, i], chunks[:, 2 * parts - 1 - i]], 1)
        np.testing.assert_array_equal(shard.data, expected)
    np.testing.assert_array_equal(back, x_BL)


def test_rows_that_are_not_split_stay_as_they_are():
    x_BLD = np.arange(2 * 8 * 3).reshape(2, 8, 3)
    np.testing.assert_array_equal(zigzag.split(x_BLD, RULES), x_BLD)
    with on_mesh((1, 2, 2)):
        y_BLD = jax.jit(lambda x: zigzag.restore(zigzag.split(x, RULES), RULES, ('residual',)))(x_BLD)
    np.testing.assert_array_equal(y_BLD, x_BLD)


def test_splitting_whole_rows_moves_nothing():
    with on_mesh({'context': 8}):
        x_BL = jax.device_put(np.arange(64).reshape(2, 32), jax.P())
        text = jax.jit(lambda x: zigzag.split(x, RULES)).lower(x_BL).compile().as_text()
    assert 'all-' not in text and 'collective-permute' not in text
