"""Kubernetes: what the JobSet asks for, how its pods end, and what the script says is left."""

import os
import signal
import subprocess

from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet
import pytest
import yaml

from llm_jax.config.schema import ConfigError
from llm_jax.dist.slices import parse_slice
from llm_jax.launch import Job, gke_script, jobset
from tests.stand_ins import verbs

JOB = Job('x', 'experiments/x.py', ('--config.data.sources={"a$$b": "$(HOME)`x`"}',), 'my-project', 'us-west4-a',
          'gs://bucket/', restarts=3)  # fmt: skip
SPOT = Job('x', 'experiments/x.py', (), 'p', 'us-west4-a', 'gs://b', spot=True, restarts=3, slices=2)
V5E, IRONWOOD = parse_slice('v5e-16'), parse_slice('7x:4x4x4')
ONE = gke_script(JOB, V5E, 'my-cluster')
SLICES = gke_script(SPOT, IRONWOOD, 'my-cluster')


def container(job_set):
    (replicated,) = job_set['spec']['replicatedJobs']
    return replicated['template']['spec']['template']['spec']['containers'][0]


def pod(job_set):
    return job_set['spec']['replicatedJobs'][0]['template']['spec']['template']['spec']


@pytest.mark.parametrize(('text', 'job', 'tpu'), [(ONE, JOB, V5E), (SLICES, SPOT, IRONWOOD)])
def test_the_manifest_is_a_job_set(text, job, tpu, cloud):
    """Every field exists in the schema of JobSet and of the pods in it: none is lost on the way through its models."""
    done = cloud.run(text)
    assert done.code == 0, done.errors
    applied = yaml.safe_load((cloud.place / 'jobset').read_text())
    assert applied == jobset(job, tpu, job.bucket.rstrip('/'))
    assert JobsetV1alpha2JobSet.from_dict(applied).to_dict() == applied
    (replicated,) = applied['spec']['replicatedJobs']
    spec = replicated['template']['spec']
    assert (replicated['replicas'], spec['parallelism'], spec['completions']) == (job.slices, tpu.hosts, tpu.hosts)
    assert container(applied)['securityContext'] == {'privileged': True}
    pools = [call for call in done.calls if 'node-pools' in call and 'create' in call]
    assert len(pools) == job.slices and f'--num-nodes={tpu.hosts}' in pools[0]
    (scopes,) = [word for word in pools[0] if word.startswith('--scopes=')]
    assert 'https://www.googleapis.com/auth/cloud-platform' in scopes
    placed = '--placement-policy=x-7x-4x4x4-spot-policy' if tpu.chip.name == '7x' else '--tpu-topology=4x4'
    assert placed in pools[0]


def test_a_misspelt_field_would_be_noticed():
    wrong = jobset(JOB, V5E, 'gs://bucket')
    wrong['spec']['replicatedJobs'][0]['template']['spec']['paralelism'] = 4
    assert JobsetV1alpha2JobSet.from_dict(wrong).to_dict() != wrong


def test_the_network_between_slices():
    """The host's, which Workload Identity does not work on."""
    assert pod(jobset(SPOT, IRONWOOD, 'gs://b')).items() >= {
        'hostNetwork': True, 'dnsPolicy': 'ClusterFirstWithHostNet'}.items()  # fmt: skip
    assert 'hostNetwork' not in pod(jobset(JOB, V5E, 'gs://b'))
    granted = pod(jobset(SPOT, IRONWOOD, 'gs://b', service_account='trainer'))
    assert granted['serviceAccountName'] == 'trainer' and 'hostNetwork' not in granted


def test_slices_of_one_host_are_not_joined():
    with pytest.raises(ConfigError, match='--slices 2 of v5e:2x4: Kubernetes Engine joins only slices of several'):
        gke_script(Job('x', 'experiments/x.py', slices=2), parse_slice('v5e-8'), 'c')


def test_it_says_what_is_left_and_how_to_remove_it(cloud):
    done = cloud.run(SLICES)
    assert cloud.left() == [
        'pools/x-7x-4x4x4-spot-0', 'pools/x-7x-4x4x4-spot-1', 'policies/x-7x-4x4x4-spot-policy'
    ]  # fmt: skip
    assert 'kubectl delete jobset x' in done.output and '--project=p' in done.output
    cloud.follow(done.output)
    assert not cloud.left()


@pytest.mark.parametrize(
    'plan',
    [
        {'fails': {'storage cp': [1]}},
        {'fails': {'node-pools list': [1, 2, 3, 4, 5]}},
        {'fails': {'kubectl apply': [1]}},
        {'fails': {'kubectl delete': [1, 2, 3, 4, 5]}},
        {'broken_pools': [2]},
    ],
)
def test_a_call_that_fails(plan, cloud):
    done = cloud.run(SLICES, **plan)
    assert done.code != 0
    cloud.follow(done.output)
    assert not cloud.left(), done.output


def test_calls_that_fail_for_a_moment(cloud):
    once = ('clusters list', 'clusters get-credentials', 'node-pools list', 'resource-policies list', 'kubectl delete')
    done = cloud.run(SLICES, fails={call: [1] for call in once})
    assert done.code == 0, done.errors
    assert verbs(done.calls, 'create') == 3 * ['create']


def test_ended_by_the_user(cloud):
    process = cloud.start(SLICES, fails={'kubectl delete': list(range(1, 100))})
    cloud.wait_for('pools')
    os.killpg(process.pid, signal.SIGINT)
    done = cloud.end(process)
    assert done.code != 0
    cloud.follow(done.output)
    assert not cloud.left(), done.output


def test_where_gcloud_does_not_say_what_is_left(cloud):
    done = cloud.run(ONE, fails={'node-pools list': list(range(2, 100))})
    assert 'gcloud container node-pools list --cluster=my-cluster' in done.errors


def test_pools_of_another_shape_are_not_used(cloud):
    cloud.run(ONE)
    done = cloud.run(gke_script(JOB, parse_slice('v5e-32'), 'my-cluster'))
    assert verbs(done.calls, 'create') == ['create']
    done = cloud.run(ONE)
    assert verbs(done.calls, 'create') == []
    cloud.follow(done.output)
    assert cloud.left() == ['pools/x-v5e-4x8-0']


def test_clusters_in_a_zone_and_none(cloud):
    done = cloud.run(ONE, location='us-west4-a')
    assert done.code == 0 and '--location=us-west4-a' in done.output, done.errors
    done = cloud.run(ONE, location='us-west41')
    assert done.code == 2 and 'there is no cluster my-cluster in us-west4-a or its region' in done.errors


def test_a_cluster_without_job_sets(cloud):
    for schema in ('', '{"an": "older one"}'):
        done = cloud.run(ONE, schema=schema)
        assert done.code == 1 and 'the cluster has no JobSet controller, or one from before' in done.errors
    done = cloud.run(ONE, fails={'kubectl get': [1]})
    assert done.code == 1 and 'gcloud components install gke-gcloud-auth-plugin' in done.errors
    assert not cloud.left()


def test_longer_notice_on_spot(cloud):
    done = cloud.run(SLICES)
    assert 'A spot node gives its pods 15 s' in done.output
    cloud.follow(done.output)
    cloud.environment['NODE_CONFIG'] = 'long notice.yaml'
    done = cloud.run(SLICES)
    pools = [call for call in done.calls if 'node-pools' in call and 'create' in call]
    assert '--system-config-from-file=long notice.yaml' in pools[0]


@pytest.fixture
def start_pod(cloud, tmp_path):
    """Starts a pod of the JobSet: bash is its first process."""

    def start(**plan):
        cloud.run(ONE, **plan)
        command = cloud.pod()
        work = tmp_path / 'llm_jax'
        work.mkdir(exist_ok=True)
        pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
        return subprocess.Popen(command, cwd=work, env=cloud.environment, start_new_session=True, **pipes)

    return start


@pytest.mark.parametrize(
    ('training', 'code'), [('finished', 0), ('stopped', 75), ('2', 2), ('1', 1), ('75', 75), ('dies', 137)]
)
def test_how_a_pod_ends(training, code, start_pod, cloud):
    process = start_pod(training=[training])
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code, errors
    (call,) = [call for call in cloud.calls() if call[0] == 'python']
    assert call[2:] == [
        'experiments/x.py', '--workdir', 'gs://bucket/runs/x', '--config.data.cache_dir=gs://bucket/cache',
        '--config.mesh.distributed=True', '--config.data.sources={"a$$b": "$(HOME)`x`"}',
    ]  # fmt: skip


def test_the_notice_reaches_the_training(start_pod, cloud):
    """Kubernetes tells the first process of a container only: the training saves, and the pod is tried again."""
    process = start_pod(training=['waits'])
    cloud.wait_for('training-0')
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 75, errors
    assert (cloud.place / 'saved-0').exists()


def test_a_pod_without_its_code_or_access(start_pod, cloud):
    process = start_pod(fails={'pip': [1, 2]})
    assert process.communicate(timeout=30) and process.returncode == 0
    process = start_pod(fails={'pip': [1, 2, 3, 4, 5]})
    assert process.communicate(timeout=30) and process.returncode == 75
    (cloud.place / 'read-only').touch()
    process = start_pod()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 75 and 'its account needs roles/storage.objectAdmin' in errors
    assert not [call for call in cloud.calls() if call[0] == 'python']
    (cloud.place / 'bucket/code.tar.gz').write_bytes(b'')  # tar's exit code is 2, which means a mistake
    process = start_pod()
    (cloud.place / 'bucket/code.tar.gz').write_bytes(b'')
    assert process.communicate(timeout=30) and process.returncode == 75
