"""Products of rows with the matrix of their group, the building block of a mixture of experts.

`jax.lax.ragged_dot` is a kernel on TPU for the result and for the gradient of the rows. The
gradient of the matrices, and on CPU and GPU all three, XLA computes as if each row were in
every group: with 20 groups 20 times the work. There, a loop processes one group after the
other, each in *tiles* of a fixed number of rows; the last tile of a group is padded with zero
rows.

Shapes: N rows in order of their group, e groups, a matrix [D, F] for each, m rows of a tile.
"""

from collections.abc import Callable
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llm_jax.dist import mesh
from llm_jax.ops.quantised import Quantised, encode_rows, multiply_rows

# A tile is a fourth of an even share of the rows, or half of one for the gradient of the matrices: larger tiles have
# more padding. But it has at least so many rows that the arithmetic takes as long as reading the matrix (or as reading
# and writing the sum; a CPU's memory is slow, its arithmetic slower), and no more than that needs.
_TILES_PER_SHARE_ROWS, _TILES_PER_SHARE_MATRICES = 4, 2
_MIN_ROWS, _MIN_ROWS_ON_CPU, _MAX_ROWS = 2048, 512, 4096


def grouped_product(
    rows_ND: jax.Array, kernel_eDF: jax.Array | Quantised, sizes_e: jax.Array, summed: tuple[str, ...] = ()
) -> jax.Array:
    """Multiplies each row with the matrix of its group.

    Args:
      rows_ND: rows, in order of their group.
      kernel_eDF: matrices, in the dtype of the rows; or quantised ones [e, F, D], which have no gradient.
      sizes_e: int, rows of each group. Results of rows past the last group's are undefined.
      summed: within `shard_map`, mesh axes over which D is split; the result is then one part of a sum over these.

    Returns:
      dtype[N, F].
    """
    if isinstance(kernel_eDF, Quantised):
        return _multiply_rows_quantised(rows_ND, kernel_eDF, jnp.asarray(sizes_e, jnp.int32), summed)
    # A NumPy array cannot be indexed by a traced group number, a jax.Array can.
    return _product(*unify_varying(jnp.asarray(rows_ND), jnp.asarray(kernel_eDF), jnp.asarray(sizes_e, jnp.int32)))


# y_n = x_n W_g for row n of group g. Backward: dx_n = dy_n W_gᵀ, dW_g = Σ_{n in g} x_n dy_nᵀ.


@jax.custom_vjp
def _product(rows_ND: jax.Array, kernel_eDF: jax.Array, sizes_e: jax.Array) -> jax.Array:
    return _multiply_rows(rows_ND, kernel_eDF, 1, sizes_e)


def _forward(
    rows_ND: jax.Array, kernel_eDF: jax.Array, sizes_e: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    return _product(rows_ND, kernel_eDF, sizes_e), (rows_ND, kernel_eDF, sizes_e)


def _backward(residuals: tuple[jax.Array, jax.Array, jax.Array], d_NF: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    rows_ND, kernel_eDF, sizes_e = residuals
    return _multiply_rows(d_NF, kernel_eDF, 2, sizes_e), _gradient_of_matrices(rows_ND, d_NF, sizes_e), None


_product.defvjp(_forward, _backward)


def _multiply_rows(rows_NK: jax.Array, kernel_eDF: jax.Array, contracted: int, sizes_e: jax.Array) -> jax.Array:
    """Rows times the matrix of their group, contracted over dimension 1 of the kernel, or 2 (for the gradient)."""
    if mesh.platform() == 'tpu':
        dimensions = jax.lax.RaggedDotDimensionNumbers((((1,), (contracted,)), ((), ())), [0], [0])
        return jax.lax.ragged_dot_general(rows_NK, kernel_eDF, sizes_e, dimensions)
    multiply = lambda tile_mK, matrix: jax.lax.dot_general(tile_mK, matrix, (((1,), (contracted - 1,)), ((), ())))
    y_NF = jnp.zeros((len(rows_NK), kernel_eDF.shape[3 - contracted]), rows_NK.dtype)
    return _multiply_tiles(multiply, rows_NK, kernel_eDF, sizes_e, unify_varying(y_NF, rows_NK)[0])


def _multiply_rows_quantised(
    rows_ND: jax.Array, kernel_eFD: Quantised, sizes_e: jax.Array, summed: tuple[str, ...]
) -> jax.Array:
    """Rows times the quantised matrix of their group, in the dtype of the rows."""
    multiply = lambda tile, matrix: multiply_rows(tile, matrix).astype(rows_ND.dtype)
    leaves, tree = jax.tree.flatten((encode_rows(rows_ND, kernel_eFD, summed), kernel_eFD, sizes_e))
    *leaves, y_NF = unify_varying(*leaves, jnp.zeros((len(rows_ND), kernel_eFD.shape[1]), rows_ND.dtype))
    return _multiply_tiles(multiply, *jax.tree.unflatten(tree, leaves), y_NF)


def _multiply_tiles(
    multiply: Callable[[Any, Any], jax.Array], rows_N: Any, kernel_e: Any, sizes_e: jax.Array, y_NF: jax.Array
) -> jax.Array:
    """Multiplies the tiles of each group with its matrix.

    Args:
      multiply: (m rows, matrix) -> [m, F].
      rows_N: tree of arrays [N, ...].
      kernel_e: tree of arrays [e, ...].
      sizes_e: int, rows of each group.
      y_NF: zeros.
    """
    tiles = _Tiles.make(sizes_e, len(y_NF), _TILES_PER_SHARE_ROWS)

    def multiply_group(g: jax.Array, y_NF: jax.Array) -> jax.Array:
        matrix = jax.tree.map(lambda x: x[g], kernel_e)

        def multiply_tile(i: jax.Array, y_NF: jax.Array) -> jax.Array:
            start, valid_m1 = tiles.locate(g, i)
            product_mF = multiply(jax.tree.map(lambda x: tiles.slice_rows(x, start), rows_N), matrix)
            merged_mF = jnp.where(valid_m1, product_mF, tiles.slice_rows(y_NF, start))
            return jax.lax.dynamic_update_slice_in_dim(y_NF, merged_mF, start, 0)

        return loop(0, tiles.counts_e[g], tiles.expected, multiply_tile, y_NF)

    def multiply_group_unless_empty(g: jax.Array, y_NF: jax.Array) -> jax.Array:
        return jax.lax.cond(sizes_e[g] > 0, multiply_group, lambda _, y_NF: y_NF, g, y_NF)

    return jax.lax.fori_loop(0, len(sizes_e), multiply_group_unless_empty, y_NF)


def _gradient_of_matrices(rows_ND: jax.Array, d_NF: jax.Array, sizes_e: jax.Array) -> jax.Array:
    """Gradient of the matrices, [e, D, F], summed in float32."""
    tiles = _Tiles.make(sizes_e, len(rows_ND), _TILES_PER_SHARE_MATRICES)

    def sum_group(g: jax.Array) -> jax.Array:
        def outer_product(i: jax.Array | int) -> jax.Array:
            start, valid_m1 = tiles.locate(g, i)
            rows_mD, d_mF = (jnp.where(valid_m1, tiles.slice_rows(x, start), 0) for x in (rows_ND, d_NF))
            return jnp.matmul(rows_mD.T, d_mF, preferred_element_type=jnp.float32)

        add_tile = lambda i, sum_DF: sum_DF + outer_product(i)
        sum_DF = loop(1, tiles.counts_e[g], tiles.expected - 1, add_tile, outer_product(0))
        return sum_DF.astype(rows_ND.dtype)

    return jax.lax.map(sum_group, jnp.arange(len(sizes_e)))


class _Tiles(NamedTuple):
    """Tiling of the rows of each group.

    Attributes:
      sizes_e: rows of each group.
      starts_e: index of the first row of each group.
      counts_e: tiles of each group.
      n_rows: N.
      size: m.
      expected: tiles of a group that has an even share of all rows.
    """

    sizes_e: jax.Array
    starts_e: jax.Array
    counts_e: jax.Array
    n_rows: int
    size: int
    expected: int

    @classmethod
    def make(cls, sizes_e: jax.Array, n_rows: int, tiles_per_share: int) -> '_Tiles':
        share = n_rows / len(sizes_e)
        least = (_MIN_ROWS_ON_CPU if mesh.platform() == 'cpu' else _MIN_ROWS) / tiles_per_share
        rows = min(share, max(least, min(share / tiles_per_share, _MAX_ROWS / tiles_per_share)))
        unit = 8 if rows < 128 else 128  # rows of a TPU's register, and of a GPU's matrix tile
        size = min(n_rows, unit * math.ceil(rows / unit))
        starts_e = jnp.cumsum(sizes_e) - sizes_e
        return cls(sizes_e, starts_e, -(-sizes_e // size), n_rows, size, math.ceil(share / size))

    def locate(self, group: jax.Array, tile: jax.Array | int) -> tuple[jax.Array, jax.Array]:
        """(start of the slice of m rows that contains the tile, bool[m, 1]: which rows of it belong to the tile)."""
        first = self.starts_e[group] + self.size * tile
        end = first + jnp.minimum(self.size, self.sizes_e[group] - self.size * tile)
        start = jnp.minimum(first, self.n_rows - self.size)
        row_m = start + jnp.arange(self.size)
        return start, ((row_m >= first) & (row_m < end))[:, None]

    def slice_rows(self, x_NK: jax.Array, start: jax.Array) -> jax.Array:
        """Slices the m rows of x that begin at `start`."""
        return jax.lax.dynamic_slice_in_dim(x_NK, start, self.size, 0)


def loop(start: int, end: jax.Array, expected: int, body: Callable[[jax.Array, Any], Any], init: Any) -> Any:
    """`jax.lax.fori_loop` with a dynamic end, whose name in the program states how many iterations to expect.

    Args:
      start: first value of the counter.
      end: one past its last value.
      expected: number of iterations that the planner assumes.
      body: (counter, carry) -> carry.
      init: first carry.
    """
    with jax.named_scope(f'about_{expected}_turns'):
        return jax.lax.fori_loop(jnp.zeros_like(end) + start, end, body, init)


# Matches the operation name of such a loop; the group is its expected number of iterations.
ABOUT = r'about_(\d+)_turns\)*/while$'


def unify_varying(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Casts all arrays to vary over the same axes of the enclosing `shard_map`: those over which any of them varies.

    The transpose of the cast sums an array's gradient over the added axes. It must stand
    outside of loops whose number of iterations differs between devices: a collective within
    one would never complete.
    """
    axes = frozenset().union(*map(mesh.varying_axes, arrays))
    return tuple(mesh.mark_varying(x, axes) for x in arrays)
