"""Pipeline parallelism: each stage of the mesh holds some of the layers, and micro-batches run through them.

The layers are cut into `repeats` × S groups of consecutive ones for S stages, and group
g lies on stage g % S. A batch is cut into M micro-batches. All stages compute at the
same time, each on another micro-batch, and hand what they made to the next stage; from
the last one it goes back to the first, for the next round (Huang et al. 2019, "GPipe",
arXiv:1811.06965; several rounds: Narayanan et al. 2021, arXiv:2104.04473, §2.2).

At iteration t, stage s does the u-th piece of its work, u = t - s. Micro-batches go in
blocks of S: a block finishes all its rounds before the next one begins,

    block = u // (S repeats),  round = u % (S repeats) // S,  micro-batch = S block + u % S,

so what the last stage gives is what the first one does next, and nothing waits in a
buffer. There are M repeats + S - 1 iterations. In S - 1 of them a stage has nothing to
do and computes on zeros: the bubble, a share (S - 1) / (M repeats + S - 1) of the time.

Each stage holds the rows of its share of the batch. At the beginning of a block every
stage has one micro-batch of it, which the ring `feed` brings down to stage 0; the ring
`drain` brings results back to where their rows belong. So nothing of the size of the
batch is on all stages, and embedding and loss are split over the stages like the batch.

The backward pass is the transpose of this loop. An iteration keeps only what entered it
and is computed again; `model.remat` says what is kept within one iteration.
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

# The name of what the forward pass keeps: the weights as they lie in the loop, and what entered each iteration.
_KEPT = 'pipeline'

# (parameters of a group [layers, ...], x [b, L, D], rows of x, key or None) -> (x, reports [layers, ...])
Layers = Callable[[Any, jax.Array, Any, jax.Array | None], tuple[jax.Array, Any]]


class Schedule(NamedTuple):
    """Who does what when.

    Attributes:
      stages: S.
      microbatches: M, a multiple of S.
      repeats: how many groups of layers each stage has.
    """

    stages: int
    microbatches: int
    repeats: int

    @property
    def block(self) -> int:
        """Iterations that a block of S micro-batches keeps a stage busy."""
        return self.stages * self.repeats

    @property
    def iterations(self) -> int:
        return self.microbatches * self.repeats + self.stages - 1

    @property
    def bubble(self) -> float:
        """Share of the iterations in which a stage has nothing to do."""
        return (self.stages - 1) / self.iterations


def schedule(rules: tuple, pipeline: tuple[int, int]) -> Schedule:
    """The schedule on the current mesh; one stage where it splits no layers.

    Args:
      rules: logical-axis table.
      pipeline: micro-batches (0 means one for each stage) and repeats.
    """
    axis = mesh.stage_axis(rules)
    stages = dict(jax.sharding.get_abstract_mesh().shape)[axis] if axis else 1
    return Schedule(stages, pipeline[0] or stages, pipeline[1])


def run(
    layers: Layers, params: Any, x_BLD: jax.Array, rows: Any, key: jax.Array | None, *, plan: Schedule, rules: tuple
) -> tuple[jax.Array, Any]:
    """All layers on a batch, as a pipeline over the mesh axis that `rules` split the layers over.

    Args:
      layers: what a stage does with one group and one micro-batch.
      params: of all layers in order, [n, ...], split over the stages.
      x_BLD: dtype[B, L, D], split by rows, first of all over the stages.
      rows: tree of arrays [B, L] that `layers` reads beside x; no gradient goes to them.
      key: for dropout; each micro-batch in each group gets its own.
      plan: from `schedule`.
      rules: logical-axis table.

    Returns:
      (x [B, L, D], reports [n, ...] summed over micro-batches)

    Raises:
      ConfigError: the rows cannot be split so; all else, `fit.check_fit` has checked.
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

    def local(own: jax.Array, params: Any, x_BLD: jax.Array, rows: Any, key: Any) -> tuple[jax.Array, Any]:
        groups = _round_robin(params, own[0], plan, axis)
        slots = plan.microbatches // plan.stages
        everywhere = lambda x: jax.lax.all_gather(_slots(x, slots)[None], axis, tiled=True)  # [S, b, slots, L]
        groups, rows = checkpoint_name((groups, jax.tree.map(everywhere, rows)), _KEPT)
        key = None if key is None else key[0]
        out, reports = _loop(layers, own[0], groups, _slots(x_BLD, slots), rows, key, plan, axis)
        return _unslot(out), jax.tree.map(lambda x: x[:, None], reports)

    key = None if key is None else key[None]
    out_specs = jax.typeof(x_BLD).sharding.spec, P(None, axis)
    # Nested shard_maps have no gradient with a check; nothing whole on all stages has one here.
    local = jax.checkpoint(local, policy=jax.checkpoint_policies.save_only_these_names(_KEPT), prevent_cse=False)
    x_BLD, reports = mesh.map_over_axes({axis}, local, (mesh.axis_indices(axis), params, x_BLD, rows, key), out_specs)
    # [repeats, S, layers of a group, ...], which is the order of the layers.
    in_order = lambda x: jax.sharding.reshard(x, P()).reshape(n_layers, *x.shape[3:])
    return x_BLD, jax.tree.map(in_order, reports)


def _loop(
    layers: Layers, stage: jax.Array, groups: Any, x_bjLD: jax.Array, rows: Any, key: jax.Array | None,
    plan: Schedule, axis: str,
) -> tuple[jax.Array, Any]:  # fmt: skip
    """The iterations of one stage, on its own groups [repeats, layers, ...] and slots of x and of all rows."""
    S = plan.stages
    up = [(s, (s + 1) % S) for s in range(S)]
    down = [(s, (s - 1) % S) for s in range(S)]

    @jax.checkpoint
    def work(groups: Any, x_bLD: jax.Array, rows: Any, key: jax.Array | None, u: jax.Array) -> tuple[jax.Array, Any]:
        turn = _round(u, plan)
        block, place = u // plan.block, u % S
        rows = jax.tree.map(lambda x: _at(_at(x, place, 0), block, 1), rows)
        group = jax.tree.map(lambda w: _at(w, turn, 0), groups)
        if key is not None:
            key = jax.random.fold_in(jax.random.fold_in(key, turn * S + stage), block * S + place)
        return layers(group, x_bLD, rows, key)

    def iteration(carry: tuple, t: jax.Array) -> tuple[tuple, None]:
        state, feed, drain, out, totals = carry
        u = t - stage
        busy = (u >= 0) & (u < plan.microbatches * plan.repeats)
        u = jnp.clip(u, 0, plan.microbatches * plan.repeats - 1)

        slot = jnp.minimum(t // plan.block, x_bjLD.shape[1] - 1)
        feed = jnp.where(t % plan.block == 0, _at(x_bjLD, slot, 1), feed)
        x_bLD = jnp.where((stage == 0) & (_round(u, plan) == 0), feed, state)
        x_bLD = checkpoint_name(jnp.where(busy, x_bLD, 0), _KEPT)
        y_bLD, reports = work(groups, x_bLD, rows, key, u)
        add = lambda total, new: total.at[_round(u, plan)].add(jnp.where(busy, new, 0))
        totals = jax.tree.map(add, totals, reports)

        drain = jnp.where(stage == S - 1, y_bLD, jax.lax.ppermute(drain, axis, down))
        # When the last micro-batch of a block is done, those before it have come down to their stages.
        done = t - (S - 1)
        slot = jnp.maximum(done, 0) // plan.block
        whole = (done >= 0) & (done % plan.block == plan.block - 1)
        new = jnp.where(whole, drain, _at(out, slot, 1))
        out = jax.lax.dynamic_update_index_in_dim(out, new, slot, 1)
        state, feed = jax.lax.ppermute(y_bLD, axis, up), jax.lax.ppermute(feed, axis, down)
        return (state, feed, drain, out, totals), None

    nothing = jnp.zeros_like(x_bjLD[:, 0])
    _, reports = jax.eval_shape(work, groups, nothing, rows, key, stage)
    totals = jax.tree.map(lambda x: jnp.zeros((plan.repeats, *x.shape), x.dtype), reports)
    carry = (nothing, nothing, nothing, jnp.zeros_like(x_bjLD), totals)
    (*_, out, totals), _ = jax.lax.scan(iteration, carry, jnp.arange(plan.iterations))
    return out, totals


def _round(u: jax.Array, plan: Schedule) -> jax.Array:
    """Which of its groups a stage works on."""
    return u % plan.block // plan.stages


def _round_robin(params: Any, stage: jax.Array, plan: Schedule, axis: str) -> Any:
    """A stage's share of the layers in order -> its groups, [repeats, layers of a group, ...].

    Parameters, their optimizer state and checkpoints are in the order of the layers, so
    that they mean the same on every mesh: stage s holds groups s·repeats, s·repeats + 1,
    ... With one repeat these are its own. Otherwise each group moves to stage g % S
    before the loop, and its gradient back after it, each weight once in a step.
    """
    S, n = plan.stages, plan.repeats
    held = jax.tree.map(lambda w: w.reshape(n, -1, *w.shape[1:], out_sharding=_lead(w, None)), params)
    if n == 1:
        return held
    common = math.gcd(n, S)
    groups = jax.tree.map(jnp.zeros_like, held)
    for k in range(n):
        # One group of every stage, chosen so that no two go to the same: those of the stages of one
        # stretch of S / common differ by multiples of `common`, and each stretch begins at another.
        sent = [(k + s // (S // common)) % n for s in range(S)]
        moves = [(s, (s * n + i) % S) for s, i in enumerate(sent)]
        into = dict(zip((to for _, to in moves), ((s * n + i) // S for s, i in enumerate(sent)), strict=True))
        i, j = jnp.asarray(sent)[stage], jnp.asarray([into[s] for s in range(S)])[stage]
        stay = all(s == to for s, to in moves)
        send = (lambda w: w) if stay else (lambda w, moves=moves: jax.lax.ppermute(w, axis, moves))
        move = lambda w, i=i, send=send: send(_at(w, i, 0))
        put = lambda all_, w, j=j: jax.lax.dynamic_update_index_in_dim(all_, w, j, 0)
        groups = jax.tree.map(put, groups, jax.tree.map(move, held))
    return groups


def _slots(x: jax.Array, slots: int) -> jax.Array:
    """[rows, ...] -> [rows of a micro-batch, slots, ...]; no row leaves its device."""
    spec = jax.typeof(x).sharding.spec
    return x.reshape(x.shape[0] // slots, slots, *x.shape[1:], out_sharding=P(spec[0], None, *spec[1:]))


def _unslot(x: jax.Array) -> jax.Array:
    spec = jax.typeof(x).sharding.spec
    return x.reshape(-1, *x.shape[2:], out_sharding=P(spec[0], *spec[2:]))


def _lead(x: jax.Array, axis: str | None) -> P:
    """The sharding of x with one more dimension in front."""
    return P(axis, *jax.typeof(x).sharding.spec)


def _at(x: jax.Array, index: jax.Array, axis: int) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(x, index, axis, keepdims=False)
