"""Bit-equal training on 1, 2, 4 and 8 devices."""

import jax
import numpy as np
import pytest
from tiny import GPT2, LLAMA, on_mesh, packed_tokens, place, tiny_config, tiny_training

from llm_jax.config.schema import ConfigError
from llm_jax.train import reproducible

# (data, fsdp, tensor): 1, 2, 4 and 8 devices, in both axes. None: without a mesh.
MESHES = [None, (1, 2, 1), (2, 2, 1), (1, 8, 1)]
ONE_AND_FOUR, ONE_AND_TWO = [(1, 1, 1), (2, 2, 1)], [(1, 1, 1), (1, 2, 1)]
SIZES = {'data': 1, 'stage': 1, 'fsdp': 1, 'expert': 1, 'context': 1, 'tensor': 1}
# Gradients are clipped in every step; with dropout, micro-shards draw their own masks.
CONFIGS = {
    'llama, clipped': LLAMA | {'optimizer__clip': 0.05, 'train__ema_decay': 0.9},
    'gpt2, dropout, muon': GPT2 | {'dropout': 0.1, 'optimizer__name': 'muon', 'train__z_loss': 0.01},
    'experts gathered, remat full, unrolled': LLAMA
    | {'feed_forward': 'moe', 'model__moe__n_experts': 4, 'model__moe__dispatch': 'gather'}
    | {'remat': 'full', 'scan': False},
    'remat dots': LLAMA | {'remat': 'dots'},
}


def trained(fields, sizes, n=10):
    """Losses of each step, and the state after them."""
    with on_mesh(sizes):
        config = tiny_config(**fields, train__batch_size=16, optimizer__learning_rate=0.01)
        step, state = tiny_training(config)
        history = []
        for i in range(n):
            old = jax.tree.map(jax.typeof, state)
            state, metrics = step(state, place(packed_tokens(16, seed=i), config))
            assert jax.tree.map(jax.typeof, state) == old
            history.append(metrics)
        return jax.device_get((history, state))


@pytest.mark.parametrize(
    ('name', 'meshes'),
    [
        pytest.param(name, meshes, marks=[pytest.mark.slow] if name == 'remat dots' else [])
        for name, meshes in zip(CONFIGS, (MESHES, ONE_AND_FOUR, ONE_AND_TWO, ONE_AND_TWO), strict=True)
    ],
)
def test_bit_equal(name, meshes):
    fields = CONFIGS[name] | {'train__reproducible': True}
    expected = trained(fields, meshes[0])
    for sizes in meshes[1:]:
        jax.tree.map(np.testing.assert_array_equal, trained(fields, sizes), expected)


def test_the_mode_is_what_makes_it_so():
    """Without it some bits differ, and it trains the same model but for rounding."""
    fields = CONFIGS['llama, clipped']
    plain, split = (trained(fields, sizes, 4) for sizes in (None, (1, 8, 1)))
    exact = trained(fields | {'train__reproducible': True}, None, 4)
    different = jax.tree.map(lambda a, b: not np.array_equal(a, b), plain, split)
    assert any(jax.tree.leaves(different))
    for a, b in zip(exact[0], plain[0], strict=True):
        np.testing.assert_allclose(a['loss'], b['loss'], rtol=1e-4)
        np.testing.assert_allclose(a['grad_norm'], b['grad_norm'], rtol=1e-3)


@pytest.mark.parametrize(
    ('fields', 'sizes', 'message'),
    [
        ({}, {'stage': 2}, 'mesh stage 2 splits what must be summed in one order'),
        ({}, {'context': 2}, 'mesh context 2 splits what must be summed in one order; use the axes data and fsdp'),
        ({}, {'fsdp': 16}, 'mesh data 1 × fsdp 16 × tensor 1 splits the batch into 16, which must divide 8'),
        ({'train__batch_size': 12}, {'fsdp': 2}, 'train.batch_size = 12 must be a multiple of 8'),
        ({'train__grad_accumulation': 2}, {}, 'train.grad_accumulation = 2 must be 1'),
        ({'optimizer__offload': True}, {}, 'optimizer.offload must be False'),
    ],
)  # fmt: skip
def test_what_cannot_be_reproducible_is_refused(fields, sizes, message):
    config = tiny_config(**fields)
    with pytest.raises(ConfigError, match=f'train.reproducible = True: ({message})'):
        reproducible.check(config, SIZES | sizes)
