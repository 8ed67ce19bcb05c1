"""Contract 2 for objectives of token log-probabilities: signed weights, and numbers taken over the whole batch.

And contract 3: micro-batches equal the large batch.
"""

import jax
import numpy as np
from policy import Policy
import pytest
from tiny import LLAMA, on_mesh, one_step, packed_tokens, place, place_params, random_params, tiny_config, tiny_model

from llm_jax.data.batch import split_length, unpack_rows
from llm_jax.ops import zigzag
from llm_jax.train.forward import per_token_nll

FIELDS = LLAMA | {'train__objective': Policy, 'optimizer__eps': 1e-3, 'optimizer__learning_rate': 0.1}
SLICED = {'train__loss_chunk': 8}
SEQUENCE = {'mesh__rules__residual_length': ('context', 'tensor')}
MESHES = {
    'fsdp': ({'fsdp': 8}, SLICED),
    'fsdp, tensor': ({'fsdp': 4, 'tensor': 2}, SLICED),
    'fsdp, tensor, sequence': ({'fsdp': 4, 'tensor': 2}, SLICED | SEQUENCE),
    'data, fsdp, tensor': ({'data': 2, 'fsdp': 2, 'tensor': 2}, {}),
    'fsdp, context': ({'fsdp': 2, 'context': 4}, SLICED),
    'stage, fsdp, tensor': ({'stage': 2, 'fsdp': 2, 'tensor': 2}, SLICED),
    'head gathered for each slice': ({'fsdp': 4, 'tensor': 2}, SLICED | {'train__gather_head_once': False}),
}


@pytest.fixture(scope='module')
def one_device():
    return one_step(tiny_config(**FIELDS), (1, 1, 1))


def assert_same(results, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), results, expected)


@pytest.mark.parametrize('name', MESHES)
def test_same_step(name, one_device):
    sizes, overrides = MESHES[name]
    assert_same(one_step(tiny_config(**FIELDS | overrides), sizes), one_device)


def test_the_weights_sum_to_nothing_and_the_step_is_finite(one_device):
    metrics, _, _ = one_device
    assert set(metrics) == {'loss', 'advantage', 'grad_norm', 'param_norm', 'learning_rate'}
    assert abs(metrics['advantage']) < 0.2
    assert 0 < metrics['grad_norm'] < np.inf


def test_micro_batches_equal_the_large_batch(one_device):
    """Advantages are taken over the whole batch before it is split: over each micro-batch they would be others."""
    assert_same(one_step(tiny_config(**FIELDS | SLICED, train__grad_accumulation=4), (1, 1, 1)), one_device)


def test_nll_of_each_token_is_in_the_order_of_the_batch():
    config = tiny_config(**LLAMA)
    model = tiny_model(config)

    def run(sizes):
        with on_mesh(sizes):
            params = place_params(model, random_params(model))
            nll = lambda params, rows: zigzag.restore(
                per_token_nll(model, params, split_length(unpack_rows(rows, 1), config.model.rules), loss_chunk=8),
                config.model.rules, (),
            )  # fmt: skip
            return np.asarray(jax.jit(nll)(params, place(packed_tokens(8), config)))

    np.testing.assert_allclose(run({'fsdp': 2, 'context': 4}), run(None), rtol=1e-4, atol=1e-5)
