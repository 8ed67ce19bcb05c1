"""Cloud TPU VMs: every ending, good or bad, leaves nothing that costs, or says how to remove it."""

import json
import os
import signal
import tarfile

import pytest

from llm_jax.dist.slices import parse_slice
from llm_jax.launch import Job, tpu_vm_script
from tests.stand_ins import verbs

JOB = Job('x', 'experiments/x.py', ('--config.data.sources={"a$b": "text:`x`"}',), 'my-project', 'us-west4-a',
          'gs://bucket/', restarts=3)  # fmt: skip
SPOT = Job('x', 'experiments/x.py', (), 'p', 'z-a', 'gs://b', spot=True, restarts=3, slices=2)
V5E = parse_slice('v5e-16')
ONE = tpu_vm_script(JOB, V5E)
QUEUED = tpu_vm_script(JOB, V5E, queued=True)
SLICES = tpu_vm_script(SPOT, parse_slice('v5p:4x4x12'))


def test_from_upload_to_training(cloud):
    """The code comes to all hosts through the bucket, and the training starts there with its arguments intact."""
    done = cloud.run(ONE, hosts=2)
    assert done.code == 0, done.errors
    trainings = [call for call in done.calls if call[0] == 'python']
    assert len(trainings) == 2
    for host, call in enumerate(sorted(trainings)):
        assert call[1:] == [
            str(cloud.place / f'hosts/{host}/llm_jax/tools/train.py'), 'experiments/x.py',
            '--workdir', 'gs://bucket/runs/x', '--config.data.cache_dir=gs://bucket/cache',
            '--config.mesh.distributed=True', '--config.data.sources={"a$b": "text:`x`"}',
        ]  # fmt: skip
    (create,) = [call for call in done.calls if 'create' in call]
    assert create[1:] == [
        'compute', 'tpus', 'tpu-vm', 'create', 'x-v5e-4x4', '--accelerator-type=v5litepod-16',
        '--version=v2-alpha-tpuv5-lite', '--project=my-project', '--zone=us-west4-a', '--quiet',
    ]  # fmt: skip
    assert verbs(done.calls, 'create', 'ssh', 'delete') == ['create', 'ssh', 'delete']
    assert not cloud.left()
    assert not (cloud.place / 'hosts/0/llm_jax/.git').exists()


def test_what_a_slice_of_slices_is_asked_for(cloud):
    done = cloud.run(SLICES, states=['WAITING_FOR_RESOURCES', 'PROVISIONING'])
    assert done.code == 0, done.errors
    (create,) = [call for call in done.calls if 'create' in call]
    assert {'--accelerator-type=v5p-384', '--node-count=2', '--node-prefix=x-v5p-4x4x12-spot', '--spot'} <= set(create)
    (ssh,) = [call for call in done.calls if 'ssh' in call]
    assert {'--node=all', '--worker=all'} <= set(ssh)
    assert not cloud.left()


def test_more_hosts_than_a_batch_of_ssh(cloud):
    """queued-resources ssh starts 64 hosts at a time; those would wait for the others."""
    done = cloud.run(QUEUED, hosts=65, ssh=['0'] * 4)
    assert done.code != 75
    (cloud.place / 'bucket/run.json').write_text('{\n  "status": "finished"\n}')
    done = cloud.run(QUEUED, hosts=65, ssh=['0'])
    assert (done.code, verbs(done.calls, 'ssh')) == (0, ['ssh']), done.errors


def test_preempted_slices_are_asked_for_again(cloud):
    """The request says ACTIVE long after a node is gone: no attempt is spent on it."""
    done = cloud.run(SLICES, ssh=['preempted', 'run'])
    assert done.code == 0, done.errors
    assert verbs(done.calls, 'create', 'ssh', 'delete') == ['create', 'ssh', 'delete', 'create', 'ssh', 'delete']
    assert not cloud.left()


def test_a_suspended_request_is_replaced(cloud):
    done = cloud.run(QUEUED, states=['ACTIVE', 'SUSPENDING', 'SUSPENDED'], ssh=['255', 'run'])
    assert done.code == 0, done.errors
    assert verbs(done.calls, 'create', 'ssh', 'delete') == ['create', 'ssh', 'delete', 'create', 'ssh', 'delete']


def test_a_failed_list_is_not_an_empty_one(cloud):
    """While waiting in the queue, it must not cost the place in it; and nothing is created twice."""
    waiting = ['WAITING_FOR_RESOURCES'] * 4
    done = cloud.run(QUEUED, states=waiting, fails={'queued-resources list': [2, 3, 4, 6], 'tpu-vm list': [1, 2]})
    assert done.code == 0, done.errors
    assert verbs(done.calls, 'create', 'ssh', 'delete') == ['create', 'ssh', 'delete']
    assert 'gcloud did not say what there is' in done.errors and not cloud.left()


def test_nothing_is_created_where_gcloud_does_not_answer(cloud):
    done = cloud.run(ONE, fails={'tpu-vm list': [1]})
    assert (done.code, verbs(done.calls, 'create', 'cp')) == (1, [])
    assert 'To remove it: gcloud compute tpus tpu-vm delete x-v5e-4x4 --quiet --project=my-project' in done.errors


def test_a_slice_that_is_repaired_is_waited_for(cloud):
    done = cloud.run(ONE, node_states=['READY', 'REPAIRING', 'REPAIRING', 'READY'], ssh=['1', 'run'])
    assert (done.code, verbs(done.calls, 'create', 'ssh')) == (0, ['create', 'ssh', 'ssh']), done.errors


@pytest.mark.parametrize('call', ['storage cp', 'tpu-vm create'])
def test_a_call_that_fails_before_anything_costs(call, cloud):
    done = cloud.run(ONE, fails={call: [1]})
    assert done.code != 0 and 'UNAVAILABLE' in done.errors
    assert not cloud.left()


def test_no_capacity(cloud):
    done = cloud.run(ONE, refused=[1])
    assert done.code == 1 and 'with --queued, launch waits for capacity' in done.errors
    done = cloud.run(ONE, ssh=['preempted', 'run'], refused=[2])  # after a preemption, it is tried again
    assert done.code == 0 and not cloud.left(), done.errors


def test_an_interrupted_create_is_not_forgotten(cloud):
    done = cloud.run(ONE, interrupted=[1])
    assert (done.code, verbs(done.calls, 'create', 'ssh')) == (0, ['create', 'ssh']), done.errors
    assert not cloud.left()


def test_deleting_is_tried_again_and_else_said(cloud):
    done = cloud.run(ONE, fails={'tpu-vm delete': [1, 2]})
    assert done.code == 0 and not cloud.left(), done.errors
    done = cloud.run(QUEUED, fails={'queued-resources delete': list(range(1, 100))})
    assert done.code == 1  # the training is finished, the script is not
    assert cloud.left() and 'MAY BE LEFT, AND COST' in done.errors
    cloud.run(':')  # gcloud works again
    cloud.follow(done.errors.rpartition('MAY BE LEFT')[2])
    assert not cloud.left()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ended_by_the_user(number, cloud):
    """Also when the terminal is gone: then nobody reads what it prints."""
    process = cloud.start(ONE, ssh=['hang'])
    cloud.wait_for('hangs')
    if number == signal.SIGHUP:
        process.stderr.close()
        process.stdout.close()
    os.kill(process.pid, number)
    assert process.wait(timeout=30) == 128 + number
    assert not cloud.left()


def test_ended_while_it_waits_in_the_queue(cloud):
    process = cloud.start(QUEUED, states=['WAITING_FOR_RESOURCES'] * 10_000)
    cloud.wait_for('requests')
    os.kill(process.pid, signal.SIGTERM)
    assert cloud.end(process).code == 143
    assert not cloud.left()


def test_a_run_that_saved_and_stopped_goes_on(cloud):
    done = cloud.run(ONE, training=['stopped', 'finished'])
    assert (done.code, verbs(done.calls, 'ssh', 'delete')) == (0, ['ssh', 'ssh', 'delete']), done.errors


def test_the_answer_of_the_bucket_is_asked_for_again(cloud):
    done = cloud.run(ONE, fails={'storage cat json': [1, 2]})
    assert (done.code, verbs(done.calls, 'ssh')) == (0, ['ssh']), done.errors


@pytest.mark.parametrize('host', [{'training': ['1', 'finished']}, {'training': ['dies', 'finished']}])
def test_a_crash_is_tried_again_where_it_happened(host, cloud):
    done = cloud.run(ONE, **host)
    assert (done.code, verbs(done.calls, 'create', 'ssh', 'delete')) == (0, ['create', 'ssh', 'ssh', 'delete'])


def test_a_mistake_in_the_experiment_is_not_tried_again(cloud):
    done = cloud.run(ONE, training=['2'])
    assert (done.code, verbs(done.calls, 'ssh', 'delete')) == (2, ['ssh', 'delete'])
    assert not cloud.left()


def test_code_that_does_not_come_is_no_mistake(cloud):
    """tar ends with 2 where it gets nothing."""
    done = cloud.run(ONE, fails={'storage cat gz': [1, 2, 3]})
    assert (done.code, verbs(done.calls, 'ssh')) == (0, ['ssh']), done.errors
    done = cloud.run(ONE, fails={'storage cat gz': [1, 2, 3, 4, 5]})
    assert (done.code, verbs(done.calls, 'ssh')) == (0, ['ssh', 'ssh']), done.errors


@pytest.mark.parametrize('call', ['pip', 'uv'])
def test_packages_are_asked_for_again(call, cloud):
    done = cloud.run(ONE, hosts=2, fails={call: [1, 2]})
    assert (done.code, verbs(done.calls, 'ssh')) == (0, ['ssh']), done.errors


def test_it_gives_up(cloud):
    """Also with the script on standard input, which ssh would read."""
    done = cloud.run(ONE, ssh=['1'] * 9)
    assert (done.code, verbs(done.calls, 'ssh', 'delete')) == (1, 4 * ['ssh'] + ['delete'])
    assert 'gave up after 3 restarts' in done.errors and not cloud.left()


def test_a_lost_connection_does_not_start_a_second_training_over_the_first(cloud):
    """The one that lives on saves, ends, and only then goes its code; all hosts start again."""
    done = cloud.run(ONE, ssh=['lost', 'run'], training=['waits', 'finished'])
    assert (done.code, verbs(done.calls, 'create', 'ssh')) == (0, ['create', 'ssh', 'ssh']), done.errors
    assert (cloud.place / 'saved-0').exists() and not (cloud.place / 'code-was-gone').exists()
    calls = [call[0] for call in done.calls]
    assert calls.count('python') == 2
    assert calls.index('python') < calls.index('sudo')  # the lock file goes after the training that held it


def test_what_an_earlier_start_left_is_used(cloud):
    cloud.run(':')
    (cloud.place / 'nodes').mkdir()
    (cloud.place / 'nodes/x-v5e-4x4').write_text('READY')
    done = cloud.run(ONE)
    assert (done.code, verbs(done.calls, 'create', 'ssh')) == (0, ['ssh']), done.errors
    assert not cloud.left()


def test_another_shape_has_another_name(cloud):
    """What there is of another topology or capacity is not taken for this job's."""
    names = {
        next(line for line in tpu_vm_script(job, parse_slice(tpu), queued=queued).splitlines() if 'TPU=' in line)
        for job, queued in ((JOB, False), (JOB, True), (SPOT, True))
        for tpu in ('v5e-16', 'v5e-32', 'v6e-16')
    }
    assert len(names) == 9


def test_it_runs_from_anywhere_in_the_repository(cloud):
    done = cloud.end(cloud.start(ONE, cwd=cloud.repository / 'experiments'))
    assert done.code == 0, done.errors
    with tarfile.open(cloud.place / 'bucket/code.tar.gz') as code:
        assert 'tools/run' in code.getnames()


def test_an_experiment_that_git_does_not_know(cloud):
    done = cloud.run(ONE.replace('experiments/x.py', 'experiments/new.py'))
    assert done.code == 2 and 'git does not know experiments/new.py' in done.errors
    assert not cloud.left() and not verbs(done.calls, 'create', 'cp')


def test_what_only_the_user_knows_is_asked_for(cloud):
    done = cloud.run(tpu_vm_script(Job('x', 'experiments/x.py', project='p', zone='z'), V5E))
    assert done.code != 0 and not done.calls
    assert 'BUCKET: set it to a bucket' in done.errors
    cloud.environment['BUCKET'] = 'gs://mine'
    done = cloud.run(tpu_vm_script(Job('x', 'experiments/x.py', project='p', zone='z'), V5E))
    assert done.code == 0 and json.loads((cloud.place / 'bucket/run.json').read_text())['status'] == 'finished'
