"""What Google Cloud and Kubernetes call the generations of TPUs; from their pages on runtimes and on TPUs in GKE."""

import dataclasses

from llm_jax.dist.slices import Slice


@dataclasses.dataclass(frozen=True)
class Names:
    """Of one generation.

    Attributes:
      accelerator: prefix of its accelerator types; empty where only Kubernetes has it.
      runtime: software version of its virtual machines.
      node: what Kubernetes nodes are labelled with.
      machine: machine type of a Kubernetes node, without its number of chips.
    """

    accelerator: str
    runtime: str
    node: str
    machine: str


_NAMES = {
    'v4': Names('v4', 'tpu-ubuntu2204-base', 'tpu-v4-podslice', 'ct4p-hightpu'),
    'v5e': Names('v5litepod', 'v2-alpha-tpuv5-lite', 'tpu-v5-lite-podslice', 'ct5lp-hightpu'),
    'v5p': Names('v5p', 'v2-alpha-tpuv5', 'tpu-v5p-slice', 'ct5p-hightpu'),
    'v6e': Names('v6e', 'v2-alpha-tpuv6e', 'tpu-v6e-slice', 'ct6e-standard'),
    '7x': Names('', '', 'tpu7x', 'tpu7x-standard'),
}


def names(tpu: Slice) -> Names:
    return _NAMES[tpu.chip.name]


def accelerator_type(tpu: Slice) -> str | None:
    """'v5p-256'; None where there is none, or where it would mean another topology of as many chips."""
    prefix = names(tpu).accelerator
    return f'{prefix}-{tpu.size}' if prefix and tpu.size else None


def machine_type(tpu: Slice) -> str:
    """Of a Kubernetes node."""
    return f'{names(tpu).machine}-{tpu.chips_per_host}t'
