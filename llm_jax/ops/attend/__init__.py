"""Softmax attention itself: queries, keys and values in, weighted values out.

The one place that knows kernels. Which pairs may attend is described (causal by slot,
within a window, within a segment), not given as a matrix, so that a kernel can skip
what is masked. `choose.py` says which kernel runs where; `xla.py` has whole rows on each
device, `blocks.py` rows that are split over devices, `splash.py` and `cudnn.py` call what
others wrote for TPU and GPU.
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from llm_jax.dist import mesh
from llm_jax.ops.attend import blocks, cudnn, splash, xla
from llm_jax.ops.attend.scores import PLAIN, Operands, Scores
from llm_jax.ops.quantised import Quantised

__all__ = ['PLAIN', 'Scores', 'attend']


def attend(
    q_BLHK: jax.Array,
    k_BSGK: jax.Array | Quantised,
    v_BSGK: jax.Array | Quantised,
    *,
    rules: tuple,
    scores: Scores = PLAIN,
    segments_BL: jax.Array | None = None,
    slots_BL: jax.Array | None = None,
    slopes_H: np.ndarray | None = None,
    sinks_H: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
    kernel: str = 'xla',
    context: str = 'all_gather',
) -> jax.Array:
    """Causal attention; softmax in float32.

    On a mesh that splits the length, queries, keys and values are in the order of
    `zigzag.split`, and segments whole rows in the order of the text.

    Args:
      q_BLHK: queries; head h reads key/value head h // (H / G).
      k_BSGK: keys of S slots and G <= H heads; those of a cache may be quantised.
      v_BSGK: values, likewise; their width may differ from that of the keys.
      rules: logical-axis table, for the mesh.
      scores: scale, soft-cap, window, dropout.
      segments_BL: document of each token; attention stays within it. Needs S == L.
      slots_BL: slot of each query, for a cache: it sees slots up to and including its
        own. None means that queries and keys are the same tokens (S == L).
      slopes_H: what a score loses per slot of distance (ALiBi); constants.
      sinks_H: a score of each head that competes with the keys' and has no value
        (Xiao et al. 2023, arXiv:2309.17453; learned, as in gpt-oss).
      dropout_key: needed if `scores.dropout` is not 0.
      kernel: 'xla', 'splash' or 'cudnn', as `choose_kernel` says.
      context: how rows attend that are split over devices, 'all_gather' or 'ring'.

    Returns:
      [B, L, H, width of v] in the dtype of q.
    """
    H = q_BLHK.shape[2]
    scores = scores._replace(scale=scores.scale or q_BLHK.shape[-1] ** -0.5)
    slopes_H = None if slopes_H is None else jnp.asarray(slopes_H)
    dropout_key = dropout_key if scores.dropout else None
    if jax.sharding.get_abstract_mesh().empty:
        core = functools.partial(_CORES[kernel], scores)
        if kernel == 'splash':
            core = functools.partial(core, splash.make(scores, H, q_BLHK.shape[1]))
        return core(Operands(q_BLHK, k_BSGK, v_BSGK, segments_BL, slots_BL, slopes_H, sinks_H, dropout_key))
    # Heads and rows are independent, so each device attends to its own; what a
    # kernel sees is plain local arrays.
    table = mesh.active_rules(rules)
    parts = _parts(table['length'])
    if table['kv_heads'] != table['heads'] and max(_parts(table['heads']), _parts(table['kv_heads'])) > 1:
        # A device has some of the query heads but not just their key/value heads
        # (e.g. one of those, or fewer than devices): give each query head its own.
        k_BSGK, v_BSGK = jax.tree.map(lambda x: _repeat_heads(x, H, table), (k_BSGK, v_BSGK))
        table['kv_heads'] = table['heads']
    tokens = lambda name: P(table['batch'], table['length'], table[name], None)
    rows = lambda x: None if x is None else P(table['batch'], None)
    each = lambda x: None if x is None else P(table['heads'])
    if slopes_H is not None:
        slopes_H = jax.sharding.reshard(slopes_H, each(slopes_H))
    core = functools.partial(_CORES[kernel], scores)
    if parts > 1:
        axes = mesh.mesh_axes(table['length'])
        if kernel == 'splash':
            core = functools.partial(splash.attend_shared, scores, axes)
        else:
            core = functools.partial(blocks.attend_shared, scores, blocks.Split(axes, parts, context))
    core = _fold_key(core, table) if scores.dropout else core
    if sinks_H is not None and kernel == 'xla':
        core = _vary_sinks(core, mesh.mesh_axes(table['batch']) + mesh.mesh_axes(table['length']))
    arrays = (Operands(q_BLHK, k_BSGK, v_BSGK, segments_BL, slots_BL, slopes_H, sinks_H, dropout_key),)
    specs = (
        Operands(
            tokens('heads'), tokens('kv_heads'), tokens('kv_heads'), rows(segments_BL), rows(slots_BL),
            each(slopes_H), each(sinks_H), P(),
        ),
    )  # fmt: skip
    if kernel == 'splash':
        tables = splash.make(scores, H // _parts(table['heads']), q_BLHK.shape[1], parts)
        sharded = splash.table_specs(tables, table['length'])
        arrays, specs = (jax.tree.map(jax.sharding.reshard, tables, sharded), *arrays), (sharded, *specs)
    # A fused kernel does not say over which axes its result differs.
    run = jax.shard_map(core, in_specs=specs, out_specs=tokens('heads'), check_vma=kernel == 'xla')
    return run(*arrays)


_CORES = {'xla': xla.attend_rows, 'splash': splash.attend_rows, 'cudnn': cudnn.attend_rows}


def _parts(entry: str | tuple[str, ...] | None) -> int:
    """Number of shards that the current mesh makes of a dimension with this entry of the rules."""
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    return int(np.prod([sizes[axis] for axis in mesh.mesh_axes(entry)]))


def _repeat_heads(x_BSGK: jax.Array, n_heads: int, table: dict) -> jax.Array:
    """[B, S, G, K] -> [B, S, H, K], split as the query heads are."""
    B, S, G, K = x_BSGK.shape
    x_BSGK = jax.sharding.reshard(x_BSGK, P(table['batch'], table['length'], None, None))
    repeated = jnp.broadcast_to(x_BSGK[:, :, :, None], (B, S, G, n_heads // G, K))
    whole = repeated.reshape(B, S, n_heads, K)
    return jax.sharding.reshard(whole, P(table['batch'], table['length'], table['heads'], None))


def _fold_key(core: Callable[[Operands], jax.Array], table: dict) -> Callable[[Operands], jax.Array]:
    """`core` with a dropout key of its own on each device that has other rows or heads."""
    axes = [axis for name in ('batch', 'heads') for axis in mesh.mesh_axes(table[name])]

    def with_folded_key(operands: Operands) -> jax.Array:
        key = operands.dropout_key
        for axis in axes:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis))
        return core(operands._replace(dropout_key=key))

    return with_folded_key


def _vary_sinks(core: Callable[[Operands], jax.Array], token_axes: tuple[str, ...]) -> Callable[[Operands], jax.Array]:
    """`core` with sinks cast to vary over the axes of the tokens, over which their gradients are then summed."""

    def with_varying_sinks(operands: Operands) -> jax.Array:
        return core(operands._replace(sinks_H=jax.lax.pcast(operands.sinks_H, token_axes, to='varying')))

    return with_varying_sinks
