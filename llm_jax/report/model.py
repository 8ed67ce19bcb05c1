"""What a model is made of, before anything of it exists: shapes, counts, sharding, costs."""

import dataclasses
import math

import jax

from llm_jax.config.schema import Config, Model
from llm_jax.dist import mesh as mesh_lib
from llm_jax.dist.fit import check_fit
from llm_jax.generate import decode
from llm_jax.init import is_weight
from llm_jax.metrics import Counts, count, flops_per_token
from llm_jax.nn.transformer import build, init_params, weights_of


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One leaf of the parameters.

    Attributes:
      path: names from the root.
      shape: whole.
      split: mesh axes that split each dimension, () for none.
      part: its shape on one device.
      role: 'hidden', 'readout', 'embedding', or '' for norms and biases.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    split: tuple[tuple[str, ...], ...]
    part: tuple[int, ...]
    role: str

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Summary:
    """A model by numbers.

    Attributes:
      config: of the model, with every size filled in.
      parameters: all leaves, in the order of the tree.
      counts: of parameters.
      flops_per_token: of training, forward and backward.
      cache_bytes_per_token: what decoding keeps of one token, in all layers.
      sizes: mesh axis -> size.
    """

    config: Model
    parameters: tuple[Parameter, ...]
    counts: Counts
    flops_per_token: float
    cache_bytes_per_token: int
    sizes: dict[str, int]


def summarise(config: Config, n_devices: int, vocab_size: int) -> Summary:
    """Describes the model of an experiment on a mesh over `n_devices`, without making one.

    Raises:
      ConfigError: the mesh does not fit the devices or the model.
    """
    sizes = mesh_lib.axis_sizes(config.mesh, n_devices)
    model = build(config.model, vocab_size=vocab_size, seq_len=config.data.seq_len)
    check_fit(dataclasses.replace(config, model=model.config), sizes)
    explicit = (jax.sharding.AxisType.Explicit,) * len(sizes)
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes), explicit)):
        shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
        weights = weights_of(model)
    by_path = lambda tree, **kw: {
        tuple(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree, **kw)
    }
    roles = by_path(weights, is_leaf=is_weight)
    parameters = tuple(_parameter(path, leaf, sizes, roles.get(path)) for path, leaf in by_path(shapes).items())
    counts = count(model.config, shapes, weights)
    caches = jax.eval_shape(lambda: decode.empty_caches(model.config, 1, 1))
    cache_bytes = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(caches))
    flops = flops_per_token(model.config, counts, config.data.seq_len)
    return Summary(model.config, parameters, counts, flops, cache_bytes, sizes)


def _parameter(path, leaf, sizes, weight) -> Parameter:
    spec = tuple(leaf.sharding.spec) + (None,) * (len(leaf.shape) - len(leaf.sharding.spec))
    split = tuple(mesh_lib.mesh_axes(entry) for entry in spec)
    part = tuple(n // math.prod(sizes[a] for a in axes) for n, axes in zip(leaf.shape, split, strict=True))
    return Parameter(path, leaf.shape, split, part, weight.role if weight else '')
