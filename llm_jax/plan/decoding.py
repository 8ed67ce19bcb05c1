"""The plan of a decoding step: memory of one device, the roofline of a token, and what the mesh sends for it."""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.config.schema import ConfigError
from llm_jax.dist import mesh
from llm_jax.generate import decode
from llm_jax.nn.transformer import Transformer
from llm_jax.plan import hlo
from llm_jax.plan.cases import Case
from llm_jax.plan.cost import Collective, Cost, of_module
from llm_jax.plan.memory import ANALYTIC, COMPILED, device_bytes
from llm_jax.plan.roofline import Roofline, roofline


@dataclasses.dataclass(frozen=True)
class Decoding:
    """A token of each row, with full caches.

    Attributes:
      case: model, mesh and machine.
      rows: that decode together.
      context: tokens in the cache of each.
      memory: bytes of one device by what they hold: weights, caches, temporaries.
      roofline: of one step.
      gathered_weights: all-gathers of a weight, which a step should not have: (bytes, where in the program).
      source: 'compiled' or 'analytic'.
    """

    case: Case
    rows: int
    context: int
    memory: dict[str, float]
    roofline: Roofline
    gathered_weights: tuple[tuple[float, str], ...]
    source: str

    @property
    def tokens_per_second(self) -> float:
        return self.rows / self.roofline.step

    @property
    def fits(self) -> bool:
        return sum(self.memory.values()) <= self.case.machine.hbm


def plan_decoding(case: Case, rows: int, context: int, *, compiles: bool) -> Decoding:
    """Plans a decoding step.

    Args:
      case: with a machine; its mesh should split weights over `tensor` alone, since others are gathered each token.
      rows: that decode together.
      context: tokens in the cache of each row.
      compiles: whether there is a compiler for the machine; otherwise the step is counted on paper.

    Raises:
      ConfigError: rows or a context out of their range.
    """
    if rows < 1:
        raise ConfigError(f'--decode = {rows} must be at least 1 row')
    if not 0 < context <= case.config.model.max_seq_len:
        raise ConfigError(
            f'--context = {context} must be between 1 and model.max_seq_len = {case.config.model.max_seq_len}'
        )
    with jax.set_mesh(case.plan.mesh) if compiles else jax.sharding.use_abstract_mesh(case.abstract_mesh):
        model = decode.decoding_model(case.plan.model)
        if rows % (shards := mesh.batch_shard_count(model.config.rules)):
            raise ConfigError(
                f'--decode = {rows} rows must be a multiple of the {shards} shards of a batch on this mesh'
            )
        weights = jax.eval_shape(lambda params: decode.prepare(model, params), case.plan.param_shapes)
        caches = jax.eval_shape(lambda: decode.empty_caches(model.config, rows, context))
    parts = {'weights': device_bytes(weights, case.plan.mesh), 'caches': device_bytes(caches, case.plan.mesh)}
    if not compiles:
        cost = _cost(case, model, rows, parts)
        return Decoding(case, rows, context, parts, roofline(case, cost), (), ANALYTIC)
    with jax.set_mesh(case.plan.mesh):
        tokens = jax.ShapeDtypeStruct((rows,), jnp.int32)
        step = jax.jit(_step(model, context), donate_argnums=1)
        program = step.lower(weights, caches, tokens).compile()
    stats = program.memory_analysis()
    parts['temporaries'] = stats.temp_size_in_bytes
    cost = of_module(hlo.parse(program.as_text()))
    gathered = _gathered_weights(cost.collectives, weights)
    return Decoding(case, rows, context, parts, roofline(case, cost), gathered, COMPILED)


def _step(model: Transformer, context: int) -> Callable[[Any, tuple, jax.Array], tuple[jax.Array, tuple]]:
    """Makes the function of a greedy step at the end of the context."""

    def step(weights: decode.Weights, caches: tuple, tokens_B: jax.Array) -> tuple[jax.Array, tuple]:
        rules = model.config.rules
        tokens_B1 = mesh.shard(tokens_B[:, None], rules, mesh.TOKENS)
        positions_B1 = jnp.full_like(tokens_B1, context - 1)
        zeros_B = jnp.zeros_like(tokens_B1[:, 0])
        logits_BV, caches = decode.forward(model, weights, tokens_B1, positions_B1, caches, zeros_B)
        logits_BV = mesh.shard(logits_BV, rules, ('batch', None))
        return jnp.argmax(logits_BV, axis=-1), caches

    return step


def _gathered_weights(collectives: list[Collective], weights: decode.Weights) -> tuple[tuple[float, str], ...]:
    """Finds the all-gathers whose result is as large as the smallest matrix of a layer, or larger."""
    sizes = [math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(weights.layers) if leaf.ndim > 1]
    least = min(sizes, default=math.inf)
    gathers = [one for one in collectives if one.kind == 'all-gather' and one.bytes >= least]
    return tuple((one.bytes * one.times, one.source) for one in gathers)


def _cost(case: Case, model: Transformer, rows: int, parts: dict[str, float]) -> Cost:
    """Counts a step on paper: weights and caches are read once, and each layer sums over `tensor` twice."""
    config, sizes = model.config, case.sizes
    here = rows / math.prod(n for axis, n in sizes.items() if axis != 'tensor')
    flops = 2 * case.counts.active * here / sizes['tensor']
    cost = Cost()
    cost.work[flops, parts['weights'] + parts['caches']] += 1
    if sizes['tensor'] > 1:
        n_bytes = here * config.d_model * jnp.dtype(config.dtype).itemsize
        group = case.network.group('tensor')
        cost.collectives.append(Collective('all-reduce', n_bytes, group, 2 * config.n_layers, False, 'estimate'))
    return cost
