"""The device mesh, and the table that says what is split over it.

Weights and activations carry *logical* axis names ('d_model', 'heads', 'batch', ...);
`mesh.rules` of the config maps each to a mesh axis. The mesh is in explicit mode
(`jax.sharding.AxisType.Explicit`): an array's sharding is part of its type, so that
`jax.eval_shape` shows where everything lies and nothing is resharded unasked.
"""

from collections.abc import Callable, Collection, Mapping
import math
from typing import Any

import jax
from jax.experimental import mesh_utils
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from llm_jax.config import schema
from llm_jax.config.schema import ConfigError

# From the slowest links to the fastest: neighbours in the last axis are neighbours in the network.
AXES = ('data', 'stage', 'fsdp', 'expert', 'context', 'tensor')
# The logical axes of a batch of tokens [B, L].
TOKENS = ('batch', 'length')
# Those of the residual stream [B, L, D].
STREAM = ('batch', 'residual_length', 'residual')


def axis_sizes(config: schema.Mesh, n_devices: int) -> dict[str, int]:
    """Mesh axis -> size, with -1 filled in.

    Raises:
      ConfigError: the axes do not multiply to the number of devices.
    """
    sizes = {axis: getattr(config, axis) for axis in AXES}
    fixed = math.prod(n for n in sizes.values() if n != -1)
    if n_devices % fixed or (-1 not in sizes.values() and fixed != n_devices):
        fix = (
            f'without the -1 they multiply to {fixed}, which must divide {n_devices}'
            if -1 in sizes.values()
            else f'the axes must multiply to {n_devices}; set one of them to -1 to take the rest'
        )
        raise ConfigError(f'mesh = {written(sizes)} does not fit {n_devices} device(s): {fix}')
    return {axis: n_devices // fixed if n == -1 else n for axis, n in sizes.items()}


def written(sizes: Mapping[str, int]) -> str:
    """'data 1 × fsdp 4 × tensor 2', and the other axes where they are used."""
    shown = {axis: n for axis, n in sizes.items() if n != 1 or axis in ('data', 'fsdp', 'tensor')}
    return ' × '.join(f'{axis} {n}' for axis, n in shown.items())


def make_mesh(config: schema.Mesh, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh of the config over `devices` (default: all of them).

    Several TPU slices are joined by the network of the data centre, which is slower than
    the links within a slice: axis `data` goes over the slices, as it moves the least (one
    sum of the gradients a step), and all others stay within one.

    Raises:
      ConfigError: the axes do not multiply to the number of devices, or `data` cannot be
        split over the slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = axis_sizes(config, len(devices))
    shape, n_slices = tuple(sizes.values()), len({getattr(device, 'slice_index', 0) for device in devices})
    if n_slices == 1:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        check_slices(sizes, n_slices)
        inner, outer = (sizes['data'] // n_slices, *shape[1:]), (n_slices, *(1 for _ in shape[1:]))
        grid = mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def check_slices(sizes: Mapping[str, int], n_slices: int) -> None:
    """Raises: ConfigError: axis `data` cannot be split over so many TPU slices."""
    if sizes['data'] % n_slices:
        raise ConfigError(
            f'mesh.data = {sizes["data"]} cannot be split over {n_slices} TPU slices: it must be a multiple of '
            f'{n_slices} (e.g. {n_slices}), so that the other axes lie within a slice'
        )


def current(rules: tuple, mesh: Mesh | AbstractMesh | None = None) -> dict[str, str | tuple[str, ...] | None]:
    """The rules as they hold on a mesh (default: the current one): axes of a single device split nothing.

    So an array's type is the same with and without an axis that the experiment does not use.
    Nor does an axis that a `shard_map` around has taken: what is there is already split.
    """
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    sizes, taken = dict(mesh.shape), getattr(mesh, 'manual_axes', ())
    table = {}
    for logical, entry in rules:
        used = tuple(axis for axis in mesh_axes(entry) if sizes.get(axis, 1) > 1 and axis not in taken)
        table[logical] = used if len(used) > 1 else used[0] if used else None
    return table


def spec(rules: tuple, axes: tuple[str | None, ...]) -> PartitionSpec | None:
    """The sharding of an array with these logical axes on the current mesh; None without one."""
    if jax.sharding.get_abstract_mesh().empty:
        return None
    table = current(rules)
    return PartitionSpec(*(None if axis is None else table[axis] for axis in axes))


def shard(x: jax.Array, rules: tuple, axes: tuple[str | None, ...]) -> jax.Array:
    """`x` laid out by its logical axes on the current mesh; `x` itself without one."""
    out = spec(rules, axes)
    return x if out is None else jax.sharding.reshard(x, out)


def shards(rules: tuple, axis: str) -> int:
    """Into how many pieces the current mesh splits a logical axis; 1 without a mesh."""
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    return math.prod(sizes.get(name, 1) for name in mesh_axes(dict(rules)[axis])) if sizes else 1


def batch_shards(rules: tuple) -> int:
    """Into how many pieces the current mesh splits a batch; 1 without a mesh."""
    return shards(rules, 'batch')


def stage_axis(rules: tuple, mesh: Mesh | AbstractMesh | None = None) -> str | None:
    """The axis of the current mesh that the layers are split over, if there is one."""
    return current(rules, mesh)['layers'] if rules else None


def split_stack(stack: jax.Array, rules: tuple) -> jax.Array:
    """Parameters of layers, [n, ...], with the layers split over the stages of the current mesh."""
    axis = stage_axis(rules)
    return jax.sharding.reshard(stack, PartitionSpec(axis, *jax.typeof(stack).sharding.spec[1:])) if axis else stack


def take(stack: jax.Array, index: int) -> jax.Array:
    """One layer's parameters out of [n, ...], wherever they are: on all stages."""
    split = jax.typeof(stack).sharding.spec
    if not split or split[0] is None:
        return stack[index]

    def held(stack: jax.Array) -> jax.Array:
        stage, place = divmod(index, stack.shape[0])
        here = jax.lax.axis_index(split[0]) == stage
        return jax.lax.psum(jnp.where(here, stack[place], 0), split[0])

    return jax.shard_map(held, in_specs=split, out_specs=PartitionSpec(*split[1:]))(stack)


def numbers(axis: str) -> jax.Array:
    """0, 1, ... along an axis of the current mesh, one on each device.

    For a `shard_map` over some of the axes: `jax.lax.axis_index` is not always to be had there.
    """
    n = jax.sharding.get_abstract_mesh().shape[axis]
    return jax.sharding.reshard(jnp.arange(n), PartitionSpec(axis))


def over(names: Collection[str], body: Callable[..., Any], args: tuple, out_specs: tuple) -> Any:
    """`body` on the parts of `args` that lie along some axes of the current mesh; over the others they lie as ever.

    A `shard_map` over some axes of an explicit mesh gathers what enters and leaves it over all others: JAX lowers its
    specs, which know of those axes alone, as all there is to know. So its border is crossed with the other axes as
    automatic ones, and only what is in `body` has them in its types. Through it `explicit_axes` has no gradient,
    unless `body` is a checkpoint.

    Args:
      names: of the axes.
      body: of arrays whose types have the mesh without them.
      args: trees of arrays whose types say how they lie.
      out_specs: of what `body` gives, on the whole mesh.
    """
    others = tuple(name for name in jax.sharding.get_abstract_mesh().axis_names if name not in names)
    keep = lambda names: lambda x: PartitionSpec(*(only(entry, names) for entry in jax.typeof(x).sharding.spec))
    own = lambda spec: PartitionSpec(*(only(entry, names) for entry in spec))
    inner = jax.sharding.explicit_axes(body, axes=others, in_sharding=jax.tree.map(keep(others), args))
    mapped = jax.shard_map(
        inner, in_specs=jax.tree.map(keep(names), args), out_specs=jax.tree.map(own, out_specs), axis_names={*names},
        check_vma=False,
    )  # fmt: skip
    return jax.sharding.auto_axes(mapped, axes=others, out_sharding=out_specs)(*args)


def only(entry: str | tuple[str, ...] | None, names: Collection[str]) -> str | tuple[str, ...] | None:
    """Of what a dimension is split over, these mesh axes."""
    axes = tuple(name for name in mesh_axes(entry) if name in names)
    return axes if len(axes) > 1 else axes[0] if axes else None


def differs(x: jax.Array) -> frozenset[str]:
    """The axes of a `shard_map` around over which `x` differs."""
    return jax.typeof(x).manual_axis_type.varying


def vary(x: jax.Array, axes: Collection[str]) -> jax.Array:
    """`x` as what may differ over some axes of a `shard_map` around, too: its gradient is summed over them here."""
    more = tuple(sorted(set(axes) - differs(x)))
    return jax.lax.pcast(x, more, to='varying') if more else x


def whole_rows(rules: tuple) -> tuple:
    """The rules of a program that reads tokens one by one: what split the length splits the batch instead."""
    table = dict(rules)
    batch = tuple(dict.fromkeys((*mesh_axes(table['batch']), *mesh_axes(table['length']))))
    return tuple((table | {'batch': batch, 'length': None, 'residual_length': None}).items())


def platform() -> str:
    """What the program at hand is compiled for: 'cpu', 'cuda', 'rocm', 'tpu', ...

    It is the platform of the current mesh's devices, which need not be here: a program
    for a TPU is compiled ahead of time on any machine. A mesh without devices gives ''.
    """
    mesh = jax.sharding.get_abstract_mesh()
    device = jax.devices()[0] if mesh.empty else mesh.abstract_device
    if device is None:
        return ''
    if device.platform != 'gpu':
        return device.platform
    return 'cuda' if 'nvidia' in device.device_kind.lower() else 'rocm'


def batch_sharding(mesh: Mesh, rules: tuple) -> NamedSharding:
    """How token batches [B, ...] lie on the mesh: split by rows."""
    return NamedSharding(mesh, PartitionSpec(current(rules, mesh)['batch']))


def local_rows(sharding: NamedSharding, batch_size: int) -> np.ndarray:
    """The rows of the global batch that this process's devices hold, ascending."""
    rows = np.zeros(batch_size, bool)
    for index in sharding.addressable_devices_indices_map((batch_size,)).values():
        rows[index[0]] = True
    return np.flatnonzero(rows)


def global_batch(local: np.ndarray, rows: np.ndarray, sharding: NamedSharding, batch_size: int) -> jax.Array:
    """A global array [batch_size, ...] from the rows that this process read.

    Args:
      local: [len(rows), ...], the rows that `local_rows` named.
      rows: their indices in the global batch.
      sharding: from `batch_sharding`.
      batch_size: rows of the global batch.
    """

    def read(index: tuple[slice, ...]) -> np.ndarray:
        wanted = np.arange(batch_size)[index[0]]
        return local[np.searchsorted(rows, wanted)]

    return jax.make_array_from_callback((batch_size, *local.shape[1:]), sharding, read)


def mesh_axes(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """One entry of the rules table as a tuple of mesh axes."""
    return () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)
