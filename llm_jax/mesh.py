"""The device mesh, and the table that says what is split over it.

Weights and activations carry *logical* axis names ('d_model', 'heads', 'batch', ...);
`mesh.rules` of the config maps each to a mesh axis. The mesh is in explicit mode
(`jax.sharding.AxisType.Explicit`): an array's sharding is part of its type, so that
`jax.eval_shape` shows where everything lies and nothing is resharded unasked.
"""

from collections.abc import Mapping
import math

import jax
from jax.experimental import mesh_utils
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from llm_jax import schema
from llm_jax.schema import Config, ConfigError

# From the slowest links to the fastest: neighbours in the last axis are neighbours in the network.
AXES = ('data', 'stage', 'fsdp', 'expert', 'context', 'tensor')
# Logical axes that some array has together: no mesh axis can split two of one array's.
_TOGETHER = (
    ('vocab', 'd_model'), ('position', 'd_model'), ('d_model', 'heads', 'd_head'),
    ('d_model', 'kv_heads', 'd_head'), ('experts', 'd_model', 'd_ff'), ('vocab', 'residual'), ('position', 'residual'),
    *(('batch', 'length', *rest) for rest in
      (('heads', 'd_head'), ('kv_heads', 'd_head'), ('d_ff',), ('vocab',))),
    ('batch', 'residual_length', 'residual'),
)  # fmt: skip
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


def check_fit(config: Config, sizes: dict[str, int]) -> None:
    """Checks that every split dimension divides, before anything is compiled.

    Args:
      config: the experiment.
      sizes: mesh axis -> size, from `axis_sizes`.

    Raises:
      ConfigError: naming the field, its value, and the axes that must divide it.
    """
    _check_rules(dict(config.model.rules))
    _check_pipeline(config, sizes)
    model, micro_batch = config.model, config.train.batch_size // config.train.grad_accumulation
    dimensions = [
        ('train.batch_size / train.grad_accumulation', micro_batch, 'batch'),
        ('model.d_model', model.d_model, 'd_model'),
        ('model.n_heads', model.n_heads, 'heads'),
        ('model.n_kv_heads', model.kv_heads, 'kv_heads'),
        ('model.d_ff', model.ff_size, 'd_ff'),
        ('model.vocab_size', model.vocab_size, 'vocab'),
        *_experts(model),
    ]
    batch = mesh_axes(dict(model.rules)['batch'])
    for axis in mesh_axes(dict(model.rules)['experts']):
        if sizes[axis] > 1 and axis not in batch and _experts(model):
            raise ConfigError(
                f'mesh.rules.experts = {axis!r} is an axis that does not split the batch (mesh.rules.batch = {batch}): '
                'tokens go to the devices of their experts from all of them. Add it to mesh.rules.batch'
            )
    for field, value, logical in dimensions:
        axes = [axis for axis in mesh_axes(dict(model.rules)[logical]) if sizes[axis] > 1]
        n = math.prod(sizes[axis] for axis in axes)
        if value % n:
            axes_text = ' × '.join(f'{axis} {sizes[axis]}' for axis in axes)
            raise ConfigError(
                f'{field} = {value} cannot be split over mesh {axes_text}: it must be a multiple of {n}. '
                f'Change it (e.g. to {math.ceil(value / n) * n}), the mesh, or mesh.rules.{logical}'
            )

    _check_length(config.data.seq_len, dict(model.rules), sizes)
    _check_split_rows(config, sizes)


def _check_length(length: int, rules: dict, sizes: dict[str, int]) -> None:
    used = lambda name: [axis for axis in mesh_axes(rules[name]) if sizes[axis] > 1]
    row, stream = used('length'), used('residual_length')
    if stream[: len(row)] != row:
        raise ConfigError(
            f'mesh.rules.residual_length = {rules["residual_length"]!r} must begin with the axes of '
            f'mesh.rules.length = {rules["length"]!r}: it may only split the residual stream further'
        )
    chunks = 2 * math.prod(sizes[axis] for axis in row) if row else 1
    n = math.lcm(chunks, math.prod(sizes[axis] for axis in stream))
    if length % n:
        why = ' (two chunks of each row on a device, so that causal attention is even)' if row else ''
        axes = ' × '.join(f'{axis} {sizes[axis]}' for axis in stream)
        raise ConfigError(
            f'data.seq_len = {length} cannot be split over mesh {axes}: it must be a multiple of {n}{why}. '
            f'Change it (e.g. to {math.ceil(length / n) * n}), the mesh, or mesh.rules.length'
        )


def _check_split_rows(config: Config, sizes: dict[str, int]) -> None:
    """Checks what cannot be had where devices share the tokens of a row (nn/product.py)."""
    model = config.model
    shared = [axis for axis in mesh_axes(dict(model.rules)['residual_length']) if sizes[axis] > 1]
    if not shared:
        return
    axes = ' × '.join(f'{axis} {sizes[axis]}' for axis in shared)
    if sizes['stage'] > 1:
        raise ConfigError(
            f'mesh stage {sizes["stage"]} cannot be combined with mesh {axes}, which splits rows '
            '(mesh.rules.residual_length): use stages with whole rows, or no stages'
        )


def _experts(model: schema.Model) -> list[tuple[str, int, str]]:
    """(field, value, logical axis) of the layers that are mixtures of experts."""
    layers = {layer for layer in map(model.layer, range(model.n_layers)) if layer.feed_forward == 'moe'}
    fields = [('model.moe.n_experts', layer.moe.n_experts, 'experts') for layer in layers]
    return fields + [('model.moe.d_ff', layer.moe.d_ff or layer.ff_size, 'd_ff') for layer in layers]


def _check_pipeline(config: Config, sizes: dict[str, int]) -> None:
    """Checks that layers and micro-batches can be split over the stages (nn/pipeline.py)."""
    model, rules, stages = config.model, dict(config.model.rules), sizes['stage']
    if rules['layers'] not in (None, 'stage'):
        raise ConfigError(f"mesh.rules.layers = {rules['layers']!r}: layers are split over 'stage', or None")
    if stages == 1 or not rules['layers']:
        return
    if mesh_axes(rules['batch'])[:1] != ('stage',):
        raise ConfigError(
            f"mesh.rules.batch = {rules['batch']!r} has to begin with 'stage' on mesh stage {stages}: "
            'outside of the pipeline the rows are split over the stages, too'
        )
    microbatches, repeats = model.pipeline
    size, n_first = max(1, len(model.pattern)), len(model.first_layers)
    n_stacked = (model.n_layers - n_first) // size
    if n_stacked % (stages * repeats) or not n_stacked:
        unit, first = (
            (f' patterns of {size}' if size > 1 else ' layers'),
            (f' after the first {n_first}' * (n_first > 0)),
        )
        fits = [n for n in range(2, n_stacked + 1) if n_stacked % (n * repeats) == 0]
        use = f'mesh.stage = {" or ".join(map(str, fits))}' if fits else 'mesh.stage = 1'
        n = -(-max(1, n_stacked) // (stages * repeats)) * stages * repeats
        raise ConfigError(
            f'model.n_layers = {model.n_layers} has {n_stacked}{unit}{first}, which cannot be split over mesh stage '
            f'{stages} × mesh.stage_repeats = {repeats}: it must be a multiple of {stages * repeats}. Use {use}, '
            f'or model.n_layers = {n_first + n * size}'
        )
    if microbatches % stages:
        fewer = 'fewer than' if microbatches < stages else 'no multiple of'
        raise ConfigError(
            f'mesh.stage_microbatches = {microbatches} is {fewer} mesh stage {stages}: the stages take micro-batches '
            f'in blocks of {stages}. Use {-(-microbatches // stages) * stages}, or 0 for one each'
        )
    rows = config.train.batch_size // config.train.grad_accumulation
    axes = [axis for axis in mesh_axes(rules['batch'])[1:] if sizes[axis] > 1]
    n = (microbatches or stages) * math.prod(sizes[axis] for axis in axes)
    if rows % n:
        split = ' × '.join(
            ['micro-batches ' + str(microbatches or stages), *(f'{axis} {sizes[axis]}' for axis in axes)]
        )
        raise ConfigError(
            f'train.batch_size / train.grad_accumulation = {rows} cannot be split over {split}: it must be a '
            f'multiple of {n}. Use {-(-rows // n) * n}, or another mesh.stage_microbatches'
        )


def _check_rules(rules: dict) -> None:
    for logical, entry in rules.items():
        for axis in mesh_axes(entry):
            if axis not in AXES:
                raise ConfigError(f'mesh.rules.{logical} = {axis!r} is no mesh axis; there are {", ".join(AXES)}')
    for array in _TOGETHER:
        taken = {}
        for logical in array:
            for axis in mesh_axes(rules[logical]):
                if axis in taken:
                    raise ConfigError(
                        f'mesh.rules.{logical} = {rules[logical]!r}: {axis!r} already splits '
                        f'{taken[axis]!r} of the same arrays; use another axis, or None'
                    )
                taken[axis] = logical


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

    def held(stack: jax.Array, own: jax.Array) -> jax.Array:
        stage, place = divmod(index, stack.shape[0])
        return jax.lax.psum(jnp.where(own[0] == stage, stack[place], 0), split[0])

    specs = {'in_specs': PartitionSpec(split[0]), 'out_specs': PartitionSpec()}
    return jax.shard_map(held, axis_names={split[0]}, **specs)(stack, numbers(split[0]))


def numbers(axis: str) -> jax.Array:
    """0, 1, ... along an axis of the current mesh, one on each device.

    For a `shard_map` over some of the axes: `jax.lax.axis_index` is not always to be had there.
    """
    n = jax.sharding.get_abstract_mesh().shape[axis]
    return jax.sharding.reshard(jnp.arange(n), PartitionSpec(axis))


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
