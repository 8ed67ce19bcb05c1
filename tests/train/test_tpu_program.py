"""The step as the real TPU compiler makes it: its kernels, its memory, and how weights and gradients move.

A narrow Llama on a slice of every generation, sharded over all chips (FSDP), and over tensor too. Its layers are a
loop, so depth changes nothing but the trip count.
"""

import collections
import pathlib

import pytest

from llm_jax import config as config_lib
from llm_jax.plan import planner, topology
from llm_jax.plan.compiled import compile_step
from llm_jax.plan.cost import COLLECTIVES

EXPERIMENTS = pathlib.Path(__file__).parents[2] / 'experiments'
LENGTH = 640  # no other size of the narrow model
NARROW = {'vocab_size': 2048, 'd_model': 512, 'n_layers': 4, 'n_heads': 4, 'n_kv_heads': 2, 'd_ff': 1024}
# Gathers over slices of this size are no longer cut into steps by the compiler.
FSDP = ('v4:4x4x4', 'v5e:8x8', 'v5p:4x4x4', 'v6e:8x8', '7x:2x2x4')
FSDP_AND_TENSOR = ('v4:2x2x2', 'v5e:2x4', 'v5p:2x2x2', 'v6e:2x4', '7x:2x2x1')


def compiled_on(name, **sizes):
    """The plan of the compiled step of the narrow Llama, with its program."""
    config = config_lib.load_experiment(EXPERIMENTS / 'pretrain/llama3_8b.py')
    config.model.update(NARROW)
    config.data.seq_len, config.data.tokenizer.vocab_size = LENGTH, 2048
    machine = topology.parse_tpu(name)
    config.train.batch_size, config.train.grad_accumulation = machine.devices, 1  # one row on each device
    config.mesh.update(sizes)
    config.train.duration, config.schedule.warmup = '100 steps', '10 steps'
    return compile_step(planner.case_of(config_lib.validate(config), machine, topology.tpu_devices(machine)))


@pytest.fixture(scope='module', params=FSDP)
def compiled(request, tpu_compiler):
    return compiled_on(request.param)


def ops(module):
    return [op for computation in module.computations.values() for op in computation.ops]


def test_attention_is_the_splash_kernel_in_both_passes(compiled):
    kernels = {op.source for op in ops(compiled.module) if 'tpu_custom_call' in op.attributes}
    for name in ('splash_mha_fwd', 'splash_mha_dq', 'splash_mha_dkv'):
        assert any(name in kernel for kernel in kernels), kernels


def test_attention_scores_are_nowhere(compiled):
    shapes = [shape for op in ops(compiled.module) for shape in op.shapes]
    assert not [shape for shape in shapes if shape.dims.count(LENGTH) > 1]
    assert max(shape.size for shape in shapes) < NARROW['n_heads'] * LENGTH**2


def test_weights_are_gathered_in_the_dtype_of_the_computation(compiled):
    gathered = [shape for op in ops(compiled.module) if op.kind.startswith('all-gather') for shape in op.shapes]
    assert gathered
    assert all(shape.dtype == 'bf16' for shape in gathered if len(shape.dims) > 1)


def test_gathers_run_beside_products(compiled):
    in_loop = collections.Counter()
    for one in compiled.cost.collectives:
        if one.times > 1 and one.kind == 'all-gather':
            in_loop[one.overlapped] += one.bytes * one.times
    assert in_loop[True] / in_loop.total() > 0.6, in_loop


def check_collectives(compiled):
    """Every collective of the text is one of the cost: a form of call that the plan does not know would hide some."""
    kinds = {op.name: op.kind.removesuffix('-start') for op in ops(compiled.module)}
    channels = {op.name: op.channel for op in ops(compiled.module)}
    written = {(kind, channels[name]) for name, kind in kinds.items() if kind in COLLECTIVES}
    counted = {(kinds[one.name], channels[one.name]) for one in compiled.cost.collectives}
    assert counted == written
    assert written


def test_every_collective_of_the_program_is_counted(compiled):
    check_collectives(compiled)


@pytest.mark.parametrize('name', FSDP_AND_TENSOR)
def test_every_generation_compiles_two_axes(tpu_compiler, name):
    check_collectives(compiled_on(name, tensor=2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ('slice_', 'gib', 'mfu'),
    [
        ('v4:4x4x8', 13.6, 0.762),
        ('v5e:16x16', 12.5, 0.746),
        ('v5p:4x4x8', 14.5, 0.766),
        ('v6e:8x8', 22.5, 0.56),
        ('7x:4x4x4', 14.6, 0.606),
    ],
)
def test_llama3_8b_as_it_is_fits(tpu_compiler, slice_, gib, mfu):
    """At full width, on each generation: a minute or two of compiling each. Older compilers take 6 % less memory."""
    config = config_lib.load_experiment(EXPERIMENTS / 'pretrain/llama3_8b.py')
    machine = topology.parse_tpu(slice_)
    config.train.grad_accumulation = min(4, 512 // machine.devices)
    config = config_lib.validate(config)
    outcome = planner.compiled(planner.case_of(config, machine, topology.tpu_devices(machine)))
    assert outcome.memory.fits
    assert outcome.memory.total / 2**30 == pytest.approx(gib, rel=0.08)
    assert outcome.mfu == pytest.approx(mfu, rel=0.05)
