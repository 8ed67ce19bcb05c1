"""Contract 2 on the stages of a pipeline: one step is the same, whatever the schedule."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from tiny import GPT2, LLAMA, VARIANTS, packed_tokens, place, tiny_config, tiny_training

from llm_jax import mesh as mesh_lib
from llm_jax.schema import ConfigError

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


def one_step(config, **axes):
    sizes = dict.fromkeys(mesh_lib.AXES, 1) | axes
    mesh_lib.check_fit(config, sizes)
    devices = jax.devices()[: int(np.prod(list(sizes.values())))]
    with jax.set_mesh(mesh_lib.make_mesh(dataclasses.replace(config.mesh, **sizes), devices)):
        step, state = tiny_training(config)
        new, metrics = step(state, place(packed_tokens(config.train.batch_size), config))
        assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, new)
        return jax.device_get((metrics, new.params))


@pytest.fixture(scope='module')
def one_device():
    known = {}

    def result(name):
        if name not in known:
            known[name] = one_step(tiny_config(**(CONFIGS[name] | COMMON)))
        return known[name]

    return result


@pytest.mark.parametrize(
    ('name', 'axes', 'schedule'),
    [
        ('llama', {'stage': 8}, (0, 1)),
        ('llama', {'stage': 4, 'fsdp': 2}, (8, 2)),
        ('llama', {'stage': 2, 'data': 2, 'tensor': 2}, (4, 4)),
        ('gpt2, in pieces', {'stage': 2, 'fsdp': 2}, (4, 2)),
        ('mla', {'stage': 2, 'tensor': 2}, (2, 1)),
        ('moe, groups, shared', {'stage': 2, 'fsdp': 2}, (4, 2)),
        ('local and global', {'stage': 2, 'fsdp': 2, 'tensor': 2}, (4, 2)),
        ('first layers dense', {'stage': 2, 'tensor': 2}, (4, 1)),
    ],
    ids=str,
)
def test_same_step(name, axes, schedule, one_device):
    microbatches, repeats = schedule
    staged = {'mesh__stage_microbatches': microbatches, 'mesh__stage_repeats': repeats}
    results = one_step(tiny_config(**(CONFIGS[name] | COMMON | staged)), **axes)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), results, one_device(name))


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        ({'n_layers': 6},
         'model.n_layers = 6 has 6 layers, which cannot be split over mesh stage 4 × mesh.stage_repeats = 1: it must '
         'be a multiple of 4. Use mesh.stage = 2 or 3 or 6, or model.n_layers = 8'),
        ({'n_layers': 9, 'pattern': ({'window': 3}, {}), 'first_layers': ({},), 'mesh__stage_repeats': 3},
         'model.n_layers = 9 has 4 patterns of 2 after the first 1, which cannot be split over mesh stage 4 × '
         'mesh.stage_repeats = 3: it must be a multiple of 12. Use mesh.stage = 1, or model.n_layers = 25'),
        ({'mesh__stage_microbatches': 2}, 'mesh.stage_microbatches = 2 is fewer than mesh stage 4'),
        ({'mesh__stage_microbatches': 6},
         'mesh.stage_microbatches = 6 is no multiple of mesh stage 4: the stages take micro-batches in blocks of 4. '
         'Use 8, or 0 for one each'),
        ({'mesh__stage_microbatches': 8, 'train__batch_size': 24},
         'train.batch_size / train.grad_accumulation = 24 cannot be split over micro-batches 8 × fsdp 2: it must be a '
         'multiple of 16. Use 32, or another mesh.stage_microbatches'),
        ({'mesh__rules__batch': ('data', 'fsdp')},
         "mesh.rules.batch = ('data', 'fsdp') has to begin with 'stage' on mesh stage 4"),
        ({'mesh__rules__layers': 'data'}, "mesh.rules.layers = 'data': layers are split over 'stage', or None"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(overrides, message):
    config = tiny_config(**({'n_layers': 8, 'train__batch_size': 16} | overrides))
    with pytest.raises(ConfigError, match=re.escape(message)):
        mesh_lib.check_fit(config, dict.fromkeys(mesh_lib.AXES, 1) | {'stage': 4, 'fsdp': 2})


@pytest.mark.parametrize(('field', 'value'), [('stage_repeats', 0), ('stage_microbatches', -1)])
def test_a_schedule_that_is_none(field, value):
    with pytest.raises(ConfigError, match=f'mesh.{field} = {value}'):
        tiny_config(**{f'mesh__{field}': value})
