"""What `./tools/run launch` says of mistakes, and that it prints what was asked for."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def launch(*arguments):
    command = [sys.executable, 'tools/launch.py', 'experiments/pretrain/gpt2_124m.py', *arguments]
    environment = {'PYTHONPATH': str(ROOT), 'PATH': '/usr/bin:/bin', 'JAX_PLATFORMS': 'cpu'}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((), 'say where to: --tpu v5e-16'),
        (('--tpu', 'v5e-12'), 'is no slice of v5e; there are, for example, v5e-1'),
        (('--tpu', '7x:2x2x1'), 'add --gke CLUSTER'),
        (('--tpu', 'v5e-16', '--config.mesh.tensor=5'), 'does not fit 16 device(s)'),
        (('--tpu', 'v5e-16', '--slices', '2'), 'mesh.data = 1 cannot be split over 2 TPU slices'),
        (('--slurm', '--nodes', '3'), 'train.batch_size / train.grad_accumulation = 512 cannot be split'),
        (('--slurm', '--nodes', '0'), 'argument --nodes: 0 must be at least 1'),
        (('--slurm', '--time', 'a day'), "--time = 'a day' is no time of Slurm's: write it like 90, 24:00:00"),
        (('--tpu', 'v5e-16', '--bucket', 'mine'), "--bucket = 'mine' is no bucket: write it as gs://mine"),
        (('--tpu', 'v5e-16', '--gke', 'a', '--xpk', 'b'), 'give one of them'),
        (('--tpu', 'v5e-16', '--restarts', '-1'), 'argument --restarts: -1 must be at least 0'),
        (('--tpu', 'v5e-16', '--zone_', 'x'), "unknown option '--zone_'; did you mean '--zone'?"),
    ],
)
def test_errors(arguments, message):
    done = launch(*arguments)
    assert (done.returncode, done.stdout) == (2, '')
    assert message in done.stderr and 'Traceback' not in done.stderr


def test_prints_a_script():
    done = launch('--tpu', 'v6e-16', '--project', 'p', '--config.train.batch_size=256')
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('#!/usr/bin/env bash\n') and 'PROJECT=p\n' in done.stdout
    assert '--config.mesh.distributed=True --config.train.batch_size=256' in done.stdout


def test_prints_a_batch_script():
    done = launch('--slurm', '--nodes', '2', '--packages', 'jax[cuda12]')
    assert done.returncode == 0, done.stderr
    assert '#SBATCH --nodes=2\n' in done.stdout and "LLM_JAX_PACKAGES='jax[cuda12]'" in done.stdout
