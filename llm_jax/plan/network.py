"""Time of collectives over the links of a TPU slice (ICI), NVLink, and the network between slices (DCN).

Bandwidth-bound ring algorithms, as in "How to Scale Your Model" (Austin et al. 2025,
chapter 3): latencies are left out, which matters for arrays of less than a megabyte.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from llm_jax.plan.cost import Collective
from llm_jax.plan.topology import Machine


class Rate(NamedTuple):
    """Bandwidth of a device in a group: `slow` across slices or machines (0: none), `fast` within."""

    fast: float  # bytes per second, both directions together
    slow: float
    inner: int  # devices of the group in one slice or machine
    outer: int  # slices or machines


@dataclasses.dataclass(frozen=True)
class Network:
    """The network as a mesh lies on it.

    Attributes:
      machine: whose links.
      places: int[devices, 1 + dimensions], from `topology.coordinates`.
      mesh: mesh axis -> size.
    """

    machine: Machine
    places: np.ndarray
    mesh: dict[str, int]

    def axes(self, group: tuple[int, ...]) -> tuple[str, ...]:
        """The mesh axes over which the devices of a group differ."""
        where = np.stack(np.unravel_index(np.array(group), tuple(self.mesh.values())))
        varies = (where != where[:, :1]).any(axis=1)
        return tuple(axis for axis, varied in zip(self.mesh, varies, strict=True) if varied)

    def group(self, *axes: str) -> tuple[int, ...]:
        """The devices of the first group along some mesh axes."""
        index = np.arange(np.prod(list(self.mesh.values()))).reshape(tuple(self.mesh.values()))
        return tuple(index[tuple(slice(None) if axis in axes else 0 for axis in self.mesh)].reshape(-1).tolist())

    def rate(self, group: tuple[int, ...]) -> Rate:
        """Bandwidth that the links give each device of a group."""
        places, chip = self.places[list(group)], self.machine.chip
        outer = len(np.unique(places[:, 0]))
        inner = len(group) // outer
        slow = chip.dcn_rate / chip.devices if outer > 1 else 0.0
        if not chip.is_tpu:
            return Rate(2 * chip.link_rate, slow, inner, outer)
        here = places[places[:, 0] == places[0, 0]][:, 1:]
        links = 0.0
        for dimension, size in enumerate(self.machine.shape):
            along = np.unique(here[:, dimension])
            if len(along) < 2:
                continue
            # Groups between whose members others lie share the links with those others' groups.
            stride = int(np.min(np.diff(along)))
            ring = self.machine.wraps[dimension] and len(along) * stride == size
            links += (2 if ring else 1) / stride
        # Two devices of one chip are joined faster than chips are.
        return Rate((links or 1.0) * chip.link_rate / chip.devices, slow, inner, outer)

    def seconds(self, collective: Collective) -> tuple[float, float]:
        """(over ICI or NVLink, over DCN) of one run of a collective."""
        rate, n = self.rate(collective.group), len(collective.group)
        if collective.kind == 'collective-permute':
            if rate.outer > 1:
                return 0.0, collective.bytes / rate.slow
            one_way = self.machine.chip.link_rate / self.machine.chip.devices
            return collective.bytes / one_way, 0.0
        if collective.kind in ('all-to-all', 'ragged-all-to-all'):
            # Each device keeps 1/n; on a ring what is sent passes n/4 links on average.
            out = collective.bytes * (n - 1) / n
            if rate.outer > 1:
                return 0.0, collective.bytes * (rate.outer - 1) / rate.outer / rate.slow
            hops = max(1.0, rate.inner / 4) if self.machine.chip.is_tpu else 1.0
            return out * hops / rate.fast * (1 if self.machine.chip.is_tpu else 2), 0.0
        passes = 2 if collective.kind == 'all-reduce' else 1
        whole = passes * collective.bytes
        # A switch sends in one direction what a ring sends in two.
        fast = rate.fast if self.machine.chip.is_tpu else rate.fast / 2
        within = whole * (rate.inner - 1) / rate.inner / fast if rate.inner > 1 else 0.0
        # Between slices goes each device's share of what its slice has put together.
        across = whole / rate.inner * (rate.outer - 1) / rate.outer / rate.slow if rate.outer > 1 else 0.0
        return within, across
