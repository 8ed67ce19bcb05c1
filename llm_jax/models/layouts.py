"""Layouts of our arrays in the tensors of a checkpoint.

A table row of a family is `(ours, theirs, layout)`: the path of our array, or of several
that share one tensor; the tensor's name; and one of the layouts below. Our kernels are
[in..., out...], with heads as dimensions of their own; a checkpoint has them merged.
"""

from collections.abc import Callable, Sequence
import dataclasses
import math

import numpy as np

from llm_jax.config.schema import ConfigError

Shape = tuple[int, ...]
Row = tuple[str | tuple[str, ...], str, 'Layout']


@dataclasses.dataclass(frozen=True)
class Layout:
    """A permutation of our dimensions, then several arrays joined, then dimensions merged.

    Attributes:
      kind: 'linear' puts outputs before inputs and merges each; 'conv1d' merges the same
        without the permutation; 'vector' merges everything; 'same' changes nothing.
      n_in: how many of our dimensions are inputs.
      axis: of the permuted dimensions, the one along which several arrays are joined.
      interleaved: several arrays alternate along the last dimension instead.
    """

    kind: str
    n_in: int = 1
    axis: int = 0
    interleaved: bool = False

    def tensor_shape(self, shapes: Sequence[Shape]) -> Shape:
        """The shape of the tensor that holds arrays of these shapes."""
        return tuple(math.prod(dims) for dims in self._grouped(self._joined(shapes)))

    def read(
        self, fetch: Callable[[tuple[slice, ...]], np.ndarray], shapes: Sequence[Shape], part: int,
        index: Sequence[slice],
    ) -> np.ndarray:  # fmt: skip
        """A piece of one of our arrays.

        Args:
          fetch: gives a piece of the tensor; it is asked for what is needed, and at most
            for whole heads.
          shapes: of all arrays in the tensor.
          part: which of them.
          index: what is wanted of it, a slice of each dimension.
        """
        order, joined = self._order(len(shapes[part])), self._joined(shapes)
        wanted = [slice(*index[dim].indices(shapes[part][dim])) for dim in order]
        axis = self._axis(len(order))
        if self.interleaved:
            wanted.append(slice(part, part + 1))
        else:
            before = sum(self._ordered(shape)[axis] for shape in shapes[:part])
            wanted[axis] = slice(before + wanted[axis].start, before + wanted[axis].stop)
        # Only the first of merged dimensions is narrowed in the tensor: then the piece is one block of it.
        pieces, dims, rest = [], [], []
        for size, slices in zip(self._grouped(joined), self._grouped(tuple(wanted)), strict=True):
            inner = math.prod(size[1:])
            pieces.append(slice(slices[0].start * inner, slices[0].stop * inner))
            dims += [slices[0].stop - slices[0].start, *size[1:]]
            rest += [slice(None), *slices[1:]]
        block = fetch(tuple(pieces)).reshape(dims)[tuple(rest)]
        block = block[..., 0] if self.interleaved else block
        return block.transpose(np.argsort(order))

    def write(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """The tensor that holds these arrays."""
        blocks = [x.transpose(self._order(x.ndim)) for x in arrays]
        if self.interleaved:
            block = np.stack(blocks, -1)
        else:
            block = blocks[0] if len(blocks) == 1 else np.concatenate(blocks, self._axis(blocks[0].ndim))
        return np.ascontiguousarray(block).reshape(self.tensor_shape([x.shape for x in arrays]))

    def _order(self, rank: int) -> list[int]:
        first = self.n_in if self.kind == 'linear' else 0
        return [*range(first, rank), *range(first)]

    def _ordered(self, shape: Shape) -> Shape:
        return tuple(shape[dim] for dim in self._order(len(shape)))

    def _axis(self, rank: int) -> int:
        return self.axis % rank

    def _joined(self, shapes: Sequence[Shape]) -> Shape:
        ordered = [self._ordered(shape) for shape in shapes]
        joined, axis = list(ordered[0]), self._axis(len(ordered[0]))
        if self.interleaved:
            return (*joined, len(shapes))
        joined[axis] = sum(shape[axis] for shape in ordered)
        return tuple(joined)

    def _grouped(self, dims: tuple) -> list[tuple]:
        """Our permuted dimensions, as they are merged into those of the tensor."""
        rank = len(dims)
        if self.kind == 'same':
            ends = [*range(1, rank - self.interleaved), rank]
        elif self.kind == 'vector':
            ends = [rank]
        else:
            ends = [rank - self.n_in if self.kind == 'linear' else self.n_in, rank]
        return [dims[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def paths(row: Row) -> tuple[str, ...]:
    """Ours, always as a tuple."""
    return (row[0],) if isinstance(row[0], str) else row[0]


same = Layout('same')
# Norm scales and biases.
vector = Layout('vector')
# Weights of torch.nn.Linear, [out, in]; and of the one that reads all heads.
linear = Layout('linear')
from_heads = Layout('linear', n_in=2)
# The same, [in, out].
conv1d = Layout('conv1d')
conv1d_from_heads = Layout('conv1d', n_in=2)


def joined(layout: Layout, axis: int) -> Layout:
    """Several arrays in one tensor, joined along a dimension of what `layout` makes of ours."""
    return dataclasses.replace(layout, axis=axis)


def alternating(layout: Layout) -> Layout:
    """Several arrays in one tensor, taking turns along the last dimension."""
    return dataclasses.replace(layout, interleaved=True)


def check_shape(name: str, found: Shape, wanted: Shape) -> None:
    """Raises: ConfigError: the tensor has another shape than the config makes of it."""
    if tuple(found) != wanted:
        raise ConfigError(f'tensor {name!r} has shape {list(found)}; by config.json it should have {list(wanted)}')
