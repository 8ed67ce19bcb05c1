"""What is read from compiled programs, against XLA's own count and against what was asked for."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
from small import config

from llm_jax.dist import mesh as mesh_lib
from llm_jax.plan.cases import make_case
from llm_jax.plan.compiled import compile_step
from llm_jax.plan.cost import analyse
from llm_jax.plan.network import Network
from llm_jax.plan.topology import parse_gpu


def compiled(made, n_devices=1):
    case = make_case(made, mesh_lib.make_mesh(made.mesh, jax.devices()[:n_devices]), None, None)
    return case, compile_step(case)


@pytest.mark.parametrize('feed_forward', ['gelu', 'swiglu'])
def test_analytic_flops_are_those_of_xla(feed_forward):
    # Wide enough that what is no matrix product counts little; one slice of attention, the whole square.
    case, step = compiled(
        config(model__feed_forward=feed_forward, model__d_model=512, model__n_layers=2, model__vocab_size=1024,
               model__scan=False, train__batch_size=32)
    )  # fmt: skip
    analytic = case.flops_per_token * case.tokens_per_step
    assert analytic == pytest.approx(step.xla_flops, rel=0.02)
    assert step.cost.flops == pytest.approx(step.xla_flops, rel=0.02)


def test_loops_count_as_often_as_they_run():
    unrolled, scanned = (compiled(config(model__scan=scan))[1] for scan in (False, True))
    assert scanned.cost.flops == pytest.approx(unrolled.cost.flops, rel=1e-3)
    assert scanned.xla_flops < 0.6 * unrolled.xla_flops  # which is what XLA does not do
    _, accumulated = compiled(config(train__grad_accumulation=4))
    assert accumulated.cost.flops == pytest.approx(unrolled.cost.flops, rel=1e-3)
    assert not accumulated.cost.unknown_loops


def test_collectives_are_found_with_their_axes_and_bytes():
    sizes = {'data': 2, 'stage': 1, 'fsdp': 2, 'expert': 1, 'context': 1, 'tensor': 2}
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 1, 2, 1, 1, 2), mesh_lib.AXES)

    def inside(x):
        summed = jax.lax.psum(x, ('data', 'tensor'))
        return jax.lax.all_gather(summed, 'fsdp', tiled=True)

    def loop(x):
        body = lambda carry, _: (jax.lax.ppermute(carry, 'tensor', [(0, 1), (1, 0)]), None)
        return inside(jax.lax.scan(body, x, length=3)[0])

    f = jax.shard_map(loop, mesh=mesh, in_specs=P(('data', 'fsdp', 'tensor')), out_specs=P(), check_vma=False)
    cost = analyse(jax.jit(f).lower(jax.ShapeDtypeStruct((8 * 16, 32), jnp.float32)).compile().as_text())
    machine = parse_gpu('h100', 8)
    network = Network(machine, np.stack([np.zeros(8, int), np.arange(8)], 1), sizes)
    found = {(c.kind, network.axes(c.group), c.bytes, c.times) for c in cost.collectives}
    assert found == {
        ('collective-permute', ('tensor',), 16 * 32 * 4, 3),
        ('all-reduce', ('data', 'tensor'), 16 * 32 * 4, 1),
        ('all-gather', ('fsdp',), 2 * 16 * 32 * 4, 1),
    }


def test_fsdp_gathers_every_layer_and_tensor_reduces():
    made = config(mesh__fsdp=4, mesh__tensor=2)
    case, step = compiled(made, 8)
    network = Network(parse_gpu('h100', 8), np.stack([np.zeros(8, int), np.arange(8)], 1), case.sizes)
    axes = {network.axes(c.group) for c in step.cost.collectives if c.times % made.model.n_layers == 0}
    assert ('fsdp',) in axes
    assert ('tensor',) in axes
