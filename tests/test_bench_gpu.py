"""A rehearsal of tools/bench_gpu.sh, which is to run where nobody looks on."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[1] / 'tools' / 'bench_gpu.sh'
TINY = [f'--config.{field}' for field in (
    'model.n_layers=1', 'model.d_model=64', 'model.n_heads=2', 'model.vocab_size=256', 'data.seq_len=64',
    'train.batch_size=2',
)]  # fmt: skip


def bench(tmp_path, *arguments, **variables):
    env = {**os.environ, 'LLM_JAX_PYTHON': sys.executable, 'ONLY': 'laptop', 'ROUNDS': '2', 'WARM_UP': '1',
           'OUT': str(tmp_path / 'out'), 'XLA_FLAGS': '', **variables}  # fmt: skip
    return subprocess.run(['bash', str(SCRIPT), *arguments], capture_output=True, text=True, env=env, check=False)


@pytest.mark.slow
def test_results_are_written_case_by_case(tmp_path):
    done = bench(tmp_path, *TINY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '2 measured, 0 failed, 0 not measured' in done.stdout
    first, second = (json.loads(line) for line in (tmp_path / 'out' / 'bench_gpu.jsonl').read_text().splitlines())
    assert first['xla_flags'] == ''
    assert 'triton' in second['xla_flags']
    for result in (first, second):
        assert result['tokens_per_second'] > 0
        assert result['share_of_product'] == pytest.approx(result['tflops'] / result['product_tflops'])
    assert (tmp_path / 'out' / 'bench_gpu.log').read_text().count('== laptop') == 2


def test_a_case_that_fails_does_not_end_the_others(tmp_path):
    done = bench(tmp_path, '--config.model.n_heads=7')
    assert done.returncode == 1
    assert '0 measured, 2 failed, 0 not measured' in done.stdout
    assert done.stdout.count('model.d_model') >= 2  # the reason
    assert 'Traceback' not in done.stdout


def test_no_case_starts_when_the_time_is_up(tmp_path):
    done = bench(tmp_path, TOTAL='1')
    assert done.returncode == 0, done.stdout + done.stderr
    assert '0 measured, 0 failed, 2 not measured' in done.stdout


def test_a_python_without_jax_is_said(tmp_path):
    done = bench(tmp_path, LLM_JAX_PYTHON='/nowhere/python')
    assert done.returncode == 2
    assert 'has no JAX that works' in done.stderr
