"""What a step costs by counting on paper: to rank configurations before any is compiled, and for GPUs.

The parallelisms as "How to Scale Your Model" (Austin et al. 2025, chapter 5) counts them.
"""

import collections

import jax.numpy as jnp

from llm_jax.plan.cases import Case
from llm_jax.plan.cost import Collective, Cost
from llm_jax.plan.memory import device_bytes, mesh_shards, state_parts

# What the backward pass computes again, as a share of the forward pass through the layers.
_AGAIN = {'none': 0.0, 'attention': 0.0, 'dots': 0.0, 'offload': 0.0, 'full': 1.0}
# A block reads and writes the residual stream about so often, forward and backward together, in fused operations.
_PASSES = 24


def executed_flops(case: Case) -> float:
    """FLOPs of a step over all devices: those of MFU, and those of remat.

    Causal attention is counted as the half square that a kernel computes.
    """
    config, counts = case.config, case.counts
    layers = counts.matmul - config.model.vocab_size * config.model.d_model
    attention = case.flops_per_token - 6 * counts.matmul
    seen = 0.5 if not config.model.window else 1.0
    again = _AGAIN.get(config.model.remat, 0.0)
    # The core of attention is always computed again in its backward pass.
    per_token = 6 * counts.matmul + 2 * again * layers + attention * seen * (1 + (1 + again) / 3)
    return per_token * case.tokens_per_step


def cost(case: Case) -> Cost:
    """The cost of one device."""
    config, sizes, model = case.config, case.sizes, case.config.model
    n_devices = case.abstract_mesh.size
    micro = config.train.grad_accumulation
    width = jnp.dtype(model.dtype).itemsize
    tokens = case.tokens_per_step / mesh_shards(case) / sizes['context']  # of a step, on one device
    state = sum(state_parts(case).values())
    params = device_bytes(case.plan.shapes.params, case.plan.mesh)
    # Layers of one stage alone are worked on by its devices.
    layers = model.n_layers / sizes['stage']
    weights = params / 4 * width * sizes['fsdp']
    again = 2 + _AGAIN.get(model.remat, 0.0)
    hbm = 2 * state + micro * (again * weights + 2 * params) + layers * tokens * model.d_model * width * _PASSES
    out = Cost(work=collections.Counter({(executed_flops(case) / n_devices, hbm): 1}))

    def add(kind: str, axes: tuple[str, ...], n_bytes: float, times: float, *, overlapped: bool) -> None:
        used = tuple(axis for axis in axes if sizes[axis] > 1)
        if used and n_bytes:
            group = case.network.group(*used)
            out.collectives.append(Collective(kind, n_bytes / times, group, round(times), overlapped, 'estimate'))

    blocks = max(1, round(model.n_layers / sizes['stage'] * micro))
    if sizes['fsdp'] > 1:
        add('all-gather', ('fsdp',), micro * again * weights, again * blocks, overlapped=True)
        add('reduce-scatter', ('fsdp',), micro * params * sizes['fsdp'], blocks, overlapped=True)
    add('all-reduce', ('data', 'context'), micro * params, blocks, overlapped=True)
    stream = layers * tokens * model.d_model * width
    add('all-reduce', ('tensor',), 2 * again * stream, 2 * again * blocks, overlapped=False)
    keys = 2 * layers * tokens * sizes['context'] * model.kv_heads * model.head_size * width / sizes['tensor']
    add('all-gather', ('context',), again * keys, again * blocks, overlapped=True)
    if model.feed_forward == 'moe':
        add('all-to-all', ('expert',), 2 * again * stream * model.moe.top_k, 2 * again * blocks, overlapped=False)
    add('collective-permute', ('stage',), 2 * tokens * model.d_model * width, 2 * micro, overlapped=True)
    return out


def bubble(case: Case) -> float:
    """Time that the stages of a pipeline wait, as a share of the time they work (GPipe, arXiv:1811.06965)."""
    stages = case.sizes['stage']
    return (stages - 1) / case.config.train.grad_accumulation
