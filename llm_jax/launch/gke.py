"""Kubernetes: a JobSet on Google Kubernetes Engine."""

import shlex
from typing import Any

import yaml

from llm_jax.config.schema import ConfigError
from llm_jax.dist.slices import Slice
from llm_jax.launch.clouds import machine_type, names, resource_of
from llm_jax.launch.job import LONGEST_NAME, TPU_PACKAGES, Job
from llm_jax.launch.shell import AGAIN, for_kubernetes, heredoc, run_to_the_end, script

# An image with the Python that the requirements are pinned for.
IMAGE = 'python:3.12'
# Seconds between the notice that a pod must go and its end: time to write a checkpoint.
GRACE = 120
# KiB of memory that a process may lock: TPUs are mapped into it.
_LOCKED_MEMORY = 68719476736
# Those of a node pool cannot be changed later, and the default ones may only read a bucket.
_SCOPES = 'storage-full,gke-default,https://www.googleapis.com/auth/cloud-platform'


def jobset(job: Job, tpu: Slice, bucket: str, image: str = IMAGE, service_account: str = '') -> dict[str, Any]:
    """The JobSet (jobset.x-k8s.io/v1alpha2): one Job a slice, one pod a host.

    Args:
      job: what to train.
      tpu: one slice; `job.slices` of them are taken.
      bucket: 'gs://...', where the code lies and the run goes.
      image: container with Python 3.11 or newer and a shell.
      service_account: of Kubernetes, which Workload Identity grants the bucket; empty takes the node's account.
    """
    command = '\n'.join(
        [
            'set -euo pipefail',
            "trap 'exit 143' TERM",
            AGAIN,
            # tar's exit code 2 would be taken for a mistake in the experiment; 75 is "try again".
            f'fetch() {{ {_python(_FETCH)} | tar --extract --gzip; }}',
            'again python3 -m pip install -q gcsfs && again fetch || exit 75',
            'if [[ ${JOB_COMPLETION_INDEX:-0} == 0 ]]; then',
            f'  {_python(_PROBE)} || {{ echo "$NO_ACCESS" >&2; exit 75; }}',
            'fi',
            f'ulimit -l {_LOCKED_MEMORY} || echo "locked memory stays limited to $(ulimit -l) KiB" >&2',
            f'export LLM_JAX_PACKAGES={shlex.quote(TPU_PACKAGES)}',
            *run_to_the_end(job.train('$BUCKET'), job.finished('python3')),
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
        'command': ['bash', '-c', for_kubernetes(command)],
        'workingDir': '/llm_jax',
        'env': [
            {'name': 'BUCKET', 'value': bucket},
            {'name': 'CODE', 'value': f'{bucket}/code/{job.resource}.tar.gz'},
            {
                'name': 'NO_ACCESS',
                'value': f'this pod cannot write to {bucket} (why is above): its account needs '
                'roles/storage.objectAdmin on the bucket, and its node pool a scope that may write',
            },
        ],
        # Without it a container finds no /dev/vfio, and may lock no memory.
        'securityContext': {'privileged': True},
        'ports': [{'containerPort': port, 'protocol': 'TCP'} for port in (8471, 8080)],  # between the hosts
        'resources': {'requests': chips, 'limits': chips},
    }
    pod = {
        'restartPolicy': 'Never',
        'terminationGracePeriodSeconds': GRACE,
        'nodeSelector': selector | ({'cloud.google.com/gke-spot': 'true'} if job.spot else {}),
        'containers': [container],
    }
    if service_account:
        pod['serviceAccountName'] = service_account
    elif job.slices > 1:
        # The network between slices is faster without Kubernetes' own; Workload Identity does not work on the host's.
        pod |= {'hostNetwork': True, 'dnsPolicy': 'ClusterFirstWithHostNet'}
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


def gke_script(job: Job, tpu: Slice, cluster: str, image: str = IMAGE, service_account: str = '') -> str:
    """The script that makes a node pool of `tpu` in a cluster that there is, and starts the JobSet.

    Raises:
      ConfigError: several slices of one host each, which Kubernetes Engine does not join.
    """
    if job.slices > 1 and tpu.hosts == 1:
        raise ConfigError(
            f'--slices {job.slices} of {tpu.name}: Kubernetes Engine joins only slices of several hosts; '
            'take larger slices, or leave out --gke'
        )
    # The shell fills the bucket in, so that the manifest needs no editing.
    body = manifest(jobset(job, tpu, '${BUCKET}', image, service_account))
    placement = [f'--machine-type={machine_type(tpu)}', f'--num-nodes={tpu.hosts}', f'--scopes={_SCOPES}']
    has_policy = tpu.chip.name == '7x' and tpu.hosts > 1
    if has_policy:
        placement.append('--placement-policy="$POOL-policy"')
    elif tpu.hosts > 1:
        placement.append(f'--tpu-topology={tpu.topology}')
    if job.spot:
        placement.append('--spot')
    last = job.slices - 1
    pool = resource_of(job, tpu, longest=LONGEST_NAME - len(f'-{last}'))
    return script(
        f'Trains {job.name} on {job.slices} x {tpu.name} of the Kubernetes cluster {cluster}.\n'
        f'Node pools cost until they are deleted, also when the training has ended: the last lines say how.',
        job.variables(),
        f"""
CLUSTER={shlex.quote(cluster)} POOL={pool}
NODE_CONFIG="${{NODE_CONFIG:-}}"  # a file for --system-config-from-file
POLL="${{POLL:-10}}"  # seconds before a call that failed is made again""",
        AGAIN,
        _HELPERS,
        _CHECKS,
        job.upload(),
        _policy(tpu) if has_policy else '',
        _pools(last, placement),
        f"""
# Started again, it goes on from the newest checkpoint in the bucket. Pods that there are save one, and end first.
again kubectl delete jobset "$NAME" --ignore-not-found --cascade=foreground </dev/null
kubectl apply --filename=- <<MANIFEST_END
{heredoc(body, 'BUCKET')}MANIFEST_END""",
        f"""
echo "kubectl get jobset $NAME             # how it goes
kubectl logs --follow --prefix --max-log-requests={job.slices * tpu.hosts} \\\\
  --selector=jobset.sigs.k8s.io/jobset-name=$NAME
kubectl delete jobset $NAME          # ends it; a checkpoint is written first"
"""
        + (
            f"""
echo "A spot node gives its pods 15 s to save, whatever the pod asks for, unless NODE_CONFIG named a file with longer
ones (from 1.35.0-gke.1171000; up to {GRACE} s): what a preemption loses is the time since the last checkpoint."
"""
            if job.spot
            else ''
        ),
    )


# 'NAME STATUS' of each pool. $LOCATION is known when it is called.
_HELPERS = """
pools() {
  gcloud container node-pools list --cluster="$CLUSTER" --project="$PROJECT" --location="$LOCATION" \\
    --format='value(name,status)' </dev/null
}
policies() {
  gcloud compute resource-policies list --project="$PROJECT" --format='value(name,region.basename())' </dev/null
}

# Says at every end, good or bad, what is left and costs, and how to delete it.
left_over() {
  local status=$? names
  set +e
  if ! names="$(again pools)"; then
    echo "gcloud does not say which node pools there are. List them, and delete those named $POOL-...:" \\
      "gcloud container node-pools list --cluster=$CLUSTER --project=$PROJECT --location=$LOCATION" >&2
    exit "$status"
  fi
  names="$(awk -v pool="$POOL" '$1 ~ "^" pool "-[0-9]+$" {print $1}' <<<"$names")"
  if [[ -n $names ]]; then
    echo "These node pools cost until they are deleted, after the JobSet:"
    for name in $names; do
      echo "gcloud container node-pools delete $name --cluster=$CLUSTER --project=$PROJECT --location=$LOCATION --quiet"
    done
  fi
  if [[ -n $POLICY ]] && policies | grep -q "^${POLICY}[[:space:]]"; then
    echo "gcloud compute resource-policies delete $POLICY --project=$PROJECT --region=${ZONE%-*} --quiet"
  fi
  exit "$status"
}"""

_CHECKS = """
# A cluster is in a region or in a zone.
POLICY=''
clusters="$(again gcloud container clusters list --project="$PROJECT" --format='value(name,location)' </dev/null)"
LOCATION="$(awk -v name="$CLUSTER" -v zone="$ZONE" \\
  '$1 == name && ($2 == zone || index(zone, $2 "-") == 1) {print $2}' <<<"$clusters")"
if [[ -z $LOCATION ]]; then
  echo "there is no cluster $CLUSTER in $ZONE or its region; the project $PROJECT has:" "${clusters:-none}" >&2
  exit 2
fi
trap left_over EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP
again gcloud container clusters get-credentials "$CLUSTER" --project="$PROJECT" --location="$LOCATION" </dev/null
schema="$(kubectl get crd jobsets.jobset.x-k8s.io --ignore-not-found --output=json </dev/null)" || {
  echo "kubectl cannot ask the cluster $CLUSTER (why is above); it needs the plugin gke-gcloud-auth-plugin:" \\
    "gcloud components install gke-gcloud-auth-plugin" >&2
  exit 1
}
if [[ $schema != *onJobFailureReasons* ]]; then
  echo 'the cluster has no JobSet controller, or one from before onJobFailureReasons: install the newest' \\
    '(https://jobset.sigs.k8s.io), then run this again' >&2
  exit 1
fi"""


def _policy(tpu: Slice) -> str:
    """Shell: the placement of a slice of Ironwood."""
    return f"""
POLICY="$POOL-policy"
there="$(again policies)"
if ! grep -q "^${{POLICY}}[[:space:]]*${{ZONE%-*}}$" <<<"$there"; then
  gcloud compute resource-policies create workload-policy "$POLICY" --project="$PROJECT" --region="${{ZONE%-*}}" \
    --type=HIGH_THROUGHPUT --accelerator-topology={tpu.topology} </dev/null
fi"""


def _pools(last: int, placement: list[str]) -> str:
    """Shell: one node pool a slice, of those that are not there yet."""
    return f"""
# One node pool a slice; those that are there are used: their names say what they are made of.
there="$(again pools)"
for i in $(seq 0 {last}); do
  case "$(awk -v pool="$POOL-$i" '$1 == pool {{print $2}}' <<<"$there")" in
    '')
      gcloud container node-pools create "$POOL-$i" --cluster="$CLUSTER" --project="$PROJECT" --location="$LOCATION" \
        --node-locations="$ZONE" ${{NODE_CONFIG:+--system-config-from-file="$NODE_CONFIG"}} \
        {(' ' + chr(92) + chr(10) + '        ').join(placement)} </dev/null
      ;;
    PROVISIONING | RUNNING | RECONCILING | RUNNING_WITH_ERROR) ;;
    *)
      echo "the node pool $POOL-$i is being deleted, or could not be made: delete it as below, then run this again" >&2
      exit 1
      ;;
  esac
done"""


def _python(code: str) -> str:
    """Shell: Python of the container runs `code`."""
    return f'python3 -c {shlex.quote(code)}'


_FETCH = 'import fsspec, os, sys; sys.stdout.buffer.write(fsspec.open(os.environ["CODE"], "rb").open().read())'
# The first thing that a training would do in vain, before it takes the TPU: writing.
_PROBE = 'import fsspec, os\nwith fsspec.open(os.environ["CODE"] + ".writable", "w") as file:\n    file.write("ok")'
