"""Slurm: one process per GPU, on as many nodes as are asked for."""

import dataclasses
import re
import shlex

from llm_jax.config.schema import ConfigError
from llm_jax.launch.job import Job, at_least
from llm_jax.launch.shell import script

# Seconds before the time limit at which processes are told: time to write a checkpoint.
NOTICE = 300
# Minutes, minutes:seconds, hours:minutes:seconds, or days before hours, hours:minutes or hours:minutes:seconds.
_TIME = re.compile(r'\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}')


@dataclasses.dataclass(frozen=True)
class Cluster:
    """What is asked of Slurm.

    Attributes:
      nodes: machines.
      gpus_per_node: GPUs of each.
      time: limit of one allocation; the job queues again until the training is finished.
      partition, account: empty takes the user's default.
      packages: JAX for the GPUs, as `LLM_JAX_PACKAGES`; empty takes that variable, else 'jax[cuda13]', which
        needs a driver of 580 or newer (for 'jax[cuda12]' 525 is enough).

    Raises:
      ConfigError: no machines, or a time that Slurm does not read.
    """

    nodes: int = 1
    gpus_per_node: int = 8
    time: str = '24:00:00'
    partition: str = ''
    account: str = ''
    packages: str = ''

    def __post_init__(self) -> None:
        at_least('--nodes', self.nodes, 1)
        at_least('--gpus_per_node', self.gpus_per_node, 1)
        if not _TIME.fullmatch(self.time):
            raise ConfigError(f"--time = {self.time!r} is no time of Slurm's: write it like 90, 24:00:00 or 2-12:00:00")

    @property
    def devices(self) -> int:
        return self.nodes * self.gpus_per_node


def slurm_script(job: Job, cluster: Cluster) -> str:
    """The batch script: `sbatch` takes it from a file or from standard input.

    The repository and `runs/` must lie on a file system that all nodes share.
    """
    options = {
        'job-name': job.resource,
        'nodes': cluster.nodes,
        'ntasks-per-node': cluster.gpus_per_node,
        'gpus-per-node': cluster.gpus_per_node,
        'exclusive': None,
        'mem': 0,  # all of a node's: `exclusive` alone leaves the default of the partition
        'time': cluster.time,
        'partition': cluster.partition,
        'account': cluster.account,
        'requeue': None,
        'signal': f'TERM@{NOTICE}',
        'open-mode': 'append',
        'output': f'{job.resource}-%j.log',
    }
    lines = [f'#SBATCH --{name}' + ('' if value is None else f'={value}')
             for name, value in options.items() if value != '']  # fmt: skip
    packages = shlex.quote(cluster.packages) if cluster.packages else '"${LLM_JAX_PACKAGES:-jax[cuda13]}"'
    return script(
        f'Trains {job.name} on {cluster.nodes} nodes of {cluster.gpus_per_node} GPUs. Submit it from the repository.',
        f"""
export LLM_JAX_PACKAGES={packages}
# The environment is made once, before all processes want it.
./tools/run show {shlex.quote(job.experiment)} >/dev/null

# Exit code 2 is a mistake in the experiment: it would only fail again. srun gives back the highest code of all
# processes, and those that it kills then have a higher one: so the first that ends with 2 leaves a file. Nobody looks
# for it before, as file systems of a cluster remember for a while what was not there.
export MISTAKE="$PWD/{job.resource}-$SLURM_JOB_ID-${{SLURM_RESTART_COUNT:-0}}.mistake"
# Signals come to all processes of a task, this shell too: `:` has it wait for the training, which saves.
TASK='trap : TERM; "$@"; code=$?; if [[ $code == 2 ]]; then touch "$MISTAKE"; fi; exit "$code"'""",
        f"""
# One process per GPU; each sees all GPUs of its node and takes its own. When one dies, all end.
status=0
srun --kill-on-bad-exit=1 --gpus-per-node={cluster.gpus_per_node} bash -c "$TASK" task \\
  {job.train()} || status=$?
if [[ -e $MISTAKE ]]; then
  rm -f "$MISTAKE"
  exit 2
fi
# Told to stop before the end, it has saved: the same job queues again and goes on from there.
if grep -qs '"status": "finished"' runs/{shlex.quote(job.name)}/run.json; then exit "$status"; fi
if (( ${{SLURM_RESTART_COUNT:-0}} >= {job.restarts} )); then
  echo "gave up after {job.restarts} restarts: the training is not finished" >&2
  exit $(( status ? status : 1 ))
fi
scontrol requeue "$SLURM_JOB_ID" || {{
  echo "the training is not finished, and Slurm does not queue the job again (why is above): submit it again" >&2
  exit $(( status ? status : 1 ))
}}
exit "$status"
""",
        options=lines,
    )
