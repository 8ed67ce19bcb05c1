"""The shortest time that a step can take, and what bounds it.

The roofline (Williams et al. 2009): matrix units, memory and links work at their peak
and at the same time, and what may overlap does. Collectives that are not started ahead
of their use add to it. A real step takes longer; by how much stands in docs/plan.md.
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
      compute: matrix products at the peak rate.
      hbm: memory traffic at the peak rate.
      ici: all collectives within a slice or machine.
      dcn: all collectives between them.
      exposed: of the collectives, what nothing can hide.
      bubble: while stages of a pipeline wait.
      traffic: the collectives, the longest first.
    """

    compute: float
    hbm: float
    ici: float
    dcn: float
    exposed: float
    bubble: float
    traffic: tuple[Traffic, ...]

    @property
    def step(self) -> float:
        return max(self._busy, self.ici, self.dcn) + self.bubble

    @property
    def _busy(self) -> float:
        return max(self.compute, self.hbm) + self.exposed

    @property
    def bound(self) -> str:
        """What would have to be faster for the step to be shorter."""
        longest = max(self.ici, self.dcn)
        if longest > self._busy:
            return 'ICI' if self.ici >= self.dcn else 'DCN'
        return 'compute' if self.compute >= self.hbm else 'HBM'


def roofline(case: Case, cost: Cost, *, bubble: float = 0.0) -> Roofline:
    """The roofline of a step on the case's machine.

    Args:
      case: with a machine.
      cost: of one device.
      bubble: share of the compute time that stages wait in addition.
    """
    chip = case.machine.chip
    compute = cost.flops / chip.rate(case.config.model.dtype)
    hbm = cost.hbm_bytes * chip.devices / chip.hbm_rate
    traffic = sorted(add_up(cost.collectives, case.network), key=lambda t: -(t.ici + t.dcn))
    return Roofline(
        compute, hbm, sum(t.ici for t in traffic), sum(t.dcn for t in traffic), sum(t.exposed for t in traffic),
        bubble * compute, tuple(traffic),
    )  # fmt: skip


def add_up(collectives: list[Collective], network: Network) -> list[Traffic]:
    """The collectives by kind and mesh axes."""
    total: dict = collections.defaultdict(lambda: [0.0, 0, 0.0, 0.0, 0.0])
    for one in collectives:
        ici, dcn = network.seconds(one)
        sums = total[one.kind, network.axes(one.group)]
        for i, value in enumerate(
            (one.bytes * one.times, one.times, ici * one.times, dcn * one.times,
             0.0 if one.overlapped else (ici + dcn) * one.times)
        ):  # fmt: skip
            sums[i] += value
    return [Traffic(kind, axes, *sums) for (kind, axes), sums in total.items()]
