"""Plans by the real compiler for NVIDIA GPUs, which needs no GPU; without it these are skipped."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

CUDA = os.environ.get('LLM_JAX_CUDA', '')
HERE = pathlib.Path(__file__).parent
TOOL = HERE.parents[1] / 'tools' / 'plan.py'
has_cuda = bool(CUDA or importlib.util.find_spec('jax_cuda13_plugin') or importlib.util.find_spec('jax_cuda12_plugin'))
needs_cuda = pytest.mark.skipif(
    not has_cuda, reason='no compiler for GPUs: no JAX plugin for CUDA, and LLM_JAX_CUDA names no directory with one'
)
EXPERIMENT = """
from llm_jax import config as config_lib

def get_config():
    config = config_lib.default()
    config.model.update(vocab_size=512, d_model=256, n_layers=2, n_heads=4, dtype='bfloat16', matmul='fp8')
    config.data.seq_len, config.train.batch_size = 128, 16
    config.optimizer.offload, config.model.remat = True, 'offload'
    return config
"""
CASES = """
import json, re, sys
sys.path.insert(0, sys.argv[1])
from small import config
from llm_jax.plan import planner, topology
from llm_jax.plan.compiled import compile_step
out = {}
for name, gpu, n, fields in json.loads(sys.argv[2]):
    machine = topology.parse_gpu(gpu, n)
    case = planner.case_of(config(model__dtype='bfloat16', **fields), machine, topology.gpu_devices(machine))
    step = compile_step(case)
    out[name] = {
        'fraction': step.cost.flops / (6 * case.counts.matmul * case.tokens_per_step / n),
        'kernels': step.cost.kernels, 'collectives': sorted({c.kind for c in step.cost.collectives}),
        'groups': sorted({len(c.group) for c in step.cost.collectives}),
        'fp8': len(re.findall(r'f8e4m3fn\\[[\\d,]+\\]\\S* parameter', step.program.as_text())),
    }
print(json.dumps(out))
"""


def environment():
    """With the compiler where JAX looks for it when it is imported."""
    path = os.pathsep.join(filter(None, (os.environ.get('PYTHONPATH'), CUDA)))
    return {**os.environ, 'PYTHONPATH': path, 'COLUMNS': '160', 'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'}


def plan(tmp_path, env, *arguments):
    path = tmp_path / 'small.py'
    path.write_text(EXPERIMENT)
    return subprocess.run(
        [sys.executable, str(TOOL), str(path), *arguments, '--out', str(tmp_path / 'plan.html')],
        capture_output=True, text=True, env=env, check=False,
    )  # fmt: skip


@needs_cuda
def test_a_plan_for_gpus_is_compiled(tmp_path):
    """With every part that has a path of its own on GPUs: fp8, activations and optimizer in the host's memory."""
    done = plan(tmp_path, environment(), '--gpu', 'h100', '--devices', '8')
    assert done.returncode == 0, done.stderr
    for text in ('fits', 'compiled in', 'compiled without a GPU', 'attention kernels are analytic', 'NVLink'):
        assert text in done.stdout
    assert 'Estimated' not in done.stdout


@needs_cuda
def test_what_the_compiler_makes_of_a_step():
    cases = [
        ('one', 'h200', 1, {'model__matmul': 'fp8'}),
        ('fsdp', 'b200', 8, {'mesh__fsdp': 8}),
        ('hosts', 'a100', 16, {'mesh__fsdp': 8, 'mesh__tensor': 2}),
    ]
    done = subprocess.run(
        [sys.executable, '-c', CASES, str(HERE), json.dumps(cases)], capture_output=True, text=True, env=environment(),
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    steps = json.loads(done.stdout.splitlines()[-1])
    for step in steps.values():
        # cuDNN's attention in each of the four layers, and the products of weights, no more and no less.
        assert step['kernels'] == {'dot_product_attention_fwd': 4, 'dot_product_attention_bwd': 4}
        assert step['fraction'] == pytest.approx(1, abs=0.01)
    assert steps['one']['collectives'] == []
    assert steps['one']['fp8'] > 0 == steps['fsdp']['fp8']
    assert steps['fsdp']['collectives'] == ['all-gather', 'all-reduce', 'reduce-scatter']
    assert steps['fsdp']['groups'] == [8]
    assert set(steps['hosts']['groups']) >= {2, 8}


def test_without_the_compiler_a_plan_says_that_it_is_by_numbers(tmp_path):
    if importlib.util.find_spec('jax_cuda13_plugin') or importlib.util.find_spec('jax_cuda12_plugin'):
        pytest.skip('this environment has the compiler')
    env = {**os.environ, 'COLUMNS': '160', 'XLA_FLAGS': ''}
    done = plan(tmp_path, env, '--gpu', 'h100', '--devices', '8')
    assert done.returncode == 0, done.stderr
    assert 'planned by numbers alone: the compiler for NVIDIA GPUs is missing' in done.stderr
    assert '(analytic)' in done.stdout
