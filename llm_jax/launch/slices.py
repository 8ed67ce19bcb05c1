"""TPU slices: how Google Cloud and Kubernetes call them, and how many hosts and devices they have.

Sources: the pages of Cloud TPU on each generation and on runtimes, and those of
Kubernetes Engine on TPUs.
"""

from collections.abc import Mapping
import dataclasses
import math
import re

from llm_jax.parts import nearest
from llm_jax.schema import ConfigError

_FLAT = {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)}
_CUBES = {
    4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4), 128: (4, 4, 8), 256: (4, 8, 8),
    512: (8, 8, 8), 1024: (8, 8, 16), 2048: (8, 16, 16), 4096: (16, 16, 16),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Generation:
    """One generation of TPUs.

    Attributes:
      name: as people say it.
      aliases: what else it is called.
      counted: by how much a chip counts in the size of an accelerator type: v4-8 has 8
        cores, which are 4 chips.
      devices: JAX devices of one chip.
      shapes: number of chips -> the topology that an accelerator type of this size has.
      accelerator: prefix of its accelerator types; empty where only Kubernetes has it.
      runtime: software version of its virtual machines.
      node: what Kubernetes nodes are labelled with.
      machine: machine type of a node, without its number of chips.
      one_host: the most chips that one host of a small slice may have.
    """

    name: str
    aliases: tuple[str, ...]
    counted: int
    devices: int
    shapes: Mapping[int, tuple[int, ...]]
    accelerator: str
    runtime: str
    node: str
    machine: str
    one_host: int = 4


GENERATIONS = (
    Generation('v4', (), 2, 1, _CUBES, 'v4', 'tpu-ubuntu2204-base', 'tpu-v4-podslice', 'ct4p-hightpu'),
    Generation('v5e', ('v5litepod', 'v5lite'), 1, 1, _FLAT, 'v5litepod', 'v2-alpha-tpuv5-lite',
               'tpu-v5-lite-podslice', 'ct5lp-hightpu', one_host=8),
    Generation('v5p', ('v5',), 2, 1, _CUBES, 'v5p', 'v2-alpha-tpuv5', 'tpu-v5p-slice', 'ct5p-hightpu'),
    Generation('v6e', ('trillium',), 1, 1, _FLAT, 'v6e', 'v2-alpha-tpuv6e', 'tpu-v6e-slice', 'ct6e-standard',
               one_host=8),
    Generation('7x', ('tpu7x', 'v7x', 'ironwood'), 2, 2, _CUBES, '', '', 'tpu7x', 'tpu7x-standard'),
)  # fmt: skip
_BY_NAME = {name: generation for generation in GENERATIONS for name in (generation.name, *generation.aliases)}


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips that are connected with one another."""

    generation: Generation
    shape: tuple[int, ...]

    @property
    def topology(self) -> str:
        """'4x4x8'."""
        return 'x'.join(map(str, self.shape))

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def devices(self) -> int:
        """JAX devices."""
        return self.chips * self.generation.devices

    @property
    def chips_per_host(self) -> int:
        return self.chips if self.chips <= self.generation.one_host else 4

    @property
    def hosts(self) -> int:
        return self.chips // self.chips_per_host

    @property
    def name(self) -> str:
        """'v5p:4x4x8'."""
        return f'{self.generation.name}:{self.topology}'

    @property
    def accelerator_type(self) -> str | None:
        """'v5p-256'; None where that would mean another topology of as many chips."""
        if not self.generation.accelerator or self.generation.shapes.get(self.chips) != self.shape:
            return None
        return f'{self.generation.accelerator}-{self.chips * self.generation.counted}'

    @property
    def machine_type(self) -> str:
        """Of a Kubernetes node."""
        return f'{self.generation.machine}-{self.chips_per_host}t'


def parse_slice(text: str) -> Slice:
    """'v5e-16', 'v5litepod-16' or 'v5p:4x4x8' as a slice.

    A size after '-' is what Google Cloud counts: chips of v5e and v6e, cores (two of
    each chip) of v4, v5p and 7x.

    Raises:
      ConfigError: no such generation, or no such size; it lists what there is.
    """
    match = re.fullmatch(r'([a-z0-9]+)(?:-(\d+)|:(\d+(?:x\d+)+))', text.strip().lower())
    generation = _BY_NAME.get(match[1]) if match else None
    if generation is None:
        known = [g.name for g in GENERATIONS]
        raise ConfigError(
            f'--tpu {text!r}: write a generation and a size, such as v5e-16 or v5p:4x4x8; generations are '
            f'{", ".join(known)}{nearest(text.partition("-")[0].partition(":")[0], _BY_NAME)}'
        )
    if match[2]:
        chips, rest = divmod(int(match[2]), generation.counted)
        if rest or chips not in generation.shapes:
            sizes = ', '.join(f'{generation.name}-{n * generation.counted}' for n in generation.shapes)
            raise ConfigError(f'--tpu {text!r}: there is no slice of this size; there are {sizes}')
        return Slice(generation, generation.shapes[chips])
    shape = tuple(int(n) for n in match[3].split('x'))
    dims, most = len(next(iter(generation.shapes.values()))), max(generation.shapes)
    # Above 4x4x4, cubes of 64 chips are put together.
    blocks = dims == 2 or math.prod(shape) <= 64 or all(n % 4 == 0 for n in shape)
    known = shape in generation.shapes.values()
    if not known and (dims == 2 or len(shape) != dims or not blocks or sorted(shape) != list(shape)
                      or math.prod(shape) > most or math.prod(shape) < 64):  # fmt: skip
        shapes = ', '.join('x'.join(map(str, s)) for s in generation.shapes.values())
        more = '' if dims == 2 else '; larger ones of multiples of 4 in ascending order, such as 4x4x12'
        raise ConfigError(f'--tpu {text!r}: {generation.name} has the topologies {shapes}{more}')
    return Slice(generation, shape)
