"""Contract 2 where devices share the tokens of a row: the same step, evaluation, logits and samples."""

import jax
import numpy as np
import pytest
from tiny import (
    BOS,
    LLAMA,
    VARIANTS,
    L,
    V,
    on_mesh,
    one_step,
    packed_tokens,
    place,
    place_params,
    random_params,
    tiny_config,
    tiny_model,
)

from llm_jax.generate import engine
from llm_jax.generate.settings import Sampler
from llm_jax.train.step import make_eval_step

RING = {'context_attention': 'ring'}
# The residual stream split by length over `tensor` besides.
SEQUENCE = {'mesh__rules__residual_length': ('context', 'tensor')}
CASES = {
    'context 2': ({'data': 2, 'fsdp': 2, 'context': 2}, {}),
    'context 4, ring': ({'fsdp': 2, 'context': 4}, RING),
    'context 8': ({'context': 8}, {}),
    'context 8, ring': ({'context': 8}, RING),
    'context, tensor, ring': ({'fsdp': 2, 'context': 2, 'tensor': 2}, RING | SEQUENCE),
    'tensor': ({'fsdp': 4, 'tensor': 2}, SEQUENCE),
}
# A step in pieces: micro-batches, slices of the logits, heads in groups, untied embeddings.
PIECES = LLAMA | {
    'train__batch_size': 16, 'train__grad_accumulation': 2, 'train__loss_chunk': 8, 'train__z_loss': 0.01,
    'optimizer__eps': 1e-3, 'optimizer__learning_rate': 0.1,
}  # fmt: skip
# Those that differ most in what attention has to do; the others are slow together.
QUICK = ('alibi, window, soft-cap, sinks', 'mla')
PARTS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS]


@pytest.fixture(scope='module')
def one_device():
    return one_step(tiny_config(**PIECES), {'fsdp': 1})


@pytest.mark.parametrize('name', CASES)
def test_same_step(name, one_device):
    sizes, overrides = CASES[name]
    results = one_step(tiny_config(**PIECES | overrides), sizes)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), results, one_device)


@pytest.mark.parametrize('name', PARTS)
def test_same_step_with_every_part(name):
    part = {'n_kv_heads': 0, 'attention': 'mha'} | {k: v for k, v in VARIANTS[name].items() if k == 'attention'}
    overrides = LLAMA | VARIANTS[name] | part | {'optimizer__eps': 1e-3, 'optimizer__learning_rate': 0.1}
    exact = one_step(tiny_config(**overrides), {'fsdp': 1})
    meshes = [({'fsdp': 2, 'context': 2, 'tensor': 2}, SEQUENCE), ({'data': 2, 'context': 4}, RING)]
    for sizes, more in meshes:
        metrics, params, _ = one_step(tiny_config(**overrides | more), sizes)
        np.testing.assert_allclose(metrics['loss'], exact[0]['loss'], rtol=1e-5)
        np.testing.assert_allclose(metrics['grad_norm'], exact[0]['grad_norm'], rtol=1e-3)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), params, exact[1])


def test_logits_come_in_the_order_of_the_text_and_evaluation_is_the_same():
    """In bfloat16, with learned positions."""
    tokens = packed_tokens(8)
    results = []
    for sizes, overrides in ((None, {}), ({'data': 2, 'context': 2, 'tensor': 2}, SEQUENCE)):
        config = tiny_config(**LLAMA | {'position': 'learned', 'dtype': 'bfloat16'} | overrides)
        model = tiny_model(config)
        with on_mesh(sizes):
            evaluate = make_eval_step(model, config, bos_id=BOS, token_bytes=np.arange(V))
            params = place_params(model, random_params(model, scale=0.1))
            logits = jax.jit(model.apply)({'params': params}, place(np.abs(tokens[:, :L]), config))
            results.append(jax.device_get((logits, jax.jit(evaluate)(params, place(tokens, config)))))
    np.testing.assert_allclose(results[0][0], results[1][0], atol=0.05 * np.abs(results[0][0]).max())
    assert results[0][1]['bytes'] == results[1][1]['bytes'] > 0
    np.testing.assert_allclose(results[0][1]['nll'], results[1][1]['nll'], rtol=3e-3)


def test_samples_are_the_same():
    """Devices that share a row in training decode rows of their own."""
    results = []
    for sizes, overrides in ((None, {}), ({'fsdp': 2, 'context': 2, 'tensor': 2}, SEQUENCE)):
        model = tiny_model(tiny_config(**LLAMA | overrides))
        with on_mesh(sizes):
            params = place_params(model, random_params(model))
            prompts = [[BOS, 5, 9], [BOS], [BOS, 7, 3, 2, 40]]
            results.append(engine.generate(model, params, prompts, max_new_tokens=8, sampler=Sampler(0.0)))
    assert results[0] == results[1]
