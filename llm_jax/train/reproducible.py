"""Training that is bit-equal on 1, 2, 4 and 8 devices, to tell a bug from rounding.

Sums of floating-point numbers depend on their order, and the order on how many devices
there are. Here the batch is always cut into eight shards. The gradients of each are
computed by themselves on whole parameters, and summed as the same binary tree, whichever
device they come from; then every device takes the whole step.

All that is computed is in two programs for a single device, which are run on one after the
other; between them arrays are only moved. Inside a larger program it would not do: what
stands around a computation decides how the compiler simplifies it. (XLA's partitioner,
which only programs for several devices go through, first joins equal subexpressions, and
algebraic simplification then finds other ones: with unrolled layers or rematerialisation
the gradients were off by rounding between one device and two, barriers or not.)

It costs what splitting saves: during a step each device holds all parameters, the
optimizer's state and the eight gradients; between steps they lie as always. The programs
are compiled once per device. Evaluation is not covered. Results are equal among devices of
one kind: another chip, or a CPU with other instructions, multiplies in another order.
"""

from collections.abc import Callable
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np
import optax

from llm_jax.config.schema import Config, ConfigError
from llm_jax.dist import mesh as mesh_lib
from llm_jax.train.objectives import Objective, Sums
from llm_jax.train.state import State
from llm_jax.train.step import Metrics, Schedule, dropout_key, sum_gradients, update_state

SHARDS = 8


def before_devices() -> None:
    """To be called before JAX looks for devices.

    XLA cuts a matrix product on CPU by the number of its threads: that of the cores or of
    the devices, whichever is larger. So they are made as many for every number of devices.
    """
    os.environ.setdefault('PJRT_NPROC', str(SHARDS))


def check(config: Config, sizes: dict[str, int]) -> None:
    """Checks that the experiment can be trained so on a mesh of these sizes.

    Raises:
      ConfigError: naming the field, its value and what would work.
    """
    train = config.train
    parts = math.prod(sizes[axis] for axis in mesh_lib.mesh_axes(dict(config.model.rules)['batch']))
    others = {axis: n for axis, n in sizes.items() if n > 1 and axis not in ('data', 'fsdp')}
    wrong = {
        f'mesh {mesh_lib.format_sizes(others)} splits what must be summed in one order; '
        'use the axes data and fsdp': others,
        f'mesh {mesh_lib.format_sizes(sizes)} splits the batch into {parts}, which must divide {SHARDS}': SHARDS
        % parts,
        f'train.batch_size = {train.batch_size} must be a multiple of {SHARDS}': train.batch_size % SHARDS,
        f'train.grad_accumulation = {train.grad_accumulation} must be 1: the {SHARDS} shards are computed one '
        'after another on each device already': train.grad_accumulation != 1,
        'optimizer.offload must be False': config.optimizer.offload,
    }
    for message, is_so in wrong.items():
        if is_so:
            raise ConfigError(f'train.reproducible = True: {message}')


def check_objective(objective: Objective, frozen: Any) -> None:
    """Checks that the shards of a batch can be computed by themselves.

    Args:
      objective: of the run.
      frozen: parameters that are not trained, or None.

    Raises:
      ConfigError: naming the field, its value and what would work.
    """
    train, kind = objective.config.train, type(objective)
    if kind.add_statistics is not Objective.add_statistics or len(jax.tree.leaves(objective.step_shapes())) != 1:
        raise ConfigError(
            f'train.reproducible = True: train.objective = {train.objective!r} must take one array of rows, and '
            'nothing over the whole batch, whose shards are computed by themselves; set train.reproducible = False'
        )
    if frozen is not None:
        raise ConfigError(
            f'train.reproducible = True: train.trainable = {train.trainable!r} must be ".*"; set one of the two'
        )


def make_train_step(
    objective: Objective, optimizer: optax.GradientTransformation, schedule: Schedule
) -> Callable[[State, jax.Array], tuple[State, Metrics]]:
    """`step(state, rows) -> (state, metrics)`: not to be jitted, as it calls what is."""

    def gradients(state: State, rows: jax.Array, index: jax.Array) -> tuple[Any, Sums]:
        key = dropout_key(objective.config, state.step)
        shard_key = None if key is None else jax.random.fold_in(key, index)
        return sum_gradients(objective, state.params, None, objective.make_batch(rows), shard_key)

    def update(state: State, summed: tuple[Any, Sums]) -> tuple[State, Metrics]:
        return update_state(objective, optimizer, schedule, state, None, *summed)

    return make_step(gradients, update)


def make_step(
    gradients: Callable[[Any, jax.Array, jax.Array], Any], update: Callable[[Any, Any], tuple[Any, Any]]
) -> Callable[[Any, jax.Array], tuple[Any, Any]]:
    """`step(state, tokens int[B, L+1]) -> (state, metrics)`: not to be jitted, as it calls what is.

    Args:
      gradients: `(state, tokens int[B/8, L+1], index of the shard) -> sums over its rows`.
      update: `(state, those sums over the batch) -> (state, metrics)`.
    """
    one = jax.jit(gradients)
    new = jax.jit(lambda state, sums: update(state, _tree_sum(sums)))
    cut = jax.jit(jnp.split, static_argnums=1)
    stack = jax.jit(lambda *parts: jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts))

    def step(state: Any, tokens: jax.Array) -> tuple[Any, Any]:
        with_mesh = isinstance(tokens.sharding, NamedSharding)
        mesh = tokens.sharding.mesh if with_mesh else _mesh_of(tokens.device)
        by_rows = NamedSharding(mesh, PartitionSpec(*tokens.sharding.spec[:1]) if with_mesh else PartitionSpec())
        everywhere = NamedSharding(mesh, PartitionSpec())

        states = _on_each(jax.device_put(state, everywhere))
        sums, news = {}, {}
        for rows in tokens.addressable_shards:
            n, first = (SHARDS * k // len(tokens) for k in (len(rows.data), rows.index[0].start or 0))
            with jax.set_mesh(_mesh_of(rows.device)):
                indices = [jax.device_put(np.int32(first + i), rows.device) for i in range(n)]
                shards = zip(cut(rows.data, n), indices, strict=True)
                sums[rows.device] = stack(*(one(states[rows.device], *shard) for shard in shards))
        summands = _global(sums, by_rows, lambda shape: (SHARDS, *shape[1:]))
        for device, parts in _on_each(jax.device_put(summands, everywhere)).items():
            with jax.set_mesh(_mesh_of(device)):
                news[device] = new(states[device], parts)
        result, metrics = _global(news, everywhere, lambda shape: shape)
        return jax.device_put(result, jax.tree.map(lambda leaf: leaf.sharding, state)), metrics

    return step


def _mesh_of(device: jax.Device) -> Mesh:
    """A mesh of this device alone."""
    axes = mesh_lib.AXES
    return Mesh(np.array(device).reshape((1,) * len(axes)), axes, (AxisType.Explicit,) * len(axes))


def _on_each(tree: Any) -> dict[jax.Device, Any]:
    """What each device of this process holds of a tree."""
    leaves, structure = jax.tree.flatten(tree)
    held = [{shard.device: shard.data for shard in leaf.addressable_shards} for leaf in leaves]
    return {device: structure.unflatten([parts[device] for parts in held]) for device in held[0]}


def _global(parts: dict[jax.Device, Any], sharding: NamedSharding, shape: Callable[[tuple], tuple]) -> Any:
    """The inverse of `_on_each`; `shape` tells that of an array from that of a part."""
    whole = lambda *leaves: jax.make_array_from_single_device_arrays(shape(leaves[0].shape), sharding, leaves)
    return jax.tree.map(whole, *parts.values())


def _tree_sum(parts: Any) -> Any:
    """[n, ...] -> [...], n a power of two: neighbours first, then neighbouring pairs."""

    def one(leaf: jax.Array) -> jax.Array:
        while len(leaf) > 1:
            leaf = leaf[0::2] + leaf[1::2]
        return leaf[0]

    return jax.tree.map(one, parts)
