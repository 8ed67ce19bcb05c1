"""Training that is bit-equal on 2, 4 and 8 devices, to tell a bug from rounding.

Sums of floating-point numbers depend on their order, and the order on how many devices
there are. Here the batch is always cut into eight shards. The gradients of each are
computed by themselves, by the same program on whole parameters, and summed as the same
binary tree, whichever device they come from. The rest of the step, with its norms, runs
on whole arrays on every device. It costs what splitting saves: each device holds all
parameters, the optimizer's state and up to eight gradients during the step; between
steps they lie as always. Evaluation is not covered.

A program for one device is compiled without XLA's partitioner, and so may be simplified
in another order. With stacked layers and without rematerialisation it came out bit-equal
as well; with `model.scan = False` or `model.remat = 'full'` it was off by rounding.
"""

from collections.abc import Callable
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec

from llm_jax import mesh as mesh_lib
from llm_jax.schema import Config, ConfigError

SHARDS = 8

Gradients = Callable[[Any, jax.Array, jax.Array | None], Any]


def check(config: Config, sizes: dict[str, int]) -> None:
    """Whether the experiment can be trained so on a mesh of these sizes.

    Raises:
      ConfigError: naming the field, its value and what would work.
    """
    train = config.train
    parts = math.prod(sizes[axis] for axis in mesh_lib.mesh_axes(dict(config.model.rules)['batch']))
    others = {axis: n for axis, n in sizes.items() if n > 1 and axis not in ('data', 'fsdp')}
    wrong = {
        f'mesh {mesh_lib.written(others)} splits what must be summed in one order; use the axes data and fsdp': others,
        f'mesh {mesh_lib.written(sizes)} splits the batch into {parts}, which must divide {SHARDS}': SHARDS % parts,
        f'train.batch_size = {train.batch_size} must be a multiple of {SHARDS}': train.batch_size % SHARDS,
        f'train.grad_accumulation = {train.grad_accumulation} must be 1: the {SHARDS} shards are computed one '
        'after another on each device already': train.grad_accumulation != 1,
        'optimizer.offload must be False': config.optimizer.offload,
    }
    for message, is_so in wrong.items():
        if is_so:
            raise ConfigError(f'train.reproducible = True: {message}')


def over_shards(gradients: Gradients, rules: tuple) -> Gradients:
    """`gradients`, a sum over rows, as the tree of sums over the shards; to be called within `on_whole_arrays`."""

    def summed(params: Any, tokens: jax.Array, key: jax.Array | None) -> Any:
        sizes = jax.sharding.get_abstract_mesh().shape
        axes = tuple(axis for axis in mesh_lib.mesh_axes(dict(rules)['batch']) if sizes.get(axis, 1) > 1)
        n_local = SHARDS // mesh_lib.batch_shards(rules)
        first = jax.lax.axis_index(axes) * n_local if axes else 0

        def one(shard: tuple[jax.Array, jax.Array]) -> Any:
            index, rows = shard
            part_key = None if key is None else jax.random.fold_in(key, index)
            # Fused with nothing around it, it is the same program in a loop of one turn and of eight.
            with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):
                part = gradients(*jax.lax.optimization_barrier((params, rows)), part_key)
            return jax.lax.optimization_barrier(part)

        rows = tokens.reshape(n_local, tokens.shape[0] // n_local, -1)
        total = _tree_sum(jax.lax.map(one, (first + jnp.arange(n_local), rows)))
        if axes:
            total = _tree_sum(jax.lax.all_gather(total, axes))
        return jax.lax.optimization_barrier(total)

    return summed


def on_whole_arrays(step: Callable[[Any, jax.Array], Any], rules: tuple) -> Callable[[Any, jax.Array], Any]:
    """`step(state, tokens) -> (state, metrics)`, on every device with the whole state and its own rows."""

    def everywhere(state: Any, tokens: jax.Array) -> Any:
        if jax.sharding.get_abstract_mesh().empty:
            return step(state, tokens)
        whole = jax.tree.map(lambda x: jax.sharding.reshard(x, PartitionSpec()), state)
        in_specs, out_specs = (PartitionSpec(), mesh_lib.spec(rules, ('batch', None))), PartitionSpec()
        same = lambda *args: jax.lax.optimization_barrier(step(*args))
        # That all devices come to the same result is what this is about; types cannot show it.
        new, metrics = jax.shard_map(same, in_specs=in_specs, out_specs=out_specs, check_vma=False)(whole, tokens)
        as_before = lambda x, old: jax.sharding.reshard(x, jax.typeof(old).sharding.spec)
        return jax.tree.map(as_before, new, state), metrics

    return everywhere


def _tree_sum(parts: Any) -> Any:
    """[n, ...] -> [...], n a power of two: neighbours first, then neighbouring pairs."""

    def one(leaf: jax.Array) -> jax.Array:
        while len(leaf) > 1:
            leaf = leaf[0::2] + leaf[1::2]
        return leaf[0]

    return jax.tree.map(one, parts)
