"""Cloud TPU VMs: a slice is created, used and given back by one script."""

from llm_jax.config.schema import ConfigError
from llm_jax.dist.slices import Slice
from llm_jax.launch.clouds import accelerator_type, names
from llm_jax.launch.job import TPU_PACKAGES, Job, heredoc, script


def tpu_vm_script(job: Job, tpu: Slice, *, queued: bool = False) -> str:
    """The script that trains `job` on virtual machines of a TPU slice.

    Args:
      job: what to train.
      tpu: one slice.
      queued: whether to wait for capacity in a queue (queued resources); several slices
        and spot capacity always do.

    Raises:
      ConfigError: this generation has no virtual machines of its own.
    """
    cloud, kind_and_size = names(tpu), accelerator_type(tpu)
    if not cloud.accelerator:
        raise ConfigError(f'--tpu {tpu.name}: TPU {tpu.chip.name} is to be had on Kubernetes only; add --gke CLUSTER')
    queued = queued or job.spot or job.slices > 1
    kind = 'queued-resources' if queued else 'tpu-vm'
    shape = (
        f'--accelerator-type={kind_and_size}'
        if kind_and_size
        else f'--type={cloud.accelerator} --topology={tpu.topology}'
    )
    options = [shape, f'--{"runtime-version" if queued else "version"}={cloud.runtime}']
    if queued:
        options.append(f'--node-count={job.slices} --node-prefix="$NAME"' if job.slices > 1 else '--node-id="$NAME"')
    if job.spot:
        options.append('--spot')
    every = '--node=all --worker=all' if queued else '--worker=all'
    hosts = f'{job.slices} x {tpu.name}, {job.slices * tpu.hosts} hosts, {job.slices * tpu.chips} chips'
    return script(
        f'Trains {job.name} on {hosts}. Keep it running (tmux helps): when it ends, the TPUs are given back.',
        job.variables(),
        f"""
tpu() {{ gcloud compute tpus {kind} "$@" --project="$PROJECT" --zone="$ZONE"; }}
state() {{ tpu list --filter="name ~ /$NAME\\$" --format='value({'state.state' if queued else 'state'})'; }}
give_back() {{ if [[ -n $(state) ]]; then tpu delete "$NAME" --quiet{' --force' if queued else ''}; fi; }}""",
        job.upload(),
        f"""
# What every host does. The virtual machines come with an older Python.
read -r -d '' HOST <<HOST_END || true
set -euo pipefail
rm -rf ~/llm_jax/llm_jax ~/llm_jax/tools && mkdir -p ~/llm_jax && cd ~/llm_jax
gcloud storage cat "$BUCKET/code/$NAME.tar.gz" | tar --extract --gzip
command -v python3.11 >/dev/null || {{
  sudo apt-get -o DPkg::Lock::Timeout=600 update -qq
  sudo apt-get -o DPkg::Lock::Timeout=600 install -y -qq python3.11 python3.11-venv
}}
export LLM_JAX_PACKAGES='{TPU_PACKAGES}'
{heredoc(job.train('$BUCKET'), 'BUCKET')}
HOST_END""",
        _attempts(job, options, every, queued),
    )


def _attempts(job: Job, options: list[str], every: str, queued: bool) -> str:
    create = 'tpu create "$NAME" \\\n      ' + ' \\\n      '.join(options)
    wait = """
    until [[ $(state) == ACTIVE ]]; do
      case $(state) in FAILED | SUSPENDING | SUSPENDED | '') give_back; sleep 60; continue 2 ;; esac
      sleep 30
    done"""
    gone = '!= ACTIVE' if queued else '!= READY'
    return f"""
# A training that was interrupted goes on from its newest checkpoint in the bucket.
trap give_back EXIT
for attempt in $(seq 0 {job.restarts}); do
  echo "attempt $attempt of $NAME" >&2
  if [[ -z $(state) ]]; then
    {create}{wait if queued else ''}
  fi
  status=0
  tpu ssh "$NAME" {every} --command="$HOST" || status=$?
  # Told that the machine will go, a run saves and ends well, too: only what is finished is done.
  if [[ $status == 0 && $(gcloud storage cat "$BUCKET/runs/{job.name}/run.json") == *'"status": "finished"'* ]]; then
    exit 0
  fi
  # Exit code 2 is a mistake in the experiment: it would only fail again.
  if [[ $status == 2 ]]; then exit 2; fi
  if [[ $(state) {gone} ]]; then give_back; fi
done
echo "gave up after {job.restarts} restarts" >&2
exit 1"""
