"""Contract 3: what only changes how the step is computed does not change the step.

Scanned = unrolled, remat = plain, chunked = full. (Accumulation = the large batch:
tests/train/test_step.py; sliced queries = whole ones: tests/ops/test_attend.py.)
"""

import jax
import numpy as np
import pytest
from tiny import LLAMA, packed_tokens, tiny_config, tiny_training

from llm_jax.ops.remat import POLICIES

# With dropout: what is recomputed draws the same masks again.
FAMILY = LLAMA | {
    'dropout': 0.1, 'train__z_loss': 0.01, 'optimizer__eps': 1e-3, 'optimizer__learning_rate': 0.1,
}  # fmt: skip


def one_step(**overrides):
    step, state = tiny_training(tiny_config(**(FAMILY | overrides)))
    return step(state, packed_tokens(8))


@pytest.fixture(scope='module')
def plain():
    return one_step()


@pytest.mark.parametrize(
    'change',
    [
        {'scan': False},
        {'scan_unroll': 2},
        *({'remat': name} for name in POLICIES if name != 'none'),
        {'remat': 'attention', 'scan': False},
        {'remat': 'full', 'scan': False},
        {'remat': 'full', 'train__loss_chunk': 32},
    ],
    ids=str,
)
def test_same_step(plain, change):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), one_step(**change), plain)
