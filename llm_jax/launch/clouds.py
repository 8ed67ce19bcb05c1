"""What Google Cloud and Kubernetes call the generations of TPUs; from their pages on runtimes and on TPUs in GKE."""

import dataclasses

from llm_jax.dist.slices import Slice
from llm_jax.launch.job import LONGEST_NAME, Job, resource_name


@dataclasses.dataclass(frozen=True)
class Names:
    """Of one generation.

    Attributes:
      accelerator: prefix of its accelerator types; empty where there are no Cloud TPU VMs of it.
      runtime: software version of its virtual machines.
      node: what Kubernetes nodes are labelled with.
      machine: machine type of a Kubernetes node, without its number of chips.
      xpk: prefix of its types in XPK.
    """

    accelerator: str
    runtime: str
    node: str
    machine: str
    xpk: str


_NAMES = {
    'v4': Names('v4', 'tpu-ubuntu2204-base', 'tpu-v4-podslice', 'ct4p-hightpu', 'v4'),
    'v5e': Names('v5litepod', 'v2-alpha-tpuv5-lite', 'tpu-v5-lite-podslice', 'ct5lp-hightpu', 'v5litepod'),
    'v5p': Names('v5p', 'v2-alpha-tpuv5', 'tpu-v5p-slice', 'ct5p-hightpu', 'v5p'),
    'v6e': Names('v6e', 'v2-alpha-tpuv6e', 'tpu-v6e-slice', 'ct6e-standard', 'v6e'),
    '7x': Names('', '', 'tpu7x', 'tpu7x-standard', 'tpu7x'),
}


def names(tpu: Slice) -> Names:
    return _NAMES[tpu.chip.name]


def resource_of(job: Job, tpu: Slice, *more: str, longest: int = LONGEST_NAME) -> str:
    """The name of TPUs that are made for a job: another shape or kind of capacity has another."""
    parts = (job.name, tpu.chip.name, tpu.topology, 'spot' if job.spot else '', *more)
    return resource_name('-'.join(part for part in parts if part), longest)


def accelerator_type(tpu: Slice) -> str | None:
    """'v5p-256'; None where there is none, or where it would mean another topology of as many chips."""
    prefix = names(tpu).accelerator
    return f'{prefix}-{tpu.size}' if prefix and tpu.size else None


def xpk_type(tpu: Slice) -> str:
    """'v5p-256', or 'v5p-4x4x48' where the size would mean another topology, or (7x) where sizes have no name here."""
    return accelerator_type(tpu) or f'{names(tpu).xpk}-{tpu.topology}'


def machine_type(tpu: Slice) -> str:
    """Of a Kubernetes node."""
    return f'{names(tpu).machine}-{tpu.chips_per_host}t'
