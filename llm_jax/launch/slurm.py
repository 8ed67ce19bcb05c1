"""Slurm: one process per GPU, on as many nodes as are asked for."""

import dataclasses
import re
import shlex

from llm_jax.config.schema import ConfigError
from llm_jax.launch.job import Job, at_least, script

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
      packages: what JAX needs beside requirements.txt.

    Raises:
      ConfigError: no machines, or a time that Slurm does not read.
    """

    nodes: int = 1
    gpus_per_node: int = 8
    time: str = '24:00:00'
    partition: str = ''
    account: str = ''
    packages: str = 'jax[cuda13]'

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
    finished = f'grep -q \'"status": "finished"\' runs/{job.name}/run.json'
    return script(
        f'Trains {job.name} on {cluster.nodes} nodes of {cluster.gpus_per_node} GPUs. Submit it from the repository.',
        f"""
export LLM_JAX_PACKAGES={shlex.quote(cluster.packages)}
# The environment is made once, before all processes want it.
./tools/run show {shlex.quote(job.experiment)} >/dev/null""",
        f"""
# One process per GPU; each sees all GPUs of its node and takes its own. When one dies, all end.
status=0
srun --kill-on-bad-exit=1 --gpus-per-node={cluster.gpus_per_node} {job.train()} || status=$?
# Exit code 2 is a mistake in the experiment: it would only fail again.
if [[ $status == 2 ]]; then exit 2; fi
# Told to stop before the end, it has saved: the same job queues again and goes on from there.
if ! {finished}; then
  if (( ${{SLURM_RESTART_COUNT:-0}} < {job.restarts} )); then scontrol requeue "$SLURM_JOB_ID"; fi
fi
exit "$status"
""",
        options=lines,
    )
