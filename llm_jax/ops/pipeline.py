"""Pipeline parallelism: each stage of the mesh holds some of the layers, and micro-batches flow through them.

For S stages the layers are cut into `repeats` × S groups of consecutive layers (virtual
stages), and group g is held by stage g % S. A batch is cut into M micro-batches. All stages
compute at the same time, each on another micro-batch, and send their outputs to the next
stage; those of the last stage return to the first, for its next group (Huang et al. 2019,
"GPipe", arXiv:1811.06965; interleaved groups: Narayanan et al. 2021, arXiv:2104.04473, §2.2).

At iteration t, stage s does its task u = t - s. Micro-batches are processed in blocks of S:
a block passes through all groups before the next one begins,

    block = u // (S repeats),  repeat = u % (S repeats) // S,  micro-batch = S block + u % S,

so the output of the last stage is the next input of the first, and nothing is buffered.
There are M repeats + S - 1 iterations. In S - 1 of them a stage is idle and computes on
zeros: the bubble, a fraction (S - 1) / (M repeats + S - 1) of the time.

Each stage holds its shard of the rows of the batch. At the beginning of a block every stage
has one micro-batch of it, which the ring `feed` shifts down to stage 0; the ring `drain`
shifts results back to the stages of their rows. So no stage holds an array of the size of
the batch, and embedding and loss are split over the stages as the batch is.

The backward pass is the transpose of this loop. An iteration saves only its input and is
recomputed; `model.remat` decides what is saved within one iteration.
"""

from collections.abc import Callable
import math
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from llm_jax.config.schema import ConfigError
from llm_jax.dist import mesh

# Checkpoint name of what the forward pass saves: the weights of the loop, and the input of each iteration.
_SAVED = 'pipeline'

# (parameters of a group [layers, ...], x [b, L, D], rows of x, key or None) -> (x, reports [layers, ...])
Layers = Callable[[Any, jax.Array, Any, jax.Array | None], tuple[jax.Array, Any]]


class Schedule(NamedTuple):
    """Sizes of the pipeline schedule.

    Attributes:
      stages: S.
      microbatches: M, a multiple of S.
      repeats: groups of layers of each stage.
    """

    stages: int
    microbatches: int
    repeats: int

    @property
    def block(self) -> int:
        """Iterations for which a block of S micro-batches keeps a stage busy."""
        return self.stages * self.repeats

    @property
    def iterations(self) -> int:
        """Iterations of the loop, those of the bubble included."""
        return self.microbatches * self.repeats + self.stages - 1

    @property
    def bubble(self) -> float:
        """Fraction of the iterations in which a stage is idle."""
        return (self.stages - 1) / self.iterations


def schedule(rules: tuple, pipeline: tuple[int, int]) -> Schedule:
    """Makes the schedule for the current mesh; it has one stage if the mesh does not split the layers.

    Args:
      rules: logical-axis table.
      pipeline: number of micro-batches (0 means one for each stage) and of repeats.
    """
    axis = mesh.stage_axis(rules)
    stages = dict(jax.sharding.get_abstract_mesh().shape)[axis] if axis else 1
    return Schedule(stages, pipeline[0] or stages, pipeline[1])


def run(
    layers: Layers, params: Any, x_BLD: jax.Array, rows: Any, key: jax.Array | None, *, plan: Schedule, rules: tuple
) -> tuple[jax.Array, Any]:
    """Applies all layers to a batch, as a pipeline over the mesh axis of the layers.

    Args:
      layers: applies one group of layers to one micro-batch.
      params: parameters of all layers in order, [n, ...], split over the stages.
      x_BLD: activations, split by rows, the stages being the outermost axis.
      rows: tree of arrays [B, L] that `layers` reads besides x; they get no gradient.
      key: dropout key; each micro-batch in each group folds in its own number.
      plan: schedule from `schedule`.
      rules: logical-axis table.

    Returns:
      (x [B, L, D], reports [n, ...] summed over micro-batches)

    Raises:
      ConfigError: the rows cannot be split into the micro-batches; `fit.check_fit` checks the rest.
    """
    n_layers, axis = jax.tree.leaves(params)[0].shape[0], mesh.stage_axis(rules)
    n = plan.microbatches * mesh.batch_shard_count(rules) // plan.stages
    if x_BLD.shape[0] % n:
        raise ConfigError(
            f'a batch of {x_BLD.shape[0]} rows cannot be split into {plan.microbatches} micro-batches on this mesh: '
            f'it must be a multiple of {n}'
        )
    batch = mesh.active_rules(rules)['batch']
    rows = jax.tree.map(lambda x: jax.sharding.reshard(x, P(batch, *jax.typeof(x).sharding.spec[1:])), rows)

    def run_stage(stage: jax.Array, params: Any, x_BLD: jax.Array, rows: Any, key: Any) -> tuple[jax.Array, Any]:
        groups = _distribute_groups(params, stage[0], plan, axis)
        slots = plan.microbatches // plan.stages
        all_gather = lambda x: jax.lax.all_gather(_split_slots(x, slots)[None], axis, tiled=True)  # [S, b, slots, L]
        groups, rows = checkpoint_name((groups, jax.tree.map(all_gather, rows)), _SAVED)
        key = None if key is None else key[0]
        out_bjLD, reports = _loop(layers, stage[0], groups, _split_slots(x_BLD, slots), rows, key, plan, axis)
        return _merge_slots(out_bjLD), jax.tree.map(lambda x: x[:, None], reports)

    key = None if key is None else key[None]
    out_specs = jax.typeof(x_BLD).sharding.spec, P(None, axis)
    # map_over_axes turns the varying-axes check off (nested shard_maps have no gradient with it), so replicated inputs
    # would not get their gradients summed; only params and x, which are split over the stages, have a gradient here.
    policy = jax.checkpoint_policies.save_only_these_names(_SAVED)
    run_stage = jax.checkpoint(run_stage, policy=policy, prevent_cse=False)
    x_BLD, reports = mesh.map_over_axes(
        {axis}, run_stage, (mesh.axis_indices(axis), params, x_BLD, rows, key), out_specs
    )
    # Reports are [repeats, S, layers of a group, ...]: flattened, these are the layers in order.
    flatten = lambda x: jax.sharding.reshard(x, P()).reshape(n_layers, *x.shape[3:])
    return x_BLD, jax.tree.map(flatten, reports)


def _loop(
    layers: Layers,
    stage: jax.Array,
    groups: Any,
    x_bjLD: jax.Array,
    rows: Any,
    key: jax.Array | None,
    plan: Schedule,
    axis: str,
) -> tuple[jax.Array, Any]:
    """Runs the iterations of one stage; returns (x [b, j, L, D], reports [repeats, layers, ...]).

    Args:
      layers: applies one group of layers to one micro-batch.
      stage: index of this stage.
      groups: parameters of its groups, [repeats, layers, ...].
      x_bjLD: its micro-batches of b rows, one for each block j.
      rows: tree of arrays [S, b, j, L], those of all stages.
      key: dropout key.
      plan: schedule.
      axis: mesh axis of the stages.
    """
    S = plan.stages
    up = [(s, (s + 1) % S) for s in range(S)]
    down = [(s, (s - 1) % S) for s in range(S)]

    @jax.checkpoint
    def do_task(groups: Any, x_bLD: jax.Array, rows: Any, key: jax.Array | None, u: jax.Array) -> tuple[jax.Array, Any]:
        repeat = _repeat_of(u, plan)
        block, source = u // plan.block, u % S  # the micro-batch's rows belong to stage `source`
        rows = jax.tree.map(lambda x: _take(_take(x, source, 0), block, 1), rows)
        group = jax.tree.map(lambda w: _take(w, repeat, 0), groups)
        if key is not None:
            key = jax.random.fold_in(jax.random.fold_in(key, repeat * S + stage), block * S + source)
        return layers(group, x_bLD, rows, key)

    def iteration(carry: tuple, t: jax.Array) -> tuple[tuple, None]:
        state, feed, drain, out, totals = carry
        u = t - stage
        busy = (u >= 0) & (u < plan.microbatches * plan.repeats)
        u = jnp.clip(u, 0, plan.microbatches * plan.repeats - 1)

        slot = jnp.minimum(t // plan.block, x_bjLD.shape[1] - 1)
        feed = jnp.where(t % plan.block == 0, _take(x_bjLD, slot, 1), feed)
        x_bLD = jnp.where((stage == 0) & (_repeat_of(u, plan) == 0), feed, state)
        x_bLD = checkpoint_name(jnp.where(busy, x_bLD, 0), _SAVED)
        y_bLD, reports = do_task(groups, x_bLD, rows, key, u)
        add = lambda total, new: total.at[_repeat_of(u, plan)].add(jnp.where(busy, new, 0))
        totals = jax.tree.map(add, totals, reports)

        drain = jnp.where(stage == S - 1, y_bLD, jax.lax.ppermute(drain, axis, down))
        # When the last micro-batch of a block is done, `drain` has shifted all others to their stages.
        done = t - (S - 1)
        slot = jnp.maximum(done, 0) // plan.block
        is_complete = (done >= 0) & (done % plan.block == plan.block - 1)
        new = jnp.where(is_complete, drain, _take(out, slot, 1))
        out = jax.lax.dynamic_update_index_in_dim(out, new, slot, 1)
        state, feed = jax.lax.ppermute(y_bLD, axis, up), jax.lax.ppermute(feed, axis, down)
        return (state, feed, drain, out, totals), None

    zeros_bLD = jnp.zeros_like(x_bjLD[:, 0])
    _, reports = jax.eval_shape(do_task, groups, zeros_bLD, rows, key, stage)
    totals = jax.tree.map(lambda x: jnp.zeros((plan.repeats, *x.shape), x.dtype), reports)
    carry = (zeros_bLD, zeros_bLD, zeros_bLD, jnp.zeros_like(x_bjLD), totals)
    (*_, out, totals), _ = jax.lax.scan(iteration, carry, jnp.arange(plan.iterations))
    return out, totals


def _repeat_of(u: jax.Array, plan: Schedule) -> jax.Array:
    """Index of the group that a stage applies in its task u."""
    return u % plan.block // plan.stages


def _distribute_groups(params: Any, stage: jax.Array, plan: Schedule, axis: str) -> Any:
    """Moves groups of layers to the stages that compute them; returns [repeats, layers of a group, ...].

    Parameters, their optimizer state and checkpoints are stored in the order of the layers,
    so that they mean the same on every mesh: stage s stores groups s·repeats, s·repeats + 1,
    ... With one repeat these are the groups that it computes. Otherwise group g is sent to
    stage g % S before the loop, and its gradient back after it: each weight is transferred
    once in a step and direction.
    """
    S, n = plan.stages, plan.repeats
    stored = jax.tree.map(lambda w: w.reshape(n, -1, *w.shape[1:], out_sharding=_prepend_axis(w, None)), params)
    if n == 1:
        return stored
    common = math.gcd(n, S)
    groups = jax.tree.map(jnp.zeros_like, stored)
    for k in range(n):
        # A permutation sends one group of every stage. Stage s sends its group i = (k + s // (S / common)) % n to
        # stage (s n + i) % S. No two share a target: within a run of S / common stages i is constant and s n differs
        # by multiples of `common` (mod S); between runs i differs modulo `common`.
        sent = [(k + s // (S // common)) % n for s in range(S)]
        moves = [(s, (s * n + i) % S) for s, i in enumerate(sent)]
        repeat_at = {target: (s * n + i) // S for (s, target), i in zip(moves, sent, strict=True)}
        i, j = jnp.asarray(sent)[stage], jnp.asarray([repeat_at[s] for s in range(S)])[stage]
        stay = all(s == target for s, target in moves)
        send = (lambda w: w) if stay else (lambda w, moves=moves: jax.lax.ppermute(w, axis, moves))
        receive = lambda w, i=i, send=send: send(_take(w, i, 0))
        store = lambda groups, w, j=j: jax.lax.dynamic_update_index_in_dim(groups, w, j, 0)
        groups = jax.tree.map(store, groups, jax.tree.map(receive, stored))
    return groups


def _split_slots(x: jax.Array, slots: int) -> jax.Array:
    """[rows, ...] -> [rows of a micro-batch, slots, ...], one slot for each block; no row leaves its device."""
    spec = jax.typeof(x).sharding.spec
    return x.reshape(x.shape[0] // slots, slots, *x.shape[1:], out_sharding=P(spec[0], None, *spec[1:]))


def _merge_slots(x: jax.Array) -> jax.Array:
    """[rows of a micro-batch, slots, ...] -> [rows, ...], the inverse of `_split_slots`."""
    spec = jax.typeof(x).sharding.spec
    return x.reshape(-1, *x.shape[2:], out_sharding=P(spec[0], *spec[2:]))


def _prepend_axis(x: jax.Array, axis: str | None) -> P:
    """PartitionSpec of x with one more dimension in front."""
    return P(axis, *jax.typeof(x).sharding.spec)


def _take(x: jax.Array, index: jax.Array, axis: int) -> jax.Array:
    """x[index] along an axis, for a traced index."""
    return jax.lax.dynamic_index_in_dim(x, index, axis, keepdims=False)
