"""The device mesh, and the table of rules that maps logical axes to mesh axes.

Weights and activations carry *logical* axis names ('d_model', 'heads', 'batch', ...);
`mesh.rules` of the config maps each to a mesh axis. The mesh is in explicit mode
(`jax.sharding.AxisType.Explicit`): an array's sharding is part of its type, so that
`jax.eval_shape` shows the sharding of everything and nothing is resharded implicitly.
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
# The logical axes of the residual stream [B, L, D].
STREAM = ('batch', 'residual_length', 'residual')


def axis_sizes(config: schema.Mesh, n_devices: int) -> dict[str, int]:
    """Sizes of the mesh axes, with -1 filled in.

    Raises:
      ConfigError: the axes do not multiply to the number of devices.
    """
    sizes = {axis: getattr(config, axis) for axis in AXES}
    fixed = math.prod(n for n in sizes.values() if n != -1)
    if n_devices % fixed or (-1 not in sizes.values() and fixed != n_devices):
        if -1 in sizes.values():
            fix = f'without the -1 they multiply to {fixed}, which must divide {n_devices}'
        else:
            fix = f'the axes must multiply to {n_devices}; set one of them to -1 to take the rest'
        raise ConfigError(f'mesh = {format_sizes(sizes)} does not fit {n_devices} device(s): {fix}')
    return {axis: n_devices // fixed if n == -1 else n for axis, n in sizes.items()}


def device_count(config: schema.Mesh, asked: int | None) -> int:
    """Number of devices to lay a mesh over where none is needed: those that were asked for, else the fewest.

    Raises:
      ConfigError: the mesh does not fit so many.
    """
    fewest = math.prod(n for n in (getattr(config, axis) for axis in AXES) if n != -1)
    try:
        axis_sizes(config, asked or fewest)
    except ConfigError as error:
        raise ConfigError(f'--devices {asked}: {error}; --devices {fewest} fits') from error
    return asked or fewest


def format_sizes(sizes: Mapping[str, int]) -> str:
    """Formats axis sizes as 'data 1 × fsdp 4 × tensor 2'; the other axes are shown only where larger than 1."""
    shown = {axis: n for axis, n in sizes.items() if n != 1 or axis in ('data', 'fsdp', 'tensor')}
    return ' × '.join(f'{axis} {n}' for axis, n in shown.items())


def make_mesh(config: schema.Mesh, devices: list[jax.Device] | None = None) -> Mesh:
    """Makes the mesh of the config over `devices` (default: all of them).

    Several TPU slices are joined by the network of the data centre, which is slower than
    the links within a slice: axis `data` spans the slices, as it moves the least (one
    sum of the gradients per step), and all other axes stay within one.

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
    """Checks that axis `data` can span the TPU slices.

    Raises:
      ConfigError: its size is not a multiple of their number.
    """
    if sizes['data'] % n_slices:
        raise ConfigError(
            f'mesh.data = {sizes["data"]} cannot be split over {n_slices} TPU slices: it must be a multiple of '
            f'{n_slices} (e.g. {n_slices}), so that the other axes stay within a slice'
        )


def active_rules(rules: tuple, mesh: Mesh | AbstractMesh | None = None) -> dict[str, str | tuple[str, ...] | None]:
    """Restricts the rules to the axes that split something on a mesh (default: the current one).

    Axes of size 1 are left out, so that an array's type is the same with and without an axis
    that the experiment does not use. So are the manual axes of an enclosing `shard_map`: local
    arrays are already split over them.
    """
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    sizes, taken = dict(mesh.shape), getattr(mesh, 'manual_axes', ())
    table = {}
    for logical, entry in rules:
        used = tuple(axis for axis in mesh_axes(entry) if sizes.get(axis, 1) > 1 and axis not in taken)
        table[logical] = spec_entry(used)
    return table


def spec(rules: tuple, axes: tuple[str | None, ...]) -> PartitionSpec | None:
    """PartitionSpec of an array with these logical axes on the current mesh; None without a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return None
    table = active_rules(rules)
    return PartitionSpec(*(None if axis is None else table[axis] for axis in axes))


def shard(x: jax.Array, rules: tuple, axes: tuple[str | None, ...]) -> jax.Array:
    """Reshards `x` by its logical axes on the current mesh; returns `x` itself without a mesh."""
    out = spec(rules, axes)
    return x if out is None else jax.sharding.reshard(x, out)


def shard_count(rules: tuple, axis: str) -> int:
    """Number of shards of a logical axis on the current mesh; 1 without a mesh."""
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    return math.prod(sizes.get(name, 1) for name in mesh_axes(dict(rules)[axis])) if sizes else 1


def batch_shard_count(rules: tuple) -> int:
    """Number of shards of a batch on the current mesh; 1 without a mesh."""
    return shard_count(rules, 'batch')


def stage_axis(rules: tuple, mesh: Mesh | AbstractMesh | None = None) -> str | None:
    """Mesh axis over which the layers are split (on the current mesh by default), or None."""
    return active_rules(rules, mesh)['layers'] if rules else None


def split_stack(stack: jax.Array, rules: tuple) -> jax.Array:
    """Reshards parameters of layers, [n, ...], so that the layers are split over the stages of the current mesh."""
    axis = stage_axis(rules)
    return jax.sharding.reshard(stack, PartitionSpec(axis, *jax.typeof(stack).sharding.spec[1:])) if axis else stack


def take_layer(stack: jax.Array, index: int) -> jax.Array:
    """Takes one layer's parameters out of a stack [n, ...] and replicates them on all stages."""
    split = jax.typeof(stack).sharding.spec
    if not split or split[0] is None:
        return stack[index]

    def broadcast_layer(stack: jax.Array) -> jax.Array:
        stage, row = divmod(index, stack.shape[0])
        is_owner = jax.lax.axis_index(split[0]) == stage
        return jax.lax.psum(jnp.where(is_owner, stack[row], 0), split[0])

    return jax.shard_map(broadcast_layer, in_specs=split, out_specs=PartitionSpec(*split[1:]))(stack)


def axis_indices(axis: str) -> jax.Array:
    """int32[n], the index of each device along an axis of the current mesh, split over that axis.

    Replaces `jax.lax.axis_index`, which is not always available in a `shard_map` over only some axes.
    """
    n = jax.sharding.get_abstract_mesh().shape[axis]
    return jax.sharding.reshard(jnp.arange(n), PartitionSpec(axis))


def map_over_axes(names: Collection[str], body: Callable[..., Any], args: tuple, out_specs: tuple) -> Any:
    """`jax.shard_map` over some axes of the current mesh; over the others arrays keep their shardings.

    A plain `shard_map` over some axes of an explicit mesh all-gathers its arguments and
    results over all others: JAX lowers its specs, which name only those axes, as the whole
    sharding. So the other axes are automatic where arrays enter and leave, and explicit again
    within `body`. `jax.sharding.explicit_axes` has no gradient in there, unless `body` is a
    checkpoint.

    Args:
      names: mesh axes to map over.
      body: function of arrays whose types have the mesh without these axes.
      args: trees of arrays; their shardings are read from their types.
      out_specs: shardings of the results on the whole mesh.
    """
    others = tuple(name for name in jax.sharding.get_abstract_mesh().axis_names if name not in names)
    restrict = lambda spec, names: PartitionSpec(*(keep_axes(entry, names) for entry in spec))
    arg_specs = lambda names: jax.tree.map(lambda x: restrict(jax.typeof(x).sharding.spec, names), args)
    inner = jax.sharding.explicit_axes(body, axes=others, in_sharding=arg_specs(others))
    mapped = jax.shard_map(
        inner,
        in_specs=arg_specs(names),
        out_specs=jax.tree.map(lambda spec: restrict(spec, names), out_specs),
        axis_names={*names},
        check_vma=False,
    )
    return jax.sharding.auto_axes(mapped, axes=others, out_sharding=out_specs)(*args)


def keep_axes(entry: str | tuple[str, ...] | None, names: Collection[str]) -> str | tuple[str, ...] | None:
    """Restricts one entry of a PartitionSpec to these mesh axes."""
    return spec_entry(tuple(name for name in mesh_axes(entry) if name in names))


def varying_axes(x: jax.Array) -> frozenset[str]:
    """Manual axes of the enclosing `shard_map` over which `x` varies."""
    return jax.typeof(x).manual_axis_type.varying


def mark_varying(x: jax.Array, axes: Collection[str]) -> jax.Array:
    """Casts `x` to vary over more axes of the enclosing `shard_map`; its gradient is summed over these."""
    more = tuple(sorted(set(axes) - varying_axes(x)))
    return jax.lax.pcast(x, more, to='varying') if more else x


def whole_rows(rules: tuple) -> tuple:
    """Rules under which rows are whole, for decoding: the mesh axes of the length split the batch instead."""
    table = dict(rules)
    batch = tuple(dict.fromkeys((*mesh_axes(table['batch']), *mesh_axes(table['length']))))
    return tuple((table | {'batch': batch, 'length': None, 'residual_length': None}).items())


def platform() -> str:
    """Platform that the current program is compiled for: 'cpu', 'cuda', 'rocm', 'tpu', ...

    It is the platform of the current mesh's devices, which need not be attached: a program
    for a TPU can be compiled ahead of time on any machine. A mesh without devices gives ''.
    """
    mesh = jax.sharding.get_abstract_mesh()
    device = jax.devices()[0] if mesh.empty else mesh.abstract_device
    if device is None:
        return ''
    if device.platform != 'gpu':
        return device.platform
    return 'cuda' if 'nvidia' in device.device_kind.lower() else 'rocm'


def batch_sharding(mesh: Mesh, rules: tuple) -> NamedSharding:
    """Sharding of token batches [B, ...] on the mesh: split by rows."""
    return NamedSharding(mesh, PartitionSpec(active_rules(rules, mesh)['batch']))


def local_rows(sharding: NamedSharding, batch_size: int) -> np.ndarray:
    """Indices of the rows of the global batch that this process's devices hold, ascending."""
    rows = np.zeros(batch_size, bool)
    for index in sharding.addressable_devices_indices_map((batch_size,)).values():
        rows[index[0]] = True
    return np.flatnonzero(rows)


def global_batch(local: np.ndarray, rows: np.ndarray, sharding: NamedSharding, batch_size: int) -> jax.Array:
    """Makes a global array [batch_size, ...] from the rows that this process read.

    Args:
      local: [len(rows), ...], the rows listed by `local_rows`.
      rows: indices of these rows in the global batch.
      sharding: from `batch_sharding`.
      batch_size: rows of the global batch.
    """

    def read(index: tuple[slice, ...]) -> np.ndarray:
        wanted = np.arange(batch_size)[index[0]]
        return local[np.searchsorted(rows, wanted)]

    return jax.make_array_from_callback((batch_size, *local.shape[1:]), sharding, read)


def mesh_axes(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Mesh axes of one entry of the rules table, or of a PartitionSpec, as a tuple."""
    if axes is None:
        return ()
    return (axes,) if isinstance(axes, str) else tuple(axes)


def spec_entry(axes: tuple[str, ...]) -> str | tuple[str, ...] | None:
    """Entry of a PartitionSpec for these mesh axes, the inverse of `mesh_axes`."""
    if len(axes) > 1:
        return axes
    return axes[0] if axes else None
