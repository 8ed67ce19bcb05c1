"""From a family's table to every tensor of a checkpoint, and where each lies in our parameters."""

from collections.abc import Callable, Mapping
import dataclasses
import types
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
import numpy as np

from llm_jax.config import parts
from llm_jax.config.schema import ConfigError, Model
from llm_jax.models.layouts import Layout, Row, Shape, check_shape, paths
from llm_jax.nn.transformer import Transformer, init_params, place

# What reads a checkpoint: the tensor's name and a slice of each of its dimensions -> that piece.
Fetch = Callable[[str, tuple[slice, ...]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint.

    Attributes:
      name: its own.
      leaves: paths of our arrays that are in it.
      at: indices into the leading dimensions of those: repeat of the pattern, expert.
      shapes: of those arrays at that place.
      layout: how they lie in it.
    """

    name: str
    leaves: tuple[str, ...]
    at: tuple[int, ...]
    shapes: tuple[Shape, ...]
    layout: Layout

    @property
    def shape(self) -> Shape:
        return self.layout.tensor_shape(self.shapes)


def shapes_of(model: Model) -> Any:
    """The tree of parameters as shapes, with their shardings on the current mesh."""
    return jax.eval_shape(lambda key: init_params(Transformer(model), key), jax.random.key(0))


def flat(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """Leaves by path: {'embed/embedding': ...}."""
    out = {}
    for name, value in tree.items():
        path = f'{prefix}{name}'
        out.update(flat(value, f'{path}/') if isinstance(value, Mapping) else {path: value})
    return out


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flat`."""
    out: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *outer, name = path.split('/')
        node = out
        for key in outer:
            node = node.setdefault(key, {})
        node[name] = leaf
    return out


def tensors(model: Model, family: types.ModuleType) -> list[Tensor]:
    """Every tensor that a checkpoint of this model has; each of our leaves is in some, whole.

    A row of the table counts where the model has its arrays: a family without biases
    simply has none of those rows.

    Raises:
      ConfigError: an array of the model has no place in the family's checkpoints.
    """
    leaves = {path: leaf.shape for path, leaf in flat(shapes_of(model)).items()}
    out = [tensor for row in family.OUTER for tensor in _expand(row, '', leaves, (), None)]
    for i in range(model.n_layers):
        path, index = place(model, i)
        layer = model.layer(i)
        experts = layer.moe.n_experts if parts.feed_forward(layer).is_mixture(layer) else None
        lead = () if index is None else (index,)
        for row in _rows_of_layer(family.LAYER, experts):
            named = (row[0], family.LAYERS.format(layer=i) + row[1], row[2])
            out += _expand(named, '/'.join(path) + '/', leaves, lead, experts)
    placed = {leaf for tensor in out for leaf in tensor.leaves}
    if homeless := sorted(leaves.keys() - placed):
        raise ConfigError(f'{family.MODEL_TYPE} checkpoints have no place for the parameters {", ".join(homeless)}')
    return out


def _rows_of_layer(rows: tuple[Row, ...], experts: int | None) -> list[Row]:
    """Rows that say `{expert}` are of mixtures, and hide others of the same arrays there."""
    is_each = lambda row: '{expert}' in row[1]
    hidden = {path for row in rows if is_each(row) for path in paths(row)} if experts else set()
    return [row for row in rows if (experts if is_each(row) else not hidden & set(paths(row)))]


def _expand(row: Row, prefix: str, leaves: dict[str, Shape], lead: tuple[int, ...], experts: int | None):
    ours = tuple(prefix + path for path in paths(row))
    if not any(path in leaves for path in ours):
        return
    if missing := [path for path in ours if path not in leaves]:
        raise ConfigError(f'tensor {row[1]!r} holds {", ".join(paths(row))}, but the model has no {", ".join(missing)}')
    for expert in range(experts) if '{expert}' in row[1] else (None,):
        at = lead if expert is None else (*lead, expert)
        shapes = tuple(leaves[path][len(at) :] for path in ours)
        yield Tensor(row[1].format(expert=expert), ours, at, shapes, row[2])


# --- In --------------------------------------------------------------------------------


def check(wanted: list[Tensor], found: Mapping[str, Shape], ignored: Callable[[str], bool]) -> None:
    """Compares what a checkpoint should hold with what it holds.

    Raises:
      ConfigError: a missing tensor, one too many, or one of another shape.
    """
    names = {tensor.name for tensor in wanted}
    left_over = sorted(name for name in found.keys() - names if not ignored(name))
    for problem, these in (
        ('lacks', sorted(names - found.keys())),
        ('has, but the model of config.json has no place for,', left_over),
    ):
        if these:
            more = f' and {len(these) - 3} more' if len(these) > 3 else ''
            raise ConfigError(f'the checkpoint {problem} {", ".join(map(repr, these[:3]))}{more}')
    for tensor in wanted:
        check_shape(tensor.name, found[tensor.name], tensor.shape)


def load(model: Model, wanted: list[Tensor], fetch: Fetch, mesh: Mesh | None = None) -> dict[str, Any]:
    """Parameters, each made where it lies: a device's piece of an array is read for it alone.

    Args:
      model: complete, as in `Transformer.config`.
      wanted: from `tensors`.
      fetch: reads the checkpoint.
      mesh: where to; None means the default device.

    Returns:
      nested dict of float32 arrays.
    """
    holders: dict[str, dict[tuple[int, ...], tuple[Tensor, int]]] = {}
    for tensor in wanted:
        for part, leaf in enumerate(tensor.leaves):
            holders.setdefault(leaf, {})[tensor.at] = (tensor, part)
    if mesh is None:
        shapes = flat(shapes_of(model))
    else:
        with jax.set_mesh(mesh):
            shapes = flat(shapes_of(model))

    def build(path: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        held = holders[path]

        def read(index: tuple[slice, ...]) -> np.ndarray:
            index = tuple(slice(*s.indices(n)) for s, n in zip(index, leaf.shape, strict=True))
            out = np.empty([s.stop - s.start for s in index], leaf.dtype)
            for at, (tensor, part) in held.items():
                n = len(at)
                if all(s.start <= i < s.stop for s, i in zip(index, at, strict=False)):
                    piece = tensor.layout.read(lambda s, t=tensor: fetch(t.name, s), tensor.shapes, part, index[n:])
                    out[tuple(i - s.start for s, i in zip(index, at, strict=False))] = piece
            return out

        if mesh is None:
            sharding = SingleDeviceSharding(jax.devices()[0])
        else:
            sharding = NamedSharding(mesh, leaf.sharding.spec if leaf.sharding else PartitionSpec())
        return jax.make_array_from_callback(leaf.shape, sharding, read)

    return nested({path: build(path, leaf) for path, leaf in shapes.items()})


# --- Out -------------------------------------------------------------------------------


def values(wanted: list[Tensor], params: Any):
    """(name, float32 array) of each tensor, one at a time."""
    leaves = flat(params)
    for tensor in wanted:
        yield tensor.name, tensor.layout.write([np.asarray(leaves[path][tensor.at]) for path in tensor.leaves])
