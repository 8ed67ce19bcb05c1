"""The shortest time that a step can take, and what bounds it.

The roofline (Williams et al. 2009) of each operation: it takes as long as its arithmetic
or its memory traffic, whichever is longer, at the peak rates. Operations follow each
other; prefetches overlap with them. So do collectives that are fused with computation, and
those that are started ahead, as far as what lies between takes (`plan.schedule`). The
others add to it. A real step takes longer; docs/plan.md says by how much.
"""

import collections
import dataclasses

from llm_jax.plan.cases import Case
from llm_jax.plan.cost import Collective, Cost
from llm_jax.plan.network import Network


@dataclasses.dataclass(frozen=True)
class Traffic:
    """All collectives of one kind over the same mesh axes.

    Attributes:
      kind: 'all-gather', ...
      axes: mesh axes, '' if unknown.
      bytes: moved as whole arrays in a step, on one device.
      times: runs in a step.
      ici: seconds over ICI or NVLink.
      dcn: seconds over the network between slices or machines.
      exposed: seconds of these that no other work can hide.
    """

    kind: str
    axes: tuple[str, ...]
    bytes: float
    times: int
    ici: float
    dcn: float
    exposed: float


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of one step, by what is busy.

    Attributes:
      compute: all matrix products at the peak rate.
      hbm: all memory traffic at the peak rate.
      serial: the operations one after the other, each bound by arithmetic or memory.
      ici: all collectives within a slice or machine.
      dcn: all collectives between them.
      host: all that goes to the host's memory or comes from it, at the rate of one direction of PCIe.
      exposed: of the collectives, what nothing can hide.
      bubble: while stages of a pipeline wait.
      traffic: the collectives, the longest first.
    """

    compute: float
    hbm: float
    serial: float
    ici: float
    dcn: float
    host: float
    exposed: float
    bubble: float
    traffic: tuple[Traffic, ...]

    @property
    def step(self) -> float:
        return max(self._busy, self.ici, self.dcn, self.host) + self.bubble

    @property
    def _busy(self) -> float:
        return max(self.serial, self.hbm) + self.exposed

    @property
    def bound(self) -> str:
        """Name of the resource that bounds the step."""
        links = {'ICI': self.ici, 'DCN': self.dcn, 'PCIe': self.host}
        longest = max(links, key=links.get)
        if links[longest] > self._busy:
            return longest
        # Of the time in which nothing else is waited for, the larger part.
        waits = {'compute': self.compute, 'HBM': max(self.serial, self.hbm) - self.compute, 'ICI': self.exposed}
        return max(waits, key=waits.get)


def roofline(case: Case, cost: Cost, *, bubble: float = 0.0) -> Roofline:
    """The roofline of a step on the case's machine.

    Args:
      case: with a machine.
      cost: of one device.
      bubble: share of the compute time that stages wait in addition.
    """
    chip = case.machine.chip
    flop_rate, byte_rate = rates(case)
    traffic = sorted(add_up(cost.collectives, case.network, cost.waits), key=lambda t: -(t.ici + t.dcn))
    return Roofline(
        compute=cost.flops / flop_rate,
        hbm=cost.hbm_bytes / byte_rate,
        serial=cost.seconds(flop_rate, byte_rate),
        ici=sum(t.ici for t in traffic),
        dcn=sum(t.dcn for t in traffic),
        host=cost.host_bytes * chip.devices / chip.host_rate,
        exposed=sum(t.exposed for t in traffic),
        bubble=bubble * cost.flops / flop_rate,
        traffic=tuple(traffic),
    )


def rates(case: Case) -> tuple[float, float]:
    """FLOPs and bytes of main memory a second, at the peak, of one device of the case's machine."""
    chip = case.machine.chip
    return chip.rate(case.config.model.dtype), chip.hbm_rate / chip.devices


def add_up(collectives: list[Collective], network: Network, waits: dict[str, float]) -> list[Traffic]:
    """The collectives by kind and mesh axes; `waits` as in a `Cost`."""
    total: dict = collections.defaultdict(lambda: [0.0, 0, 0.0, 0.0, 0.0])
    for one in collectives:
        ici, dcn = network.seconds(one)
        sums = total[one.kind, network.axes(one.group)]
        for i, value in enumerate(
            (one.bytes * one.times, one.times, ici * one.times, dcn * one.times,
             (waits.get(one.name, 0.0) if one.overlapped else ici + dcn) * one.times)
        ):  # fmt: skip
            sums[i] += value
    return [Traffic(kind, axes, *sums) for (kind, axes), sums in total.items()]
