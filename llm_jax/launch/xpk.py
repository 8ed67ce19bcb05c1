"""XPK: the same pods on Kubernetes, from an image with the code in it."""

import shlex

from llm_jax.config.schema import ConfigError
from llm_jax.dist.slices import Slice
from llm_jax.launch.clouds import xpk_type
from llm_jax.launch.gke import GRACE, IMAGE
from llm_jax.launch.job import TPU_PACKAGES, Job
from llm_jax.launch.shell import for_kubernetes, run_to_the_end, script

# Without them XPK starts again only what a signal ended: a crash of Python, and "try again" (75) are more.
_RESTART_ON = '1,75'


def xpk_script(job: Job, tpu: Slice, cluster: str, image: str = IMAGE) -> str:
    """The script that has XPK start `job` in a cluster that XPK has made.

    Raises:
      ConfigError: an override of several lines, which XPK's manifest has no place for.
    """
    if any('\n' in override for override in job.overrides):
        raise ConfigError('--xpk takes no overrides of several lines: write them into the experiment file')
    python = '"${LLM_JAX_PYTHON:-.venv/bin/python}"'
    # One line: XPK writes it into a manifest as it is.
    command = '; '.join(
        [
            f'export LLM_JAX_PACKAGES={shlex.quote(TPU_PACKAGES)}',
            *run_to_the_end(job.train('$BUCKET'), job.finished(python)),
        ]
    )
    common = f'--workload="$NAME" --cluster={shlex.quote(cluster)} --project="$PROJECT" --zone="$ZONE"'
    # Of a cluster without autoprovisioning, its node pools decide what capacity is.
    spot = ' --spot' if job.spot else ''
    return script(
        f'Trains {job.name} on {job.slices} x {tpu.name} of the XPK cluster {cluster}.\n'
        'The cluster and its node pools were there before, and cost until they are deleted with XPK.',
        job.variables(),
        job.enter_repository(),
        f"""
COMMAND="export BUCKET=$(printf %q "$BUCKET"); "{shlex.quote(for_kubernetes(command))}
xpk workload create {common} \\
  --tpu-type={xpk_type(tpu)} --num-slices={job.slices}{spot} \\
  --max-restarts={job.restarts} --restart-on-exit-codes={_RESTART_ON} --termination-grace-period-seconds={GRACE} \\
  --base-docker-image={shlex.quote(image)} --script-dir=. --command="$COMMAND" </dev/null || {{
  echo "XPK did not start $NAME (why is above). One of this name that is there already is deleted with:" \\
    "xpk workload delete --workload=$NAME --cluster={cluster} --project=$PROJECT --zone=$ZONE" >&2
  exit 1
}}""",
        f"""
echo "xpk workload list --cluster={cluster} --project=$PROJECT --zone=$ZONE                      # how it goes
xpk workload delete --workload=$NAME --cluster={cluster} --project=$PROJECT --zone=$ZONE   # ends it
xpk cluster delete --cluster={cluster} --project=$PROJECT --zone=$ZONE   # the cluster costs until then\"""",
    )
