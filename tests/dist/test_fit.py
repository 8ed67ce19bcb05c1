"""What does not fit a mesh is named, with what would."""

import re

import pytest
from tiny import tiny_config

from llm_jax.config.schema import ConfigError
from llm_jax.dist.fit import check_fit
from llm_jax.dist.mesh import AXES

SIZES = dict.fromkeys(AXES, 1)


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        ({'train__batch_size': 6},
         'train.batch_size / train.grad_accumulation = 6 cannot be split over mesh data 2 × fsdp 2: '
         'it must be a multiple of 4. Change it (e.g. to 8), the mesh, or mesh.rules.batch'),
        ({'train__batch_size': 8, 'train__grad_accumulation': 4}, 'train.grad_accumulation = 2 cannot be split'),
        ({'d_model': 33, 'n_heads': 3, 'd_head': 8}, 'model.d_model = 33 cannot be split over mesh fsdp 2'),
        ({'n_heads': 3, 'd_head': 8}, 'model.n_heads = 3 cannot be split over mesh tensor 2'),
        ({'attention': 'mqa'}, 'model.n_kv_heads = 1 cannot be split over mesh tensor 2'),
        ({'attention': 'mla', 'n_kv_heads': 0, 'model__mla__kv_rank': 13},
         'model.mla.kv_rank = 13 cannot be split over mesh fsdp 2: it must be a multiple of 2'),
        ({'d_ff': 97}, 'model.d_ff = 97 cannot be split over mesh tensor 2'),
        ({'vocab_size': 65}, 'model.vocab_size = 65 cannot be split over mesh tensor 2: it must be'),
        ({'mesh__rules__d_ff': 'tensr'}, "mesh.rules.d_ff = 'tensr' is no mesh axis; there are data, stage, fsdp"),
        ({'mesh__rules__d_ff': 'fsdp'}, "mesh.rules.d_ff = 'fsdp': 'fsdp' already splits 'd_model' of the"),
        ({'mesh__rules__vocab': ('tensor', 'data')}, "'data' already splits 'batch' of the same arrays"),
    ],
)  # fmt: skip
def test_what_does_not_divide_is_named(overrides, message):
    config = tiny_config(**overrides)
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_fit(config, SIZES | {'data': 2, 'fsdp': 2, 'tensor': 2})


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        ({'data__seq_len': 18},
         'data.seq_len = 18 cannot be split over mesh context 4: it must be a multiple of 8 (two chunks of each row on '
         'a device, so that causal attention is even). Change it (e.g. to 24), the mesh, or mesh.rules.length'),
        ({'data__seq_len': 36, 'mesh__rules__length': None, 'mesh__rules__residual_length': ('context', 'tensor')},
         'data.seq_len = 36 cannot be split over mesh context 4 × tensor 2: it must be a multiple of 8. Change it'),
        ({'mesh__rules__residual_length': 'tensor'},
         "mesh.rules.residual_length = 'tensor' must begin with the axes of mesh.rules.length = 'context'"),
        ({'mesh__rules__residual_length': ('context', 'fsdp')}, "'fsdp' already splits 'batch' of the same arrays"),
    ],
)  # fmt: skip
def test_lengths_that_do_not_divide_are_named(overrides, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_fit(tiny_config(**overrides), SIZES | {'context': 4, 'tensor': 2})


def test_what_divides_passes():
    check_fit(tiny_config(), SIZES | {'data': 2, 'fsdp': 2, 'tensor': 2})
    check_fit(tiny_config(attention='mqa', mesh__rules__kv_heads=None), SIZES | {'fsdp': 2, 'tensor': 4})


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        ({'n_layers': 6},
         'model.n_layers = 6 has 6 layers, which cannot be split over mesh stage 4 × mesh.pipeline_repeats = 1: it must '
         'be a multiple of 4. Use mesh.stage = 2 or 3 or 6, or model.n_layers = 8'),
        ({'n_layers': 9, 'pattern': ({'window': 3}, {}), 'first_layers': ({},), 'mesh__pipeline_repeats': 3},
         'model.n_layers = 9 has 4 patterns of 2 after the first 1, which cannot be split over mesh stage 4 × '
         'mesh.pipeline_repeats = 3: it must be a multiple of 12. Use mesh.stage = 1, or model.n_layers = 25'),
        ({'mesh__pipeline_microbatches': 2}, 'mesh.pipeline_microbatches = 2 is fewer than mesh stage 4'),
        ({'mesh__pipeline_microbatches': 6},
         'mesh.pipeline_microbatches = 6 is no multiple of mesh stage 4: the stages take micro-batches in blocks of 4. '
         'Use 8, or 0 for one each'),
        ({'mesh__pipeline_microbatches': 8, 'train__batch_size': 24},
         'train.batch_size / train.grad_accumulation = 24 cannot be split over micro-batches 8 × fsdp 2: it must be a '
         'multiple of 16. Use 32, or another mesh.pipeline_microbatches'),
        ({'mesh__rules__batch': ('data', 'fsdp')},
         "mesh.rules.batch = ('data', 'fsdp') has to begin with 'stage' on mesh stage 4"),
        ({'mesh__rules__layers': 'data'}, "mesh.rules.layers = 'data': layers are split over 'stage', or None"),
    ],
)  # fmt: skip
def test_layers_and_micro_batches_that_do_not_divide_are_named(overrides, message):
    config = tiny_config(**({'n_layers': 8, 'train__batch_size': 16} | overrides))
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_fit(config, SIZES | {'stage': 4, 'fsdp': 2})


@pytest.mark.parametrize(('field', 'value'), [('pipeline_repeats', 0), ('pipeline_microbatches', -1)])
def test_a_schedule_that_is_none(field, value):
    with pytest.raises(ConfigError, match=f'mesh.{field} = {value}'):
        tiny_config(**{f'mesh__{field}': value})
