"""XPK: what it is asked for, and how the container that it makes ends."""

import os
import signal
import subprocess

import pytest

from llm_jax.config.schema import ConfigError
from llm_jax.dist.slices import parse_slice
from llm_jax.launch import Job, xpk_script
from tests.stand_ins import ROOT, Cloud

JOB = Job('x', 'experiments/x.py', ('--config.data.sources={"a$$b": "text:`x`"}',), 'p', 'us-west4-a', 'gs://b/',
          spot=True, restarts=3, slices=2)  # fmt: skip


@pytest.mark.parametrize(
    ('tpu', 'kind'),
    [('v5e-16', 'v5litepod-16'), ('v5p:4x4x12', 'v5p-384'), ('v5p:4x4x48', 'v5p-4x4x48'), ('v4:4x4x48', 'v4-4x4x48'),
     ('v6e:16x16', 'v6e-256'), ('7x:4x4x4', 'tpu7x-4x4x4')],
)  # fmt: skip
def test_what_it_is_asked_for(tpu, kind, cloud):
    done = cloud.run(xpk_script(JOB, parse_slice(tpu), 'my-cluster'))
    assert done.code == 0, done.errors
    (call,) = done.calls
    assert call[:3] == ['xpk', 'workload', 'create']
    assert {f'--tpu-type={kind}', '--num-slices=2', '--max-restarts=3', '--spot', '--cluster=my-cluster'} <= set(call)
    assert '--restart-on-exit-codes=1,75' in call
    assert 'xpk cluster delete --cluster=my-cluster --project=p --zone=us-west4-a' in done.output


def test_where_it_does_not_start(cloud):
    done = cloud.run(xpk_script(JOB, parse_slice('v5e-16'), 'c'), fails={'xpk create': [1]})
    assert done.code == 1 and 'xpk workload delete --workload=x --cluster=c --project=p' in done.errors


def test_overrides_of_several_lines():
    with pytest.raises(ConfigError, match='no overrides of several lines'):
        xpk_script(Job('x', 'experiments/x.py', ('--config.a=1\n2',)), parse_slice('v5e-16'), 'c')


def start_pod(cloud, **plan):
    done = cloud.run(xpk_script(JOB, parse_slice('v5e-16'), 'c'), **plan)
    assert done.code == 0, done.errors
    (cloud.place / 'calls').write_text('')
    command = ['bash', '-c', Cloud.expand((cloud.place / 'pod').read_text())]
    environment = cloud.environment | {'LLM_JAX_PYTHON': str(cloud.place / 'container-python')}
    # In the image one Python trains and reads the bucket.
    (cloud.place / 'container-python').write_text(
        '#!/bin/bash\n[[ $2 != *find_spec* ]] || exec echo python\n'
        f'[[ $1 != -c ]] || exec python3 "$@"\nexec {cloud.place}/python "$@"\n'
    )
    (cloud.place / 'container-python').chmod(0o755)
    return subprocess.Popen(
        command, cwd=cloud.repository, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(('training', 'code'), [('finished', 0), ('stopped', 75), ('2', 2), ('dies', 137)])
def test_how_its_container_ends(training, code, cloud):
    process = start_pod(cloud, training=[training])
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code, errors
    (call,) = [call for call in cloud.calls() if call[0] == 'python']
    assert call[2:] == [
        'experiments/x.py', '--workdir', 'gs://b/runs/x', '--config.data.cache_dir=gs://b/cache',
        '--config.mesh.distributed=True', '--config.data.sources={"a$$b": "text:`x`"}',
    ]  # fmt: skip


def test_the_notice_reaches_the_training(cloud):
    process = start_pod(cloud, training=['waits'])
    cloud.wait_for('training-0')
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 75, errors
    assert (cloud.place / 'saved-0').exists()


def test_the_image_has_nothing_that_git_ignores():
    """Environments, compilers and runs are gigabytes."""
    lines = lambda name: {line.strip('/*') for line in (ROOT / name).read_text().splitlines() if line[0] != '#'}
    assert lines('.gitignore') | {'.git'} <= lines('.dockerignore')
