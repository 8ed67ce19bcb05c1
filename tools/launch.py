"""Print, or with --yes run, the script that trains an experiment on TPUs or on a Slurm cluster.

./tools/run launch experiments/pretrain/llama3_8b.py --tpu v5p-128 --spot            # Cloud TPU VMs
./tools/run launch experiments/pretrain/llama3_8b.py --tpu v6e:8x8 --gke my-cluster  # a JobSet on Kubernetes
./tools/run launch experiments/pretrain/llama3_8b.py --tpu v6e:8x8 --xpk my-cluster  # the same through XPK
./tools/run launch experiments/pretrain/llama3_8b.py --slurm --nodes 4               # GPUs
"""

import os
import pathlib
import subprocess
import sys

from llm_jax.config import cli
from llm_jax.config.schema import ConfigError

_ROOT = pathlib.Path(__file__).resolve().parents[1]


def main(argv: list[str]) -> None:
    parser = cli.Parser('launch', __doc__)
    parser.add_argument('experiment', help='the experiment file, e.g. experiments/pretrain/llama3_8b.py')
    parser.add_argument('--tpu', help='a slice, as v5e-16 or v5p:4x4x8')
    parser.add_argument(
        '--slices', type=cli.at_least(1), default=1, help='how many slices; mesh.data must be a multiple'
    )
    parser.add_argument('--project', default='', help='Google Cloud project; default $PROJECT when the script runs')
    parser.add_argument('--zone', default='', help='zone of the TPUs; default $ZONE')
    parser.add_argument('--bucket', default='', help='gs://... for code and runs; default $BUCKET')
    parser.add_argument('--queued', action='store_true', help='wait for capacity in a queue')
    parser.add_argument('--spot', action='store_true', help='capacity that may be taken away, for less money')
    parser.add_argument(
        '--restarts', type=cli.at_least(0), default=10, help='how often it starts again when interrupted'
    )
    parser.add_argument('--gke', metavar='CLUSTER', help='as a JobSet on this Kubernetes cluster')
    parser.add_argument('--xpk', metavar='CLUSTER', help='with XPK on this cluster')
    parser.add_argument('--image', help='container with Python, for --gke and --xpk')
    parser.add_argument(
        '--service_account', default='', help='Kubernetes account of the pods of --gke (Workload Identity)'
    )
    parser.add_argument('--slurm', action='store_true', help='a batch script for GPUs')
    parser.add_argument('--nodes', type=cli.at_least(1), default=1, help='machines of --slurm (1)')
    parser.add_argument('--gpus_per_node', type=cli.at_least(1), default=8, help='of --slurm (8)')
    parser.add_argument('--time', default='24:00:00', help='time limit of one allocation under Slurm')
    parser.add_argument('--partition', default='', help='of --slurm')
    parser.add_argument('--account', default='', help='that --slurm charges')
    parser.add_argument('--packages', default='', help="JAX for --slurm; default $LLM_JAX_PACKAGES, else 'jax[cuda13]'")
    parser.add_argument('--yes', action='store_true', help='run the script instead of printing it')
    known, fields = parser.parse_with_config(argv)
    if bool(known.tpu) == known.slurm:
        raise ConfigError('say where to: --tpu v5e-16 (with --gke or --xpk for Kubernetes), or --slurm')
    if bool(known.gke) + bool(known.xpk) + known.slurm > 1:
        raise ConfigError('--gke, --xpk and --slurm are three ways to the same end: give one of them')
    if known.service_account and not known.gke:
        raise ConfigError('--service_account is an account of Kubernetes: add --gke CLUSTER, or leave it out')
    if known.packages and not known.slurm:
        raise ConfigError('--packages is for --slurm: TPUs have their own')
    config = cli.experiment(known.experiment, fields)
    from llm_jax import launch  # imports JAX: a mistake in the arguments comes first, and at once
    from llm_jax.dist import mesh as mesh_lib
    from llm_jax.dist.fit import check_fit
    from llm_jax.dist.slices import parse_slice

    experiment = _in_repository(known.experiment)
    if not (known.slurm or known.xpk):  # they have the working directory itself
        _check_tracked(experiment)

    job = launch.Job(
        config.name, experiment, tuple(fields), known.project, known.zone, known.bucket,
        known.spot, known.restarts, known.slices,
    )  # fmt: skip
    image = known.image or launch.gke.IMAGE
    if known.slurm:
        cluster = launch.Cluster(
            known.nodes, known.gpus_per_node, known.time, known.partition, known.account, known.packages
        )
        check_fit(config, mesh_lib.axis_sizes(config.mesh, cluster.devices))
        text = launch.slurm_script(job, cluster)
    else:
        tpu = parse_slice(known.tpu)
        sizes = mesh_lib.axis_sizes(config.mesh, known.slices * tpu.devices)
        check_fit(config, sizes)
        mesh_lib.check_slices(sizes, known.slices)
        if known.gke:
            text = launch.gke_script(job, tpu, known.gke, image, known.service_account)
        elif known.xpk:
            text = launch.xpk_script(job, tpu, known.xpk, image)
        else:
            text = launch.tpu_vm_script(job, tpu, queued=known.queued)
    if not known.yes:
        print(text, end='')
        return
    os.chdir(_ROOT)
    if known.slurm:
        sys.exit(subprocess.run(['sbatch'], input=text, text=True, check=False).returncode)
    # In place of this process: the script gets the signals, and has time to give machines back. Not on standard
    # input, which what it calls might read.
    os.execvp('bash', ['bash', '-c', text])


def _in_repository(experiment: str) -> str:
    """The path of an experiment as it is on the hosts, which get the files of the repository."""
    path = pathlib.Path(experiment).resolve()
    if not path.is_relative_to(_ROOT):
        raise ConfigError(f'{experiment} is outside the repository {_ROOT}, whose files the hosts get: move it there')
    return str(path.relative_to(_ROOT))


def _check_tracked(experiment: str) -> None:
    """Raises: ConfigError: git does not know the experiment, or what it has imported, so that no host would get it."""
    listed = subprocess.run(['git', 'ls-files', '-z'], cwd=_ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        raise ConfigError(
            f'the hosts get the files that git knows, and git knows none in {_ROOT}: {listed.stderr.strip()}'
        )
    tracked = set(listed.stdout.split('\0'))
    paths = [getattr(module, '__file__', None) for module in list(sys.modules.values())]
    files = {pathlib.Path(path) for path in paths if path}
    needed = {str(file.relative_to(_ROOT)) for file in files if file.is_relative_to(_ROOT)}
    # Environments are in directories with a dot, such as .venv.
    missing = sorted(name for name in {experiment, *needed} - tracked if not name.startswith('.'))
    if missing:
        raise ConfigError(
            f'git does not know {", ".join(missing)}, so the hosts would not get '
            f'{"it" if len(missing) == 1 else "them"}: git add {" ".join(missing)}'
        )


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
