"""Slices of TPUs: their names, shapes, hosts and devices. Sources: the pages of Cloud TPU on each generation."""

import dataclasses
import math
import re

from llm_jax.config.parts import nearest
from llm_jax.config.schema import ConfigError
from llm_jax.metrics.specs import CHIPS, Chip

TPUS = tuple(name for name, chip in CHIPS.items() if chip.is_tpu)
# What else a generation is called: by Google Cloud, by libtpu, by people.
_ALIASES = {'v5litepod': 'v5e', 'v5lite': 'v5e', 'trillium': 'v6e', 'tpu7x': '7x', 'v7x': '7x', 'ironwood': '7x'}
# Generations whose sizes Google Cloud gives in cores, two of each chip: v4-8 are 4 chips.
_BY_CORES = ('v4', 'v5p', '7x')
# The largest slices that are sold, in chips.
_LARGEST = {'v4': 4096, 'v5e': 256, 'v5p': 6144, 'v6e': 256, '7x': 9216}
# Slices of a torus that are smaller than one cube of 4 × 4 × 4; hosts are squares of 2 × 2.
_BELOW_A_CUBE = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
# Of these generations one host may have a whole slice of 8 chips.
_WIDE_HOSTS = ('v5e', 'v6e')


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips that are connected with one another.

    Attributes:
      chip: of which it is made.
      shape: chips along each dimension of the torus.
    """

    chip: Chip
    shape: tuple[int, ...]

    @property
    def topology(self) -> str:
        """'4x4x8'."""
        return 'x'.join(map(str, self.shape))

    @property
    def name(self) -> str:
        """'v5p:4x4x8'."""
        return f'{self.chip.name}:{self.topology}'

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def devices(self) -> int:
        """JAX devices."""
        return self.chips * self.chip.devices

    @property
    def chips_per_host(self) -> int:
        return min(self.chips, 8 if self.chip.name in _WIDE_HOSTS and self.chips <= 8 else 4)

    @property
    def hosts(self) -> int:
        return self.chips // self.chips_per_host

    @property
    def size(self) -> int | None:
        """Number in Google Cloud's name of it, such as 256 of 'v5p-256'; None where that name means another shape."""
        return self.chips * _counted(self.chip) if _default_shape(self.chip, self.chips) == self.shape else None


def parse_slice(text: str, flag: str = '--tpu') -> Slice:
    """'v5p:4x4x8', 'v5e-16' or 'v5litepod-16' as a slice.

    A size after '-' is what Google Cloud counts: chips of v5e and v6e, cores (two of
    each chip) of v4, v5p and 7x.

    Args:
      text: what the user wrote.
      flag: where, for errors.

    Raises:
      ConfigError: no such generation, or no such size; it lists what there is.
    """
    generation, mark, size = re.fullmatch(r'([^-:]*)([-:]?)(.*)', text.strip().lower(), re.DOTALL).groups()
    generation = _ALIASES.get(generation, generation)
    if generation not in TPUS:
        raise ConfigError(
            f'{flag} = {text!r}: there is no TPU {generation!r}; there are {", ".join(TPUS)}'
            f'{nearest(generation, (*TPUS, *_ALIASES))}'
        )
    chip = CHIPS[generation]
    if mark == '-' and re.fullmatch(r'[1-9]\d{0,5}', size) and int(size) % _counted(chip) == 0:
        shape = _default_shape(chip, int(size) // _counted(chip))
        if shape:
            return Slice(chip, shape)
    if mark == ':' and re.fullmatch(r'\d+(x\d+)+', size):
        shape = tuple(int(part) for part in size.split('x'))
        if _known_shape(chip, shape):
            return Slice(chip, shape)
    usual = common_shapes(chip)
    sizes = [math.prod(s) * _counted(chip) if mark == '-' else 'x'.join(map(str, s)) for s in usual]
    raise ConfigError(
        f'{flag} = {text!r} is no slice of {generation}; there are, for example, '
        + ', '.join(f'{generation}{"-" if mark == "-" else ":"}{size}' for size in sizes)
    )


def common_shapes(chip: Chip) -> list[tuple[int, ...]]:
    """The usual slices of a generation, the smallest first, one for each number of chips; all there are of v5e and v6e."""
    if chip.torus == 2:
        return [(1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)]
    cubes = [(4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8), (8, 8, 16), (8, 16, 16), (16, 16, 16)]
    return [*_BELOW_A_CUBE, *(shape for shape in cubes if math.prod(shape) <= _LARGEST[chip.name])]


def _known_shape(chip: Chip, shape: tuple[int, ...]) -> bool:
    """True if a generation has slices of this shape."""
    if chip.torus == 2:
        return shape in common_shapes(chip)
    if shape in _BELOW_A_CUBE or (chip.name, shape) == ('7x', (1, 1, 1)):
        return True
    # Made of cubes of 4 × 4 × 4, with the sides in ascending order.
    return (
        len(shape) == chip.torus
        and all(side and side % 4 == 0 for side in shape)
        and list(shape) == sorted(shape)
        and math.prod(shape) <= _LARGEST[chip.name]
    )


def _default_shape(chip: Chip, chips: int) -> tuple[int, ...] | None:
    """The shape that a number of chips stands for: of several, the one with the shortest sides."""
    known = [shape for shape in common_shapes(chip) if math.prod(shape) == chips]
    if known or chip.torus == 2 or chips % 64 or chips > _LARGEST[chip.name]:
        return known[0] if known else None
    cubes = chips // 64
    shapes = [
        (4 * a, 4 * b, 4 * (cubes // (a * b)))
        for a in range(1, cubes + 1)
        for b in range(a, cubes // a + 1)
        if cubes % (a * b) == 0 and b <= cubes // (a * b)
    ]
    return min(shapes, key=lambda shape: (sum(shape), max(shape)))


def _counted(chip: Chip) -> int:
    return 2 if chip.name in _BY_CORES else 1
