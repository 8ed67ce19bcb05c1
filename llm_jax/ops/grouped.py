"""Products of rows with the matrix of their group: what a mixture of experts is made of.

`jax.lax.ragged_dot` is a kernel on TPU, for the result and for the gradient of the rows. The
gradient of the matrices, and on CPU and GPU everything, XLA computes as if each row were in
every group: with 20 groups 20 times the work. So here groups are gone through one after the
other, each in as many *turns* of a fixed number of rows as it has; a turn that is not full is
padded with rows that count nothing.

Shapes: N rows in order of their group, e groups, a matrix [D, F] for each, m rows of a turn.
"""

from collections.abc import Callable
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llm_jax.dist import mesh

# A turn has a fourth of an even share of the rows, or half of one where results add to a sum in memory: more rows are
# more padding. But at least so many that the matrix is read, or the sum read and written, while they are multiplied
# (a CPU's memory is slow, its arithmetic slower), and no more than are needed for that.
_OF_ROWS, _OF_MATRICES = 4, 2
_LEAST, _LEAST_ON_CPU, _MOST = 2048, 512, 4096


def grouped_product(rows_ND: jax.Array, kernel_eDF: jax.Array, sizes_e: jax.Array) -> jax.Array:
    """Each row times the matrix of its group.

    Args:
      rows_ND: in order of their group.
      kernel_eDF: of the dtype of the rows.
      sizes_e: int, rows of each group. Rows past the last group's are nobody's: what they give says nothing.

    Returns:
      dtype[N, F].
    """
    # Constants of NumPy cannot be indexed by what only the device knows.
    return _product(*varying(jnp.asarray(rows_ND), jnp.asarray(kernel_eDF), jnp.asarray(sizes_e, jnp.int32)))


@jax.custom_vjp
def _product(rows_ND: jax.Array, kernel_eDF: jax.Array, sizes_e: jax.Array) -> jax.Array:
    return _of_rows(rows_ND, kernel_eDF, 1, sizes_e)


def _forward(rows_ND, kernel_eDF, sizes_e):
    return _product(rows_ND, kernel_eDF, sizes_e), (rows_ND, kernel_eDF, sizes_e)


def _backward(kept, d_NF):
    rows_ND, kernel_eDF, sizes_e = kept
    return _of_rows(d_NF, kernel_eDF, 2, sizes_e), _of_matrices(rows_ND, d_NF, sizes_e), None


_product.defvjp(_forward, _backward)


def _of_rows(rows_NK: jax.Array, kernel_eDF: jax.Array, contracted: int, sizes_e: jax.Array) -> jax.Array:
    """Rows times the matrix of their group over its dimension 1, or 2, which is the gradient of the former."""
    if mesh.platform() == 'tpu':
        how = jax.lax.RaggedDotDimensionNumbers((((1,), (contracted,)), ((), ())), [0], [0])
        return jax.lax.ragged_dot_general(rows_NK, kernel_eDF, sizes_e, how)
    turns = _Turns.of(sizes_e, len(rows_NK), _OF_ROWS)

    def group(g: jax.Array, y_NF: jax.Array) -> jax.Array:
        matrix = kernel_eDF[g]

        def turn(i: jax.Array, y_NF: jax.Array) -> jax.Array:
            start, valid, own = turns.at(g, i)
            part = jax.lax.dot_general(own(rows_NK), matrix, (((1,), (contracted - 1,)), ((), ())))
            return jax.lax.dynamic_update_slice_in_dim(y_NF, jnp.where(valid, part, own(y_NF)), start, 0)

        return loop(0, turns.counts_e[g], turns.even, turn, y_NF)

    def group_if_any(g: jax.Array, y_NF: jax.Array) -> jax.Array:
        return jax.lax.cond(sizes_e[g] > 0, group, lambda _, y_NF: y_NF, g, y_NF)

    y_NF = jnp.zeros((len(rows_NK), kernel_eDF.shape[3 - contracted]), rows_NK.dtype)
    return jax.lax.fori_loop(0, len(sizes_e), group_if_any, varying(y_NF, rows_NK)[0])


def _of_matrices(rows_ND: jax.Array, d_NF: jax.Array, sizes_e: jax.Array) -> jax.Array:
    """The gradient of the matrices, [e, D, F], summed in float32."""
    turns = _Turns.of(sizes_e, len(rows_ND), _OF_MATRICES)

    def group(g: jax.Array) -> jax.Array:
        def part(i: jax.Array | int) -> jax.Array:
            _, valid, own = turns.at(g, i)
            left, right = (jnp.where(valid, own(x), 0) for x in (rows_ND, d_NF))
            return jnp.matmul(left.T, right, preferred_element_type=jnp.float32)

        sum_DF = loop(1, turns.counts_e[g], turns.even - 1, lambda i, sum_DF: sum_DF + part(i), part(0))
        return sum_DF.astype(rows_ND.dtype)

    return jax.lax.map(group, jnp.arange(len(sizes_e)))


class _Turns(NamedTuple):
    """How the rows of a group are gone through.

    Attributes:
      sizes_e: rows of each group.
      starts_e: the first of them.
      counts_e: turns of each group.
      n_rows: N.
      size: m.
      even: how many turns a group has whose share of all rows is even.
    """

    sizes_e: jax.Array
    starts_e: jax.Array
    counts_e: jax.Array
    n_rows: int
    size: int
    even: int

    @classmethod
    def of(cls, sizes_e: jax.Array, n_rows: int, parts: int) -> '_Turns':
        share = n_rows / len(sizes_e)
        least = (_LEAST_ON_CPU if mesh.platform() == 'cpu' else _LEAST) / parts
        rows = min(share, max(least, min(share / parts, _MOST / parts)))
        unit = 8 if rows < 128 else 128  # rows of a register of a TPU, and of a tile of a GPU
        size = min(n_rows, unit * math.ceil(rows / unit))
        starts_e = jnp.cumsum(sizes_e) - sizes_e
        return cls(sizes_e, starts_e, -(-sizes_e // size), n_rows, size, math.ceil(share / size))

    def at(self, group: jax.Array, turn: jax.Array | int) -> tuple[jax.Array, jax.Array, Callable]:
        """Where the slice of m rows starts that a turn's lie in; which of it are meant, bool[m, 1]; what slices."""
        first = self.starts_e[group] + self.size * turn
        end = first + jnp.minimum(self.size, self.sizes_e[group] - self.size * turn)
        start = jnp.minimum(first, self.n_rows - self.size)
        row = start + jnp.arange(self.size)
        own = lambda x_NK: jax.lax.dynamic_slice_in_dim(x_NK, start, self.size, 0)
        return start, ((row >= first) & (row < end))[:, None], own


def loop(start: int, end: jax.Array, about: int, turn: Callable[[jax.Array, Any], Any], init: Any) -> Any:
    """`jax.lax.fori_loop` up to what only the device knows; its program says what to expect, for plans.

    Args:
      start: of the counter.
      end: past its last value.
      about: how many turns there will be.
      turn: (counter, carry) -> carry.
      init: the first carry.
    """
    with jax.named_scope(f'about_{about}_turns'):
        return jax.lax.fori_loop(jnp.zeros_like(end) + start, end, turn, init)


# In the name of such a loop's operation: how often it turns.
ABOUT = r'about_(\d+)_turns\)*/while$'


def varying(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """All of them, as different between devices, within `jax.shard_map`, as any of them is.

    What is the same everywhere has its gradient summed over devices where it is used; here, and not in a loop
    that does not turn equally often everywhere.
    """
    axes = frozenset().union(*map(mesh.varying_axes, arrays))
    return tuple(mesh.mark_varying(x, axes) for x in arrays)
