"""The step as the real TPU compiler makes it: its kernels, what it keeps, how it moves weights and gradients.

A narrow Llama, over all chips of a slice (FSDP). Its layers are a loop, so depth changes nothing but the trip count.
"""

import collections
import pathlib

import pytest

from llm_jax import config as config_lib
from llm_jax.plan import planner, topology
from llm_jax.plan.compiled import compile_step

EXPERIMENTS = pathlib.Path(__file__).parents[2] / 'experiments' / 'pretrain'
LENGTH = 640  # no other size of the narrow model
NARROW = {'vocab_size': 2048, 'd_model': 512, 'n_layers': 4, 'n_heads': 4, 'n_kv_heads': 2, 'd_ff': 1024}


@pytest.fixture(scope='module', params=['v5p:4x4x4', pytest.param('v6e:8x8', marks=pytest.mark.slow)])
def compiled(request, tpu_compiler):
    """What the plan says of the compiled step, and its program."""
    config = config_lib.load_experiment(EXPERIMENTS / 'llama3_8b.py')
    config.model.update(NARROW)
    config.data.seq_len, config.data.tokenizer.vocab_size = LENGTH, 2048
    config.train.batch_size, config.train.grad_accumulation = 64, 1  # one row on each chip
    machine = topology.parse_tpu(request.param)
    case = planner.case_of(config_lib.validate(config), machine, topology.tpu_devices(machine))
    result = compile_step(case)
    return result, result.module


def ops(module):
    return [op for computation in module.computations.values() for op in computation.ops]


def test_attention_is_the_splash_kernel_in_both_passes(compiled):
    _, module = compiled
    kernels = {op.source for op in ops(module) if 'tpu_custom_call' in op.attributes}
    for name in ('splash_mha_fwd', 'splash_mha_dq', 'splash_mha_dkv'):
        assert any(name in kernel for kernel in kernels), kernels


def test_attention_scores_are_nowhere(compiled):
    _, module = compiled
    shapes = [shape for op in ops(module) for shape in op.shapes]
    assert not [shape for shape in shapes if shape.dims.count(LENGTH) > 1]
    assert max(shape.size for shape in shapes) < NARROW['n_heads'] * LENGTH**2


def test_weights_are_gathered_in_the_dtype_of_the_computation(compiled):
    _, module = compiled
    gathered = [shape for op in ops(module) if op.kind.startswith('all-gather') for shape in op.shapes]
    assert gathered
    assert all(shape.dtype == 'bf16' for shape in gathered if len(shape.dims) > 1)


def test_gathers_run_beside_products(compiled):
    result, _ = compiled
    in_loop = collections.Counter()
    for one in result.cost.collectives:
        if one.times > 1 and one.kind == 'all-gather':
            in_loop[one.overlapped] += one.bytes * one.times
    assert in_loop[True] / in_loop.total() > 0.75, in_loop


@pytest.mark.slow
@pytest.mark.parametrize(('slice_', 'gib', 'mfu'), [('v5p:4x4x4', 21.4, 0.75), ('v6e:8x8', 21.1, 0.55)])
def test_llama3_8b_as_it_is_fits(tpu_compiler, slice_, gib, mfu):
    """At full width: a minute or two of compiling each."""
    config = config_lib.validate(config_lib.load_experiment(EXPERIMENTS / 'llama3_8b.py'))
    machine = topology.parse_tpu(slice_)
    outcome = planner.compiled(planner.case_of(config, machine, topology.tpu_devices(machine)))
    assert outcome.memory.fits
    assert outcome.memory.total / 2**30 == pytest.approx(gib, rel=0.05)
    assert outcome.mfu == pytest.approx(mfu, rel=0.05)
