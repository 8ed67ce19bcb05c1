"""Contracts 2 and 3 for conversations: rows with stored segments and weights."""

import jax
import numpy as np
import pytest
from tiny import LLAMA, L, V, one_step, tiny_config

from llm_jax.data.example_rows import pack_examples
from llm_jax.data.examples import FORMS, Example, Segment

FIELDS = LLAMA | {'train__objective': 'sft', 'optimizer__eps': 1e-3, 'optimizer__learning_rate': 0.1}
SLICED = {'train__loss_chunk': 8}


def conversations(n):
    rng = np.random.default_rng(0)
    make = lambda size: Example((Segment(rng.integers(2, V, size).tolist(), rng.choice([0, 0.5, 1, 2], size)),), 0)
    rows = list(pack_examples([make(size) for size in rng.integers(3, L + 1, 3 * n)], L, FORMS['conversations']))
    return np.stack(rows[-n:])


@pytest.fixture(scope='module')
def one_device():
    return one_step(tiny_config(**FIELDS), (1, 1, 1), conversations(8))


def assert_same(results, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), results, expected)


@pytest.mark.parametrize(
    'sizes', [{'fsdp': 4, 'tensor': 2}, {'fsdp': 2, 'context': 4}, {'stage': 2, 'fsdp': 4}], ids=str
)
def test_same_step(sizes, one_device):
    assert_same(one_step(tiny_config(**FIELDS | SLICED), sizes, conversations(8)), one_device)


def test_micro_batches_equal_the_large_batch(one_device):
    """The divisor is the sum of all weights: micro-batches have different sums."""
    assert_same(one_step(tiny_config(**FIELDS, train__grad_accumulation=4), (1, 1, 1), conversations(8)), one_device)
