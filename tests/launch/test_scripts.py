"""The scripts run: with stand-ins for gcloud, kubectl and Slurm that write down how they were called."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet
import pytest
import yaml

from llm_jax.dist.slices import parse_slice
from llm_jax.launch import Cluster, Job, gke_script, jobset, slurm_script, tpu_vm_script, xpk_script

ROOT = pathlib.Path(__file__).parents[2]
JOB = Job('gpt2_124m', 'experiments/pretrain/gpt2_124m.py', ('--config.data.sources={"a$b": "text:`x`"}',),
          'my-project', 'us-west4-a', 'gs://bucket/', restarts=3)  # fmt: skip
SPOT = Job('gpt2_124m', 'experiments/pretrain/gpt2_124m.py', (), 'p', 'z-a', 'gs://b', spot=True, restarts=3, slices=2)
V5E = parse_slice('v5e-16')
SCRIPTS = {
    'one slice': tpu_vm_script(JOB, V5E),
    'queued': tpu_vm_script(JOB, V5E, queued=True),
    'spot slices': tpu_vm_script(SPOT, parse_slice('v5p:4x4x12')),
    'kubernetes': gke_script(JOB, V5E, 'my-cluster'),
    'kubernetes, ironwood': gke_script(SPOT, parse_slice('7x:4x4x4'), 'my-cluster'),
    'xpk': xpk_script(JOB, V5E, 'my-cluster'),
    'slurm': slurm_script(JOB, Cluster(nodes=2, partition='gpu')),
}


@pytest.mark.parametrize('name', SCRIPTS)
def test_scripts_are_sound(name, tmp_path):
    file = tmp_path / 'script.sh'
    file.write_text(SCRIPTS[name])
    shellcheck = shutil.which('shellcheck', path=f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}')
    done = subprocess.run([shellcheck, '--severity=warning', file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# What every stand-in does first: writes its arguments down.
HEAD = """#!/usr/bin/env python3
import json, os, pathlib, subprocess, sys
here, args = pathlib.Path(os.environ['STAND_INS']), sys.argv[1:]
with open(here / 'calls', 'a') as log:
    print(json.dumps([pathlib.Path(sys.argv[0]).name, *args]), file=log)
def scripted(name):
    lines = (here / name).read_text().splitlines()
    (here / name).write_text('\\n'.join(lines[1:] or lines))
    return lines[0]
"""
GCLOUD = """
if args[:2] == ['storage', 'cp']:
    (here / 'code.tar.gz').write_bytes(sys.stdin.buffer.read())
elif args[:2] == ['storage', 'cat'] and args[2].endswith('run.json'):
    print(json.dumps({'status': scripted('ends')}, indent=2))
elif args[:2] == ['storage', 'cat']:
    sys.stdout.buffer.write((here / 'code.tar.gz').read_bytes())
elif 'list' in args:
    print(scripted('states'))
elif 'ssh' in args:
    exit_code = int(scripted('exits'))
    if exit_code:
        sys.exit(exit_code)
    command = [a for a in args if a.startswith('--command=')][0].removeprefix('--command=')
    sys.exit(subprocess.run(['bash', '-c', command], env={**os.environ, 'HOME': str(here / 'home')}).returncode)
elif 'describe' in args:
    sys.exit(1)
"""


@pytest.fixture
def stand_ins(tmp_path):
    """`run(script, **files)`: the calls and the exit code of a script."""
    bodies = {
        'gcloud': GCLOUD,
        'kubectl': "if args[0] == 'apply': (here / 'applied').write_text(sys.stdin.read())\n",
        'srun': "sys.exit(int(scripted('exits')))\n",
        'scontrol': '',
        'xpk': '',
        'python': '',
        'python3.11': '',
        'sleep': '',
        'sudo': '',
    }
    for name, body in bodies.items():
        (tmp_path / name).write_text(HEAD + body)
        (tmp_path / name).chmod(0o755)
    (tmp_path / 'home').mkdir()
    (tmp_path / 'ends').write_text('finished')

    def run(script, cwd=ROOT, **files):
        for name, lines in files.items():
            (tmp_path / name).write_text('\n'.join(lines))
        environment = {
            **os.environ, 'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'STAND_INS': str(tmp_path),
            # The hosts' Python: what it would be called with is what counts.
            'LLM_JAX_PYTHON': str(tmp_path / 'python'),
        }  # fmt: skip
        (tmp_path / 'calls').write_text('')
        done = subprocess.run(
            ['bash'], input=script, cwd=cwd, env=environment, capture_output=True, text=True, check=False
        )
        calls = [json.loads(line) for line in (tmp_path / 'calls').read_text().splitlines()]
        return [call for call in calls if call[0] != 'sleep'], done.returncode, done.stderr

    return run


def verbs(calls, *among):
    return [word for call in calls for word in call if word in among]


def test_tpu_vm_from_upload_to_training(stand_ins, tmp_path):
    """The code comes to the hosts through the bucket, and the training starts there with its arguments intact."""
    calls, code, errors = stand_ins(SCRIPTS['one slice'], states=['', 'READY'], exits=['0'])
    assert code == 0, errors
    (train,) = [call for call in calls if call[0] == 'python']
    assert train[1:] == [
        str(tmp_path / 'home/llm_jax/tools/train.py'), 'experiments/pretrain/gpt2_124m.py',
        '--workdir', 'gs://bucket/runs/gpt2_124m', '--config.data.cache_dir=gs://bucket/cache',
        '--config.mesh.distributed=True', '--config.data.sources={"a$b": "text:`x`"}',
    ]  # fmt: skip
    (create,) = [call for call in calls if 'create' in call]
    assert create[1:] == [
        'compute', 'tpus', 'tpu-vm', 'create', 'gpt2-124m', '--accelerator-type=v5litepod-16',
        '--version=v2-alpha-tpuv5-lite', '--project=my-project', '--zone=us-west4-a',
    ]  # fmt: skip
    assert verbs(calls, 'create', 'ssh', 'delete') == ['create', 'ssh', 'delete']  # given back at the end
    assert not (tmp_path / 'home/llm_jax/.git').exists()
    copied = tmp_path / 'home/llm_jax/llm_jax/config/schema.py'
    assert copied.read_bytes() == (ROOT / 'llm_jax/config/schema.py').read_bytes()


def test_preempted_slices_are_asked_for_again(stand_ins):
    states = ['', 'WAITING_FOR_RESOURCES', 'WAITING_FOR_RESOURCES', 'ACTIVE', 'SUSPENDED', 'SUSPENDED', '', 'ACTIVE']
    calls, code, errors = stand_ins(SCRIPTS['spot slices'], states=states, exits=['255', '0'])
    assert code == 0, errors
    assert verbs(calls, 'create', 'ssh', 'delete') == ['create', 'ssh', 'delete', 'create', 'ssh', 'delete']
    create = next(call for call in calls if 'create' in call)
    assert {'--type=v5p', '--topology=4x4x12', '--node-count=2', '--node-prefix=gpt2-124m', '--spot'} <= set(create)
    ssh = next(call for call in calls if 'ssh' in call)
    assert {'--node=all', '--worker=all'} <= set(ssh)


def test_a_run_that_saved_and_stopped_goes_on(stand_ins):
    states = ['', 'PREEMPTED', 'PREEMPTED', '', 'READY']
    calls, code, errors = stand_ins(SCRIPTS['one slice'], states=states, exits=['0'], ends=['stopped', 'finished'])
    assert code == 0, errors
    assert verbs(calls, 'ssh', 'delete') == ['ssh', 'delete', 'ssh', 'delete']


def test_a_crash_is_tried_again_where_it_happened(stand_ins):
    calls, code, _ = stand_ins(SCRIPTS['one slice'], states=['READY'], exits=['1', '0'])
    assert (code, verbs(calls, 'create', 'ssh', 'delete')) == (0, ['ssh', 'ssh', 'delete'])


def test_a_mistake_in_the_experiment_is_not_tried_again(stand_ins):
    calls, code, _ = stand_ins(SCRIPTS['one slice'], states=['', 'READY'], exits=['2'])
    assert (code, verbs(calls, 'ssh', 'delete')) == (2, ['ssh', 'delete'])


def test_it_gives_up(stand_ins):
    calls, code, errors = stand_ins(SCRIPTS['one slice'], states=['READY'], exits=['1'])
    assert (code, verbs(calls, 'ssh', 'delete')) == (1, 4 * ['ssh'] + ['delete'])
    assert 'gave up after 3 restarts' in errors


def test_what_only_the_user_knows_is_asked_for(stand_ins):
    script = tpu_vm_script(Job('x', 'experiments/x.py', project='p', zone='z'), V5E)
    calls, code, errors = stand_ins(script, states=[''], exits=['0'])
    assert code != 0 and not calls
    assert 'BUCKET: set it to a bucket' in errors


@pytest.mark.parametrize(('name', 'job', 'tpu'), [('kubernetes', JOB, V5E),
                                                  ('kubernetes, ironwood', SPOT, parse_slice('7x:4x4x4'))])  # fmt: skip
def test_the_manifest_is_a_job_set(name, job, tpu, stand_ins, tmp_path):
    """Every field exists in the schema of JobSet and of the pods in it: none is lost on the way through its models."""
    calls, code, errors = stand_ins(SCRIPTS[name])
    assert code == 0, errors
    applied = yaml.safe_load((tmp_path / 'applied').read_text())
    assert applied == jobset(job, tpu, job.bucket.rstrip('/'))
    assert JobsetV1alpha2JobSet.from_dict(applied).to_dict() == applied
    (replicated,) = applied['spec']['replicatedJobs']
    spec = replicated['template']['spec']
    assert (replicated['replicas'], spec['parallelism'], spec['completions']) == (job.slices, tpu.hosts, tpu.hosts)
    command = spec['template']['spec']['containers'][0]['command']
    subprocess.run([*command[:1], '-n', *command[1:]], check=True)
    pools = [call for call in calls if 'node-pools' in call and 'create' in call]
    assert len(pools) == job.slices and f'--num-nodes={tpu.hosts}' in pools[0]
    placed = '--placement-policy=gpt2-124m-policy' if tpu.chip.name == '7x' else '--tpu-topology=4x4'
    assert placed in pools[0]


def test_a_misspelt_field_would_be_noticed():
    wrong = jobset(JOB, V5E, 'gs://bucket')
    wrong['spec']['replicatedJobs'][0]['template']['spec']['paralelism'] = 4
    assert JobsetV1alpha2JobSet.from_dict(wrong).to_dict() != wrong


def test_xpk(stand_ins):
    (call,), code, errors = stand_ins(SCRIPTS['xpk'])
    assert code == 0, errors
    assert call[:3] == ['xpk', 'workload', 'create']
    assert {'--tpu-type=v5litepod-16', '--cluster=my-cluster', '--num-slices=1'} <= set(call)
    command = call[-1].removeprefix('--command=')
    assert '--workdir "gs://bucket/runs/gpt2_124m"' in command
    assert '\'--config.data.sources={"a$b": "text:`x`"}\'' in command


@pytest.mark.parametrize(('exit_code', 'status', 'requeued'), [(0, 'finished', False), (0, 'stopped', True),
                                                               (1, 'failed', True), (2, 'failed', False)])  # fmt: skip
def test_slurm_queues_again_until_it_is_finished(exit_code, status, requeued, stand_ins, tmp_path):
    place = tmp_path / 'repository'
    (place / 'tools').mkdir(parents=True)
    shutil.copy(ROOT / 'tools/run', place / 'tools/run')
    (place / 'tools/show.py').touch()
    (place / 'runs/gpt2_124m').mkdir(parents=True)
    (place / 'runs/gpt2_124m/run.json').write_text(json.dumps({'status': status}, indent=2))
    script = SCRIPTS['slurm'].replace('"$SLURM_JOB_ID"', '17')
    calls, code, errors = stand_ins(script, cwd=place, exits=[str(exit_code)])
    assert code == exit_code, errors
    assert (['scontrol', 'requeue', '17'] in calls) == requeued
    (srun,) = [call for call in calls if call[0] == 'srun']
    assert srun[1:] == [
        '--kill-on-bad-exit=1', '--gpus-per-node=8', './tools/run', 'train', 'experiments/pretrain/gpt2_124m.py',
        '--config.mesh.distributed=True', '--config.data.sources={"a$b": "text:`x`"}',
    ]  # fmt: skip
