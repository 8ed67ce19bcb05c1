"""Slurm: what is asked for, and whether a job queues again, by how its processes end."""

import json
import os
import pathlib
import signal

import pytest

from llm_jax.dist.slices import parse_slice
from llm_jax.launch import Cluster, Job, slurm_script
from llm_jax.launch.job import resource_name

JOB = Job('x', 'experiments/x.py', ('--config.data.sources={"a$b": "text:`x`"}',), restarts=3)
SCRIPT = slurm_script(JOB, Cluster(nodes=2, partition='gpu'))


def run(cloud, script=SCRIPT, status='running', **plan):
    runs = cloud.repository / 'runs/x'
    runs.mkdir(parents=True, exist_ok=True)
    (runs / 'run.json').write_text(json.dumps({'status': status}, indent=2))
    return cloud.run(script, run=str(runs / 'run.json'), **plan)


def requeued(done):
    return ['scontrol', 'requeue', '17'] in done.calls


def test_what_is_asked_for(cloud):
    options = {line.removeprefix('#SBATCH --') for line in SCRIPT.splitlines() if line.startswith('#SBATCH')}
    assert {'nodes=2', 'exclusive', 'mem=0', 'signal=TERM@300', 'requeue', 'partition=gpu'} <= options
    assert not any(option.startswith('account') for option in options)
    done = run(cloud)
    assert done.code == 0 and not requeued(done), done.errors
    (srun,) = [call for call in done.calls if call[0] == 'srun']
    assert srun[1:3] == ['--kill-on-bad-exit=1', '--gpus-per-node=8']
    trainings = [call for call in done.calls if call[0] == 'python' and call[1].endswith('train.py')]
    assert len(trainings) == 2 and trainings[0][2:] == [
        'experiments/x.py', '--config.mesh.distributed=True', '--config.data.sources={"a$b": "text:`x`"}',
    ]  # fmt: skip


@pytest.mark.parametrize(
    ('plan', 'code', 'again'),
    [
        ({'training': ['stopped']}, 0, True),
        ({'training': ['1']}, 137, True),  # the other process is killed
        ({'host_1': 'dies', 'training': ['waits']}, 137, True),
        ({'training': ['75']}, 137, True),
        ({'training': ['2']}, 2, False),  # a mistake, although the other process is killed
        ({'training': ['waits'], 'host_1': '2'}, 2, False),
    ],
)
def test_it_queues_again_until_it_is_finished(plan, code, again, cloud):
    if plan.get('host_1') is None:
        plan['host_1'] = 'waits'
    if plan['training'] == ['stopped']:
        plan['host_1'] = 'finished'
    done = run(cloud, **plan)
    assert (done.code, requeued(done)) == (code, again), done.errors
    assert not list(cloud.repository.glob('*.mistake'))


def test_the_end_of_the_allocation(cloud):
    """The notice comes to every process of a task; all save, and the job queues again."""
    runs = cloud.repository / 'runs/x'
    runs.mkdir(parents=True)
    process = cloud.start(SCRIPT, training=['waits'], host_1='waits', run=str(runs / 'run.json'))
    cloud.wait_for('training-0')
    cloud.wait_for('training-1')
    (srun,) = [int(pid) for pid in os.listdir('/proc') if pid.isdigit() and _is_srun(pid, process.pid)]
    os.kill(srun, signal.SIGTERM)
    done = cloud.end(process)
    assert done.code == 0 and requeued(done), done.errors
    assert (cloud.place / 'saved-0').exists() and (cloud.place / 'saved-1').exists()


def _is_srun(pid, session):
    try:
        fields = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
        return int(fields[3]) == session and '/srun\0' in pathlib.Path(f'/proc/{pid}/cmdline').read_text()
    except OSError:
        return False


def test_it_gives_up(cloud):
    cloud.environment['SLURM_RESTART_COUNT'] = '3'
    done = run(cloud, training=['stopped'])
    assert (done.code, requeued(done)) == (1, False)
    assert 'gave up after 3 restarts' in done.errors


def test_a_job_that_is_not_queued_again_says_so(cloud):
    done = run(cloud, training=['stopped'], fails={'scontrol': [1]})
    assert done.code == 1 and 'Slurm does not queue the job again (why is above): submit it again' in done.errors


def test_packages_of_another_driver(cloud):
    assert 'LLM_JAX_PACKAGES="${LLM_JAX_PACKAGES:-jax[cuda13]}"' in SCRIPT
    assert "LLM_JAX_PACKAGES='jax[cuda12]'" in slurm_script(JOB, Cluster(packages='jax[cuda12]'))


def test_names():
    assert resource_name('gpt2_124m') == 'gpt2-124m'
    assert resource_name('7B, the second') == 'run-7b-the-second'
    long = [resource_name('a-very-long-name-of-an-experiment-' + end) for end in ('of-which-one', 'of-which-two')]
    assert len(set(long)) == 2 and all(len(name) == 40 for name in long)
    assert parse_slice('v5e-16').name == 'v5e:4x4'
