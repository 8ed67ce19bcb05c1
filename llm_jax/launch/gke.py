"""Kubernetes: a JobSet on Google Kubernetes Engine, or the same through XPK."""

import shlex
from typing import Any

import yaml

from llm_jax.dist.slices import Slice
from llm_jax.launch.clouds import accelerator_type, machine_type, names
from llm_jax.launch.job import TPU_PACKAGES, Job, heredoc, script

# An image with the Python that the requirements are pinned for.
IMAGE = 'python:3.12'
# Seconds between the notice that a pod must go and its end: time to write a checkpoint.
GRACE = 120


def jobset(job: Job, tpu: Slice, bucket: str, image: str = IMAGE) -> dict[str, Any]:
    """The JobSet (jobset.x-k8s.io/v1alpha2): one Job a slice, one pod a host.

    Args:
      job: what to train.
      tpu: one slice; `job.slices` of them are taken.
      bucket: 'gs://...', where the code lies and the run goes.
      image: container with Python 3.11 or newer and a shell.
    """
    fetch = (
        'import fsspec, sys; sys.stdout.buffer.write('
        f'fsspec.open({f"{bucket}/code/{job.resource}.tar.gz"!r}, "rb").open().read())'
    )
    finished = (
        'import fsspec, json, sys; '
        f'run = json.load(fsspec.open({f"{bucket}/runs/{job.name}/run.json"!r}).open()); '
        'sys.exit(0 if run["status"] == "finished" else 75)'
    )
    command = '\n'.join(
        [
            'set -euo pipefail',
            'mkdir -p /llm_jax && cd /llm_jax',
            'python3 -m pip install -q gcsfs',
            f'python3 -c {shlex.quote(fetch)} | tar --extract --gzip',
            f'export LLM_JAX_PACKAGES={shlex.quote(TPU_PACKAGES)}',
            job.train(bucket),
            # Told that the machine will go, a run saves and ends well, too: only what is finished is done.
            f'python3 -c {shlex.quote(finished)}',
        ]
    )
    chips = {'google.com/tpu': tpu.chips_per_host}
    selector = {
        'cloud.google.com/gke-tpu-accelerator': names(tpu).node,
        'cloud.google.com/gke-tpu-topology': tpu.topology,
    }
    container = {
        'name': 'train',
        'image': image,
        'command': ['bash', '-c', command],
        'ports': [{'containerPort': port, 'protocol': 'TCP'} for port in (8471, 8080)],  # between the hosts
        'resources': {'requests': chips, 'limits': chips},
    }
    pod = {
        'restartPolicy': 'Never',
        'terminationGracePeriodSeconds': GRACE,
        'nodeSelector': selector | ({'cloud.google.com/gke-spot': 'true'} if job.spot else {}),
        'containers': [container],
    }
    if job.spot:
        pod['tolerations'] = [{'key': 'cloud.google.com/gke-spot', 'operator': 'Equal', 'value': 'true',
                               'effect': 'NoSchedule'}]  # fmt: skip
    # A mistake in the experiment (exit code 2) would only fail again: it ends the whole set.
    mistake = {'action': 'FailJob', 'onExitCodes': {'containerName': 'train', 'operator': 'In', 'values': [2]}}
    one_slice = {
        'parallelism': tpu.hosts,
        'completions': tpu.hosts,
        'completionMode': 'Indexed',
        'backoffLimit': 0,
        'podFailurePolicy': {'rules': [mistake]},
        'template': {'spec': pod},
    }
    return {
        'apiVersion': 'jobset.x-k8s.io/v1alpha2',
        'kind': 'JobSet',
        'metadata': {
            'name': job.resource,
            'annotations': {'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'},
        },
        'spec': {
            'failurePolicy': {
                'maxRestarts': job.restarts,
                'rules': [
                    {'name': 'mistake', 'action': 'FailJobSet', 'onJobFailureReasons': ['PodFailurePolicy']},
                ],
            },
            'replicatedJobs': [{'name': 'slice', 'replicas': job.slices, 'template': {'spec': one_slice}}],
        },
    }


class _Block(str):
    """Text of several lines, written as such."""


yaml.SafeDumper.add_representer(
    _Block, lambda dumper, text: dumper.represent_scalar('tag:yaml.org,2002:str', text, style='|')
)


def manifest(job_set: dict[str, Any]) -> str:
    """The JobSet as YAML that reads well."""

    def blocks(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: blocks(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [blocks(inner) for inner in value]
        return _Block(value) if isinstance(value, str) and '\n' in value else value

    return yaml.safe_dump(blocks(job_set), sort_keys=False, width=1000)


def gke_script(job: Job, tpu: Slice, cluster: str, image: str = IMAGE) -> str:
    """The script that makes a node pool of `tpu` in a cluster that there is, and starts the JobSet."""
    # The shell fills the bucket in, so that the manifest needs no editing.
    body = manifest(jobset(job, tpu, '${BUCKET}', image))
    placement = (
        f'--machine-type={machine_type(tpu)} --num-nodes={tpu.hosts}'
        + (f' --tpu-topology={tpu.topology}' if tpu.hosts > 1 else '')
        + (' --spot' if job.spot else '')
    )
    policy = ''
    if tpu.chip.name == '7x' and tpu.hosts > 1:
        placement = placement.replace(f'--tpu-topology={tpu.topology}', '--placement-policy="$NAME-policy"')
        policy = f"""
if ! gcloud compute resource-policies describe "$NAME-policy" --project="$PROJECT" --region="$REGION" >/dev/null; then
  gcloud compute resource-policies create workload-policy "$NAME-policy" --project="$PROJECT" --region="$REGION" \\
    --type=HIGH_THROUGHPUT --accelerator-topology={tpu.topology}
fi"""
    return script(
        f'Trains {job.name} on {job.slices} x {tpu.name} of the Kubernetes cluster {cluster}.',
        job.variables(),
        f'CLUSTER={shlex.quote(cluster)} REGION="${{ZONE%-*}}"',
        'gcloud container clusters get-credentials "$CLUSTER" --project="$PROJECT" --location="$REGION"',
        """
kubectl get crd jobsets.jobset.x-k8s.io >/dev/null || {
  echo 'the cluster has no JobSet controller: install it (https://jobset.sigs.k8s.io), then run this again' >&2
  exit 1
}""",
        policy,
        f"""
# One node pool a slice; those that are there are used.
for i in $(seq 0 {job.slices - 1}); do
  if ! gcloud container node-pools describe "$NAME-$i" --cluster="$CLUSTER" \\
      --project="$PROJECT" --location="$REGION" >/dev/null; then
    gcloud container node-pools create "$NAME-$i" --cluster="$CLUSTER" --project="$PROJECT" --location="$REGION" \\
      --node-locations="$ZONE" {placement}
  fi
done""",
        job.upload(),
        f"""
# Started again, it goes on from the newest checkpoint in the bucket.
kubectl delete jobset "$NAME" --ignore-not-found
kubectl apply --filename=- <<MANIFEST_END
{heredoc(body, 'BUCKET')}MANIFEST_END""",
        """
echo "kubectl get jobset $NAME                                         # how it goes
kubectl logs --follow job/$NAME-slice-0                          # its output
kubectl delete jobset $NAME                                      # ends it; a checkpoint is written first
gcloud container node-pools delete $NAME-0 --cluster=$CLUSTER --location=$REGION   # gives the TPUs back\"""",
    )


def xpk_script(job: Job, tpu: Slice, cluster: str, image: str = IMAGE) -> str:
    """The same through XPK, which builds an image with the code in it."""
    kind = accelerator_type(tpu) or f'tpu7x-{tpu.topology}'
    # One word of the shell, in which $BUCKET is filled in.
    run = heredoc(f'export LLM_JAX_PACKAGES={shlex.quote(TPU_PACKAGES)}; ' + job.train('$BUCKET'), 'BUCKET')
    word = '"' + run.replace('"', r'\"') + '"'
    return script(
        f'Trains {job.name} on {job.slices} x {tpu.name} of the XPK cluster {cluster}.',
        job.variables(),
        f"""
xpk workload create --workload="$NAME" --cluster={shlex.quote(cluster)} --project="$PROJECT" --zone="$ZONE" \\
  --tpu-type={kind} --num-slices={job.slices} --max-restarts={job.restarts} \\
  --termination-grace-period-seconds={GRACE} --base-docker-image={shlex.quote(image)} --script-dir=. \\
  --command={word}""",
    )
