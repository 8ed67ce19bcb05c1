"""Contract 2 on the stages of a pipeline: one step is the same, whatever the schedule."""

import jax
import numpy as np
import pytest
from tiny import (
    BOS,
    GPT2,
    LLAMA,
    VARIANTS,
    on_mesh,
    one_step,
    packed_tokens,
    place,
    tiny_config,
    tiny_model,
    tiny_training,
)

from llm_jax.dist.fit import check_fit
from llm_jax.train.step import make_loss

# A large eps keeps Adam from blowing rounding errors of near-zero gradients up.
COMMON = {'train__batch_size': 16, 'optimizer__eps': 1e-3, 'optimizer__learning_rate': 0.1}
CONFIGS = {
    'llama': LLAMA | {'n_layers': 8},
    'gpt2, in pieces': GPT2 | {
        'n_layers': 8, 'train__grad_accumulation': 2, 'train__loss_chunk': 8, 'train__z_loss': 0.01, 'remat': 'full',
        'scan': False,
    },
    'mla': LLAMA | VARIANTS['mla'] | {'n_layers': 4},
    'moe, groups, shared': LLAMA | VARIANTS['moe, groups, shared'] | {'n_layers': 4},
    'local and global': LLAMA | VARIANTS['local and global'] | {'n_layers': 9},
    'first layers dense': LLAMA | VARIANTS['first layers dense'] | {'n_layers': 6},
}  # fmt: skip


@pytest.fixture(scope='module')
def one_device():
    known = {}

    def result(name):
        if name not in known:
            known[name] = one_step(tiny_config(**(CONFIGS[name] | COMMON)), {'fsdp': 1})
        return known[name]

    return result


@pytest.mark.parametrize(
    ('name', 'axes', 'schedule'),
    [
        ('llama', {'stage': 8}, (0, 1)),
        ('llama', {'stage': 4, 'fsdp': 2}, (8, 2)),
        ('llama', {'stage': 2, 'data': 2, 'tensor': 2}, (4, 4)),
        pytest.param('gpt2, in pieces', {'stage': 2, 'fsdp': 2}, (4, 2), marks=pytest.mark.slow),
        ('mla', {'stage': 2, 'tensor': 2}, (2, 1)),
        ('moe, groups, shared', {'stage': 2, 'fsdp': 2}, (4, 2)),
        ('local and global', {'stage': 2, 'fsdp': 2, 'tensor': 2}, (4, 2)),
        pytest.param('first layers dense', {'stage': 2, 'tensor': 2}, (4, 1), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_same_step(name, axes, schedule, one_device):
    microbatches, repeats = schedule
    staged = {'mesh__pipeline_microbatches': microbatches, 'mesh__pipeline_repeats': repeats}
    results = one_step(tiny_config(**(CONFIGS[name] | COMMON | staged)), axes)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), results, one_device(name))


RING = {'context_attention': 'ring'}
# The residual stream split by length over `tensor` besides.
SEQUENCE = {'mesh__rules__residual_length': ('context', 'tensor')}
EXPERTS = {
    'feed_forward': 'moe', 'model__moe__n_experts': 4, 'model__moe__score': 'softmax_top',
    'model__moe__dispatch': 'all_to_all',
}  # fmt: skip
FULL, TWICE = {'remat': 'full'}, {'mesh__pipeline_repeats': 2}
# What else the devices of a stage do: share rows, the tokens of the residual stream, experts.
WITHIN = {
    'context, tensor': ({'context': 2, 'tensor': 2}, SEQUENCE | FULL),
    'context, tensor, twice': ({'context': 2, 'tensor': 2}, SEQUENCE | TWICE),
    'context': ({'context': 4}, TWICE | FULL),
    'context, ring': ({'context': 4}, RING | FULL),
    'context, ring, twice': ({'context': 4}, RING | TWICE),
    'fsdp, tensor': ({'fsdp': 2, 'tensor': 2}, SEQUENCE),
    'fsdp, tensor, twice': ({'fsdp': 2, 'tensor': 2}, SEQUENCE | TWICE | FULL),
    'fsdp, context, in pieces': (
        {'fsdp': 2, 'context': 2}, TWICE | {'mesh__pipeline_microbatches': 4, 'train__loss_chunk': 8, 'matmul': 'int8'},
    ),
    'expert': ({'expert': 4}, EXPERTS),
    'expert, fsdp, twice': ({'expert': 2, 'fsdp': 2}, EXPERTS | TWICE | FULL),
    'expert, context': ({'expert': 2, 'context': 2}, EXPERTS | FULL),
}  # fmt: skip
QUICK = ('context, tensor', 'context, ring, twice', 'fsdp, tensor, twice', 'expert, fsdp, twice')
PARTS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in WITHIN]


def gradients(overrides, sizes):
    """The sums of a batch's loss, and their gradients, which lie like the parameters."""
    config = tiny_config(**LLAMA | {'n_layers': 4, 'train__batch_size': 16} | overrides)
    with on_mesh(sizes):
        check_fit(config, dict(jax.sharding.get_abstract_mesh().shape))
        _, state = tiny_training(config)
        loss = make_loss(tiny_model(config), config, bos_id=BOS)
        run = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (_, sums), grads = run(state.params, place(packed_tokens(16), config))
        assert jax.tree.map(jax.typeof, grads) == jax.tree.map(jax.typeof, state.params)
        return jax.device_get((sums, grads))


@pytest.fixture(scope='module')
def plain_gradients():
    known = {}

    def result(**overrides):
        key = str(sorted(overrides.items()))
        if key not in known:
            known[key] = gradients(overrides, {'fsdp': 1})
        return known[key]

    return result


@pytest.mark.parametrize('name', PARTS)
def test_same_gradients(name, plain_gradients):
    sizes, overrides = WITHIN[name]
    same = {k: v for k, v in overrides.items() if k in EXPERTS or k == 'matmul'}
    results = gradients(overrides, {'stage': 2} | sizes)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * max(1, np.abs(b).max()))
    jax.tree.map(close, results, plain_gradients(**same))
