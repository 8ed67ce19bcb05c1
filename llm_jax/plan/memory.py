"""Memory of a device: counted from shapes, estimated for temporaries, and as compiled."""

from collections.abc import Iterable
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.config import parts
from llm_jax.dist import mesh as mesh_lib
from llm_jax.generate import decode
from llm_jax.plan.cases import Case
from llm_jax.train.losses import chunk_length
from llm_jax.train.memory import device_bytes, kept_parts
from llm_jax.train.step import make_loss
from llm_jax.train.trainable import merge_params, split_params

COMPILED, ANALYTIC, ASSUMED = 'compiled', 'analytic', 'assumed'
# What the TPU compiler leaves unused between what it places, as a share of what the forward pass keeps.
_GAPS = 0.15
# Layers whose results are on their way to the host or back.
_IN_FLIGHT = 4
# Bytes a number of the head, where it is gathered once for all slices of the loss: its gradient in float32, which is
# then scattered, that of a slice, and the head once more, as TPU programs were seen to have them.
_HEAD_ONCE = 10


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device, at the peak of a training step.

    Attributes:
      parts: what -> bytes.
      limit: what there is.
      source: 'compiled' or 'analytic'.
    """

    parts: dict[str, float]
    limit: float
    source: str

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.total <= self.limit


def state_parts(case: Case) -> dict[str, float]:
    """Bytes on one device of what a run keeps from step to step, and of its batch."""
    return kept_parts(case.plan)


def gradient_bytes(case: Case) -> float:
    """Bytes on one device; a gradient has the dtype and the layout of its parameter, and frozen ones have none."""
    return device_bytes(case.plan.shapes.params, case.plan.mesh)


def mesh_shards(case: Case) -> int:
    """Into how many pieces the mesh splits the rows of a batch."""
    sizes = dict(case.plan.mesh.shape)
    return math.prod(sizes[axis] for axis in mesh_lib.mesh_axes(dict(case.config.model.rules)['batch']))


def stream_shards(case: Case) -> int:
    """Into how many pieces the tensor axis splits the residual stream."""
    split = mesh_lib.mesh_axes(dict(case.config.model.rules)['residual_length'])
    return case.sizes['tensor'] if 'tensor' in split else 1


def residual_bytes(case: Case) -> float:
    """Bytes that the forward pass of one micro-batch saves for the backward pass on one device.

    These are the residuals of the loss as JAX differentiates it, remat included, whatever the model's parts are.
    """
    plan, config = case.plan, case.config
    loss = make_loss(plan.model, config, bos_id=plan.bos_id)
    trained, frozen = split_params(case.abstract_params, config.train.trainable)
    with jax.sharding.use_abstract_mesh(case.abstract_mesh):
        sharding = jax.sharding.NamedSharding(case.abstract_mesh, mesh_lib.spec(config.model.rules, ('batch',)))

        def micro(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            shape = (leaf.shape[0] // config.train.grad_accumulation, *leaf.shape[1:])
            return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)

        def kept(trained: Any, frozen: Any, rows: Any, key: jax.Array | None) -> list:
            _, backward, _ = jax.vjp(lambda p: loss(merge_params(p, frozen), rows, key), trained, has_aux=True)
            given = {id(leaf) for leaf in jax.tree.leaves((trained, frozen, rows))}
            own = lambda leaf: id(leaf) not in given and jax.typeof(leaf).memory_space == jax.memory.Space.Device
            return list(filter(own, jax.tree.leaves(backward)))

        rows = jax.tree.map(micro, plan.objective.step_shapes())
        key = jax.eval_shape(lambda: jax.random.key(0)) if config.model.dropout else None
        return device_bytes(jax.eval_shape(kept, trained, frozen, rows, key), case.abstract_mesh)


def kept_bytes(case: Case) -> float:
    """As `residual_bytes`; of remat 'full' counted without a trace, which takes long where rows are."""
    model, sizes = case.config.model, case.sizes
    if model.remat != 'full':
        return residual_bytes(case)
    tokens = case.tokens_per_step / case.config.train.grad_accumulation / mesh_shards(case) / sizes['context']
    tokens /= stream_shards(case)
    # Of each layer its input; with stages a device has fewer layers, and rows of all stages.
    return model.n_layers * tokens * model.d_model * jnp.dtype(model.dtype).itemsize


def estimate(case: Case, residuals: float | None = None) -> Memory:
    """The memory of a step without compiling it.

    Gradients (and their sum over micro-batches), the residuals of the forward pass, what one layer and one slice of
    logits need while they are worked on, and what compilers were seen to add.

    Args:
      case: what is estimated.
      residuals: from `residual_bytes`, if they are known.
    """
    config = case.config
    parts = state_parts(case)
    gradients = gradient_bytes(case)
    parts['gradients'] = gradients
    if config.train.grad_accumulation > 1:
        parts['gradients'] += gradients / 4 * jnp.dtype(config.train.accumulation_dtype).itemsize
    parts['activations'] = residual_bytes(case) if residuals is None else residuals
    parts['one layer at work'] = _layer_work(case)
    parts['logits'] = _logits(case)
    width = jnp.dtype(config.model.dtype).itemsize
    # Cast once, ahead of the loops over layers and micro-batches.
    copies = parts['parameters'] / 4 * width if width < 4 else 0.0
    gaps = _GAPS if case.machine and case.machine.chip.is_tpu else 0.0
    parts['copies and gaps'] = copies + gaps * parts['activations']
    parts = {name: n for name, n in parts.items() if n}
    return Memory(parts, case.machine.hbm if case.machine else math.inf, ANALYTIC)


def _layer_work(case: Case) -> float:
    """A layer's weights brought together, in the dtype of the computation, and what it makes on the way."""
    config, sizes = case.config, case.sizes
    model, width = config.model, jnp.dtype(config.model.dtype).itemsize
    together = device_bytes(case.plan.param_shapes['layers'], case.plan.mesh) * sizes['fsdp'] / 4 * width
    gathered = 2 * together / model.n_layers * sizes['stage'] * max(1, len(model.pattern))
    tokens = _rows(case) * config.data.seq_len / sizes['context']
    inner = 4 * model.n_heads * model.head_size
    feed_forward = parts.feed_forward(model)
    if feed_forward.is_mixture(model):
        # Rows of experts are sorted, kept for their gradients, and have room once more in the loop of further rounds.
        moe = model.moe
        rows = moe.top_k * (moe.capacity_factor * (1 + moe.dropless) if sizes['expert'] > 1 else 1)
        inner += rows * (9 * (moe.d_ff or model.ff_size) + 4 * model.d_model)
    else:
        inner += 3 * model.ff_size
    ways = 4 * model.d_model + inner / sizes['tensor']
    if model.remat == 'offload':
        ways += _IN_FLIGHT * offloaded(case)
    return gathered + (0 if model.remat == 'none' else tokens * ways * width)


def offloaded(case: Case) -> float:
    """Numbers of a token and layer that remat 'offload' keeps on the host: what the first products give, and 'out'."""
    model, tensor = case.config.model, case.sizes['tensor']
    first = 2 * parts.feed_forward(model).hidden_units(model) + (model.n_heads + 2 * model.kv_heads) * model.head_size
    return first / tensor + model.d_model


def _rows(case: Case) -> float:
    """Rows that a device works on at once."""
    config, sizes = case.config, case.sizes
    rows = config.train.batch_size / config.train.grad_accumulation / mesh_shards(case)
    return rows if sizes['stage'] == 1 else rows * sizes['stage'] / (config.model.pipeline[0] or sizes['stage'])


def _logits(case: Case) -> float:
    """A slice of logits in float32 and its gradient, and the head, brought together."""
    config, sizes = case.config, case.sizes
    rows = config.train.batch_size // config.train.grad_accumulation // mesh_shards(case)
    length = config.data.seq_len // sizes['context']
    n_logits = config.model.vocab_size // sizes['tensor']
    head, width = config.model.d_model * n_logits, jnp.dtype(config.model.dtype).itemsize
    gathered = head * width if sizes['fsdp'] > 1 else 0
    slices = logit_slices(case)
    if mesh_shards(case) > 1 and config.train.gather_head_once and slices > 1:
        gathered += head * _HEAD_ONCE
    return 2 * 4.0 * rows * length / slices * n_logits + gathered


def logit_slices(case: Case) -> int:
    """Into how many slices of the sequence the loss of a micro-batch is cut."""
    config, sizes = case.config, case.sizes
    rows = config.train.batch_size // config.train.grad_accumulation // mesh_shards(case)
    length = config.data.seq_len // sizes['context']
    return length // chunk_length(length, rows, config.train.loss_chunk, config.model.vocab_size // sizes['tensor'])


def compiled(case: Case, stats: Any) -> Memory:
    """The memory of a compiled step, its temporaries told apart by what shapes say.

    Args:
      case: what was compiled.
      stats: from `jax.stages.Compiled.memory_analysis()`.
    """
    parts = state_parts(case)
    padding = stats.argument_size_in_bytes - sum(parts.values())
    if padding > 0:
        parts['padding of arrays'] = padding
    rest = stats.temp_size_in_bytes
    for name, n in (('gradients', gradient_bytes(case)), ('activations', kept_bytes(case))):
        parts[name] = min(n, rest)
        rest -= parts[name]
    parts['temporaries'] = rest
    parts['results'] = max(0, stats.output_size_in_bytes - stats.alias_size_in_bytes)
    parts['code'] = stats.generated_code_size_in_bytes
    parts = {name: float(n) for name, n in parts.items() if n > 0}
    return Memory(parts, case.machine.hbm if case.machine else math.inf, COMPILED)


@dataclasses.dataclass(frozen=True)
class Serving:
    """Memory for generating text.

    Attributes:
      parameters: bytes of all parameters in the dtype of the computation.
      cache_per_token: bytes that one token leaves in the caches of all layers.
      context: tokens of a whole context.
      devices: the fewest that hold the parameters and the cache of one whole context.
      contexts: how many whole contexts fit beside the parameters on the machine, were both split evenly.
    """

    parameters: float
    cache_per_token: float
    context: int
    devices: int
    contexts: int


def serving(case: Case) -> Serving:
    """Counts the memory and chips that serving the model on the machine takes."""
    model = case.config.model
    width = jnp.dtype(model.dtype).itemsize
    parameters = width * _size(jax.tree.leaves(case.plan.param_shapes))
    cache = jax.eval_shape(lambda: decode.empty_caches(model, 1, 1024))
    per_token = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache)) / 1024
    one = per_token * model.max_seq_len
    hbm = case.machine.hbm if case.machine else math.inf
    free = hbm * math.prod(dict(case.plan.mesh.shape).values()) - parameters
    fewest = max(1, math.ceil((parameters + one) / hbm)) if hbm < math.inf else 1
    return Serving(parameters, per_token, model.max_seq_len, fewest, max(0, int(free // one)) if one else 0)


def _size(leaves: Iterable[Any]) -> int:
    return sum(math.prod(leaf.shape) for leaf in leaves)
