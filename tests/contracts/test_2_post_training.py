"""Contracts 2 and 3 for the stages of post-training: rows with stored segments, weights and values."""

import jax
import numpy as np
import pytest
from tiny import LLAMA, L, V, one_step, tiny_config

from llm_jax.data.example_rows import pack_examples
from llm_jax.data.examples import FORMS, Example, Segment

FIELDS = LLAMA | {
    'optimizer__eps': 1e-3, 'optimizer__learning_rate': 0.1, 'train__loss_chunk': 8, 'data__examples_per_row': 2,
}  # fmt: skip
# Objective -> form of its examples, and what else its config says.
STAGES = {
    'sft': ('conversations', {}),
    'preference': ('pairs', {'train__objective_options': {'sft_weight': 0.5}}),
    'classify': ('labelled', {'scores': 3, 'data__classes': ('a', 'b', 'c')}),
}


def rows_of(objective, n=8):
    """int32[n, C (L+1)] of random examples; those of preferences with the log-probabilities of a reference."""
    form = FORMS[STAGES[objective][0]]
    rng = np.random.default_rng(0)
    segment = lambda size: Segment(rng.integers(2, V, size).tolist(), rng.choice([0, 0.5, 1, 2], size))
    most = (L if form.has_value else L + 1) // form.segments
    sizes = rng.integers(3, most + 1, (4 * n, form.segments))
    examples = [Example(tuple(map(segment, some)), 0, float(rng.integers(3))) for some in sizes]
    rows = np.stack(list(pack_examples(examples, L, form, 2))[-n:])
    reference = rng.normal(size=(n, L + 1)).astype(np.float32)
    return np.concatenate([rows, reference.view(np.int32)], 1) if objective == 'preference' else rows


def run(objective, sizes, **fields):
    config = tiny_config(**FIELDS, train__objective=objective, **STAGES[objective][1], **fields)
    return one_step(config, sizes, rows_of(objective))


@pytest.fixture(scope='module')
def one_device():
    return {objective: run(objective, (1, 1, 1)) for objective in STAGES}


def assert_same(results, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), results, expected)


@pytest.mark.parametrize(
    ('objective', 'sizes'),
    [
        ('sft', {'fsdp': 2, 'context': 4}),
        ('preference', {'stage': 2, 'fsdp': 2, 'tensor': 2}),
        ('classify', {'fsdp': 2, 'tensor': 2, 'context': 2}),
    ],
    ids=str,
)
def test_same_step(objective, sizes, one_device):
    assert_same(run(objective, sizes), one_device[objective])


def test_micro_batches_equal_the_large_batch(one_device):
    """The divisor is the number of pairs, and the SFT term a mean over targets: micro-batches have different ones."""
    assert_same(run('preference', (1, 1, 1), train__grad_accumulation=4), one_device['preference'])
