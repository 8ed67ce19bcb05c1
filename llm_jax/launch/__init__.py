"""From an experiment to the script that runs it on a TPU slice, on Kubernetes or under Slurm."""

from llm_jax.launch.gke import gke_script, jobset
from llm_jax.launch.job import Job
from llm_jax.launch.slurm import Cluster, slurm_script
from llm_jax.launch.tpu_vm import tpu_vm_script
from llm_jax.launch.xpk import xpk_script

__all__ = [
    'Cluster',
    'Job',
    'gke_script',
    'jobset',
    'slurm_script',
    'tpu_vm_script',
    'xpk_script',
]
