"""Adapters as trees: made, put beside their kernels and taken away, merged into them.

`config.model.adapter` says which; adapters that are just made change nothing.
"""

from collections.abc import Mapping
import dataclasses
import functools
import math
import re
import types
from typing import Any
import zlib

from flax import traverse_util
import jax
import jax.numpy as jnp

from llm_jax.config.schema import Adapter, ConfigError, Model
from llm_jax.dist import mesh
from llm_jax.init import Weight
from llm_jax.nn.transformer import Transformer, init_params, weights_of
from llm_jax.ops import adapter as adapter_ops
from llm_jax.ops.blockwise import Blockwise
from llm_jax.ops.product import activation_axes

NAME = 'lora'


@dataclasses.dataclass(frozen=True)
class Target:
    """A matrix that an adapter can change.

    Attributes:
      path: 'layers/attention/q/kernel'.
      weight: what it is.
      shape: of one layer's.
      stack: layers in its stack, 0 without one.
    """

    path: str
    weight: Weight
    shape: tuple[int, ...]
    stack: int

    @property
    def axes(self) -> tuple[str, ...]:
        """Logical axes of one layer's."""
        return self.weight.axes_in + self.weight.axes_out

    @property
    def n_in(self) -> int:
        """How many of its dimensions are inputs."""
        return len(self.weight.axes_in)

    @property
    def place(self) -> str:
        """The path of its adapter."""
        return f'{self.path.rpartition("/")[0]}/{NAME}'


@functools.cache
def adaptable(model: Transformer) -> Mapping[str, Target]:
    """Matrices that can have an adapter, by path: maps of features to features, tables of tokens, the head.

    Routers and the matrices of experts are none of them.
    """
    shapes = _flat(jax.eval_shape(lambda: init_params(model, jax.random.key(0))))
    out = {}
    for path, weight in _flat(weights_of(model)).items():
        stack = shapes[path].shape[0] if path.startswith('layers/') else 0
        target = Target(path, weight, shapes[path].shape[1 if stack else 0 :], stack)
        is_product = len(target.shape) == len(target.axes) and path.endswith(('/kernel', '/embedding'))
        if is_product and (weight.is_matrix or 'vocab' in target.axes):
            out[path] = target
    return types.MappingProxyType(out)


def find_targets(model: Transformer) -> dict[str, Target]:
    """The matrices that `model.adapter.targets` matches, by path.

    Raises:
      ConfigError: none, no regex, or an embedding that is the output head as well.
    """
    config, known = model.config, adaptable(model)
    pattern = config.adapter.targets
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f'model.adapter.targets = {pattern!r} is not a regular expression: {error}') from error
    found = {path: target for path, target in known.items() if regex.fullmatch(path)}
    said = f'model.adapter.targets = {pattern!r}'
    tied = config.tie_embeddings and ('embed/embedding' in found or (not found and regex.fullmatch('unembed/kernel')))
    if tied:
        raise ConfigError(
            f'{said} names the embedding, which is the output head as well (model.tie_embeddings = True): an adapter '
            'of one would change the other; leave it out, or untie the two first (adapt.lora.untie)'
        )
    if not found:
        raise ConfigError(f'{said} matches no matrix that can have an adapter; there are {", ".join(known)}')
    if config.adapter.kind == 'dora' and (tables := [path for path, target in found.items() if target.weight.lookup]):
        raise ConfigError(
            f'{said} names {", ".join(tables)}, whose rows are looked up: "dora" has no norm of outputs there; leave '
            'it out, or set model.adapter.kind = "lora"'
        )
    return found


def init_adapters(model: Transformer, params: Any, key: jax.Array) -> dict[str, Any]:
    """Adapters that change nothing: A uniform within ±1/√fan_in, B 0, the magnitude of DoRA the norms of W.

    A function of the key and the path, whatever other matrices have adapters.

    Args:
      model: its config says which.
      params: of the base, which DoRA takes its magnitudes from.
      key: random.

    Raises:
      ConfigError: as `find_targets`.
    """
    config, out, leaves = model.config, {}, params
    rank = config.adapter.rank
    for path, target in find_targets(model).items():
        lead, lead_axes = ((target.stack,), ('layers',)) if target.stack else ((), ())
        spec = lambda axes, lead_axes=lead_axes: mesh.spec(config.rules, (*lead_axes, *axes))
        inputs, outputs = target.shape[: target.n_in], target.shape[target.n_in :]
        axes_in, axes_out = target.weight.axes_in, target.weight.axes_out
        bound = 1 / math.sqrt(math.prod(inputs)) if not target.weight.lookup else 1 / math.sqrt(rank)
        path_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
        a_spec, b_spec = spec((*axes_in, adapter_ops.RANK)), spec((adapter_ops.RANK, *axes_out))
        draw = jax.random.uniform(path_key, (*lead, *inputs, rank), jnp.float32, -bound, bound)
        made = {
            'a': draw if a_spec is None else jax.sharding.reshard(draw, a_spec),
            'b': jnp.zeros((*lead, rank, *outputs), jnp.float32, device=_sharding(b_spec)),
        }
        if config.adapter.kind == 'dora':
            stored = _get(leaves, path)
            norms = _over_stack(config.rules, target, lambda w, t=target: _norms(w, t, config), stored)
            made['magnitude'] = mesh.shard(norms, config.rules, (*lead_axes, *activation_axes(axes_out)))
        out.update({f'{target.place}/{name}': value for name, value in made.items()})
    return _nested(out)


def attach(params: Any, adapters: Any) -> Any:
    """The parameters with adapters beside their kernels."""
    return _nested(_flat(params) | _flat(adapters))


def detach(params: Any) -> tuple[Any, Any]:
    """(base, adapters) of parameters, the inverse of `attach`; adapters are {} where there are none."""
    base = _flat(params)
    adapters = {path: base.pop(path) for path in list(base) if is_adapter(path)}
    return _nested(base), _nested(adapters)


def is_adapter(path: str) -> bool:
    """Whether a parameter is of an adapter, by its path; for `train.trainable`."""
    return path.rpartition('/')[0].endswith(f'/{NAME}')


def merge(model: Transformer, params: Any) -> tuple[Transformer, Any]:
    """The model without adapters, and float32 parameters with which it computes the same.

    A base in few bits is dequantised: quantised again, it would not give the same.
    """
    config, known = model.config, adaptable(model)
    base = traverse_util.flatten_dict(params, sep='/', is_leaf=lambda _, node: 'codes' in node)
    adapters = {path: base.pop(path) for path in list(base) if is_adapter(path)}
    for path, stored in base.items():
        if isinstance(stored, dict):
            base[path] = dequantise(stored, path, model)
    for place in dict.fromkeys(path.rpartition('/')[0] for path in adapters):
        (target,) = (target for target in known.values() if target.place == place)
        names = [name for name in ('a', 'b', 'magnitude') if f'{place}/{name}' in adapters]
        adapter = {name: adapters[f'{place}/{name}'] for name in names}

        def merged(kernel: Any, adapter: Any, target: Target = target) -> jax.Array:
            return adapter_ops.merge(kernel, adapter, target.weight, config)

        base[target.path] = _over_stack(config.rules, target, merged, base[target.path], adapter)
    base = {path: leaf.astype(jnp.float32) for path, leaf in base.items()}
    return Transformer(dataclasses.replace(config, adapter=Adapter())), _nested(base)


def untie(model: Transformer, params: Any) -> tuple[Transformer, Any]:
    """A model whose output head is a matrix of its own, equal to the embedding, and its parameters.

    Raises:
      ConfigError: it has one already.
    """
    config = model.config
    if not config.tie_embeddings:
        raise ConfigError('model.tie_embeddings = False: the output head is a matrix of its own already')
    kernel = mesh.shard(params['embed']['embedding'].T, config.rules, ('d_model', 'vocab'))
    untied = Transformer(dataclasses.replace(config, tie_embeddings=False))
    return untied, params | {'unembed': {'kernel': kernel}}


def dequantise(stored: dict[str, jax.Array], path: str, model: Transformer) -> jax.Array:
    """A kernel that is held in few bits, in float32, with the layers of its stack."""
    weight = _flat(weights_of(model))[path]
    shape = _flat(jax.eval_shape(lambda: init_params(model, jax.random.key(0))))[path].shape
    is_stacked = path.startswith('layers/')
    n_experts = len(shape) - len(_axes(weight)) - is_stacked
    axes = ('layers',) * is_stacked + ('experts',) * n_experts + _axes(weight)
    return Blockwise(stored, shape, axes, model.config.rules).astype(jnp.float32)


def _axes(weight: Weight) -> tuple[str, ...]:
    return weight.axes_in + weight.axes_out


def _norms(kernel: Any, target: Target, config: Model) -> jax.Array:
    """‖W‖ of each output, of what a product multiplies by."""
    if isinstance(kernel, dict):
        kernel = Blockwise(kernel, target.shape, target.axes, config.rules)
    return adapter_ops.output_norms(target.weight.forward * kernel.astype(jnp.float32), target.n_in)


def _over_stack(rules: tuple, target: Target, function: Any, *trees: Any) -> jax.Array:
    """The function of each layer's arrays, one after the other, where they are stacked."""
    if not target.stack:
        return function(*trees)
    if not mesh.stage_axis(rules):
        return jax.lax.map(lambda layer: function(*layer), trees)
    # A loop would gather a stack whose layers are split over stages.
    take = lambda i: jax.tree.map(lambda leaf: mesh.take_layer(leaf, i), trees)
    return mesh.split_stack(jnp.stack([function(*take(i)) for i in range(target.stack)]), rules)


def _get(tree: Any, path: str) -> Any:
    for name in path.split('/'):
        tree = tree[name]
    return tree


def _sharding(spec: Any) -> Any:
    return None if spec is None else jax.NamedSharding(jax.sharding.get_abstract_mesh(), spec)


def _flat(tree: Any) -> dict[str, Any]:
    return traverse_util.flatten_dict(tree, sep='/')


def _nested(leaves: dict[str, Any]) -> dict[str, Any]:
    return traverse_util.unflatten_dict(leaves, sep='/')
