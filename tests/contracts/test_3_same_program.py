"""Contract 3: what only changes how the step is computed does not change the step.

Scanned = unrolled, remat = plain, chunked = full. (Accumulation = the large batch:
tests/train/test_step.py.)
"""

import jax
import numpy as np
import pytest
from tiny import GPT2, LLAMA, packed_tokens, tiny_config, tiny_training

from llm_jax.nn import attend

FAMILY = LLAMA | {'train__z_loss': 0.01, 'optimizer__eps': 1e-3, 'optimizer__learning_rate': 0.1}


def one_step(**overrides):
    step, state = tiny_training(tiny_config(**(FAMILY | overrides)))
    return step(state, packed_tokens(8))


@pytest.fixture(scope='module')
def plain():
    return one_step()


@pytest.mark.parametrize(
    'change',
    [
        {'scan': False}, {'remat': 'dots'}, {'remat': 'full'}, {'scan': False, 'remat': 'full'},
        {'train__loss_chunk': 8 * 4}, {'train__loss_chunk': 1},
    ],
    ids=str,
)  # fmt: skip
def test_same_step(plain, change):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), one_step(**change), plain)


def test_sliced_queries(plain, monkeypatch):
    monkeypatch.setattr(attend, 'QUERY_CHUNK', 4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), one_step(), plain)


def test_remat_draws_the_same_dropout():
    family = GPT2 | {'n_kv_heads': 0, 'dropout': 0.3}
    plain, other = (one_step(**family, remat=remat) for remat in ('none', 'full'))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), other[1], plain[1])
