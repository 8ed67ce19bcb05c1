"""Analytic cost of a step, to rank configurations before any is compiled, and for GPUs.

The parallelisms as "How to Scale Your Model" (Austin et al. 2025, chapter 5) counts them;
how often what moves, and the memory traffic of fused operations, as programs compiled for
TPUs have them (docs/scaling.md).
"""

import collections

import jax.numpy as jnp

from llm_jax.config import parts
from llm_jax.config.schema import Model
from llm_jax.ops.pipeline import Schedule
from llm_jax.plan.cases import Case
from llm_jax.plan.cost import Collective, Cost
from llm_jax.plan.memory import (
    logit_slices,
    mesh_shards,
    offloaded,
    state_parts,
    stream_shards,
)
from llm_jax.train.memory import device_bytes, host_bytes

# What the backward pass computes again, as a share of the forward pass through the layers.
_AGAIN = {'none': 0.0, 'attention': 0.0, 'dots': 0.0, 'offload': 0.0, 'full': 1.0}
# Products of L × L in a backward pass of the attention core: splash attention computes the scores for
# queries and for keys, kernels of GPUs once.
_BACKWARD_TPU, _BACKWARD_GPU = 7, 5
# Operations that are no product read or write, in a step with rematerialisation: the residual stream so
# often, what a layer makes of it so often, and gathered weights so often.
_STREAM, _INNER, _WEIGHTS = 60, 4.5, 6.5


def executed_flops(case: Case) -> float:
    """FLOPs of a step over all devices: those of MFU, and those of remat.

    Causal attention is counted as the half square that a kernel computes. Of a layer that
    is computed again, the last product of the feed-forward is not: nothing needs its result.
    """
    counts, model = case.counts, case.config.model
    layers = counts.matmul - model.vocab_size * model.d_model
    experts = 0.0
    if parts.feed_forward(model).is_mixture(model):
        # Rows that a device makes room for beyond an even share are multiplied, too.
        room = model.moe.capacity_factor - 1 if case.sizes['expert'] > 1 else 0
        experts = room * 3 * model.n_layers * parts.feed_forward(model).hidden_units(model) * model.d_model
    else:
        layers -= model.n_layers * parts.feed_forward(model).hidden_units(model) * model.d_model
    attention = case.flops_per_token - 6 * counts.matmul
    core = 2 if model.remat == 'none' else 4
    core += _BACKWARD_TPU if case.machine.chip.is_tpu else _BACKWARD_GPU
    again = _again(model)
    products = 6 * counts.matmul + 2 * again * layers + (6 + 2 * again) * experts
    return (products + attention * causal_share(model) * core / 6) * case.tokens_per_step


def causal_share(model: Model) -> float:
    """Fraction of the attention that MFU counts (the full square) that a causal kernel computes; with a window, all."""
    return 1.0 if model.window else 0.5


def _again(model: Model) -> float:
    return _AGAIN.get(model.remat, 0.0)


def cost(case: Case) -> Cost:
    """The cost of one device."""
    config, sizes, model = case.config, case.sizes, case.config.model
    width, again = jnp.dtype(model.dtype).itemsize, _again(model)
    # Each stage works on the rows of all stages, with its own layers, once for each micro-batch.
    plan = schedule(case)
    turns = config.train.grad_accumulation * (plan.microbatches if plan.stages > 1 else 1)
    tokens = case.tokens_per_step / mesh_shards(case) * plan.stages / sizes['context']
    layers = model.n_layers / plan.stages
    params = device_bytes(case.plan.param_shapes, case.plan.mesh)
    weights = params / 4 * width * sizes['fsdp']  # of a device's layers, brought together
    stream = layers * tokens * model.d_model * width

    room = model.moe.capacity_factor if parts.feed_forward(model).is_mixture(model) and sizes['expert'] > 1 else 1
    hidden = parts.feed_forward(model).hidden_units(model)
    inner = 3 * room * hidden + (2 * model.n_heads + 2 * model.kv_heads) * model.head_size
    moved = _STREAM / stream_shards(case) + _INNER * inner / model.d_model / sizes['tensor']
    traffic = stream * moved * (3 + again) / 4 + turns * weights * _WEIGHTS
    traffic += 2 * sum(state_parts(case).values())
    # With 'offload' the results of products go to the host and come back.
    host = 2 * layers * tokens * width * offloaded(case) if model.remat == 'offload' else 0.0
    host += 2 * host_bytes(case.plan.shapes.opt_state, case.plan.mesh)
    flops = executed_flops(case) / case.abstract_mesh.size
    out = Cost(host_bytes=host, work=collections.Counter({(flops, 0.0): 1, (0.0, traffic): 1}))

    def add(kind: str, axes: tuple[str, ...], n_bytes: float, times: float, *, overlapped: bool) -> None:
        used = tuple(axis for axis in axes if sizes[axis] > 1)
        if used and n_bytes:
            group, times = case.network.group(*used), max(1, round(times))
            out.collectives.append(Collective(kind, n_bytes / times, group, times, overlapped, 'estimate'))

    blocks = layers * turns
    if sizes['fsdp'] > 1:
        # Forward, and once more for the backward pass; gradients are summed in the dtype of the computation.
        add('all-gather', ('fsdp',), 2 * turns * weights, 2 * blocks, overlapped=True)
        add('reduce-scatter', ('fsdp',), turns * weights, blocks, overlapped=True)
        slices = turns * logit_slices(case)
        if not config.train.gather_head_once and slices > turns:
            # For each slice again, and nothing else runs meanwhile.
            head = slices * model.vocab_size * model.d_model * width / sizes['tensor']
            add('all-gather', ('fsdp',), head, slices, overlapped=False)
            add('reduce-scatter', ('fsdp',), head, slices, overlapped=False)
    add('all-reduce', ('data', 'context'), turns * params / 4 * width, blocks, overlapped=True)
    # After the second products, before the first ones backward, and after attention's when it is computed again.
    sums = 4 + again
    if stream_shards(case) > 1:
        for kind in ('all-gather', 'reduce-scatter'):
            add(kind, ('tensor',), sums * stream, sums * blocks, overlapped=False)
    else:
        add('all-reduce', ('tensor',), sums * stream, sums * blocks, overlapped=False)
    keys = 2 * layers * tokens * sizes['context'] * model.kv_heads * model.head_size * width / sizes['tensor']
    add('all-gather', ('context',), (1 + again) * keys, (1 + again) * blocks, overlapped=True)
    add('reduce-scatter', ('context',), keys, blocks, overlapped=True)
    if parts.feed_forward(model).is_mixture(model):
        ways = 4 + again  # of what is computed again, rows go there, and nothing comes back
        n_bytes = ways * stream * model.moe.top_k * model.moe.capacity_factor
        add('all-to-all', ('expert',), n_bytes, ways * blocks, overlapped=False)
    add('collective-permute', ('stage',), 2 * tokens * model.d_model * width, 2 * turns, overlapped=True)
    return out


def schedule(case: Case) -> Schedule:
    """The pipeline of a case; one stage where there is none."""
    stages, (microbatches, repeats) = case.sizes['stage'], case.config.model.pipeline
    return Schedule(stages, microbatches or stages, repeats)


def bubble(case: Case) -> float:
    """Time that the stages of a pipeline wait, as a share of the time they work (GPipe, arXiv:1811.06965)."""
    share = schedule(case).bubble
    return share / (1 - share)
