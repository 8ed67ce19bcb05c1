"""Machines by name, and how fast the groups of a mesh are on them."""

import itertools

import numpy as np
import pytest
from small import config

from llm_jax.config.schema import ConfigError
from llm_jax.dist import mesh as mesh_lib
from llm_jax.metrics.chips import PEAK_FLOPS
from llm_jax.metrics.specs import CHIPS
from llm_jax.plan import planner, topology
from llm_jax.plan.cost import Collective
from llm_jax.plan.network import Network


def network(machine, **sizes):
    """A network whose mesh lies in plain order on the torus."""
    places = list(itertools.product(range(machine.slices), *(range(n) for n in machine.shape)))
    return Network(machine, np.array(places), {axis: sizes.get(axis, 1) for axis in mesh_lib.AXES})


def seconds(net, kind, n_bytes, *axes):
    return net.seconds(Collective(kind, n_bytes, net.group(*axes), 1, True, ''))


def test_one_table_of_chips():
    assert PEAK_FLOPS['TPU v5'] == CHIPS['v5p'].bf16 == 459e12
    assert PEAK_FLOPS['TPU7x'] == CHIPS['7x'].bf16 / 2  # a device is half a chip
    assert CHIPS['h100'].rate('int8') == 1979e12
    assert CHIPS['v5e'].rate('float8') == CHIPS['v5e'].bf16  # it has no such units


def test_machines():
    machine = topology.parse_tpu('v5p:8x8x8', 4)
    assert (machine.chips, machine.devices, machine.wraps) == (2048, 2048, (True, True, True))
    assert topology.parse_tpu('tpu7x:4x4x4').devices == 128
    assert topology.parse_tpu('v5e:8x16').wraps == (False, True)
    with pytest.raises(ConfigError, match=r'--devices = 12: up to 8, or a multiple'):
        topology.parse_gpu('h100', 12)
    with pytest.raises(ConfigError, match='there are a100, h100, h200, b200'):
        topology.parse_gpu('v100', 8)


def test_what_cannot_be_laid_out_is_said_before_anything_is_compiled():
    machine = topology.parse_tpu('v5e:4x4')
    with pytest.raises(ConfigError, match=r'model.n_heads = 8 cannot be split over mesh tensor 16'):
        topology.sizes(config(mesh__tensor=16), machine)
    with pytest.raises(ConfigError, match=r'train.batch_size .* = 16 cannot be split over mesh fsdp 256'):
        topology.sizes(config(), topology.parse_tpu('v5e:16x16'))
    with pytest.raises(ConfigError, match=r'mesh.data = 1 cannot be split over 2 TPU slices'):
        topology.sizes(config(), topology.parse_tpu('v5e:2x2', 2))


@pytest.mark.parametrize('text', ['cheap', '-1', 'nan', 'inf', '0'])
def test_prices_are_numbers(text):
    with pytest.raises(ConfigError, match=f"--price = '{text}' is not a number above 0"):
        planner.number(text, '--price')
    assert planner.number('15e12', '--tokens') == 15e12


def test_a_missing_compiler_is_said(monkeypatch):
    monkeypatch.delenv('LLM_JAX_LIBTPU', raising=False)
    with pytest.raises(ConfigError, match='LLM_JAX_LIBTPU is not set'), topology.compiler():
        pass


def test_gathers_over_a_torus():
    # 90 GB/s a link and direction: a ring of 8 uses both, 7/8 of the array arrives.
    net = network(topology.parse_tpu('v5p:8x8x8'), fsdp=64, tensor=8)
    ici, dcn = seconds(net, 'all-gather', 1e9, 'tensor')
    assert (ici, dcn) == (pytest.approx(1e9 * 7 / 8 / 180e9), 0)
    # Two sides of the torus give twice that.
    assert seconds(net, 'all-gather', 1e9, 'fsdp')[0] == pytest.approx(1e9 * 63 / 64 / 360e9)
    assert seconds(net, 'all-reduce', 1e9, 'tensor')[0] == pytest.approx(2 * ici)
    # Without wrap-around it is a line: one direction.
    line = network(topology.parse_tpu('v6e:8x8'), fsdp=8, tensor=8)
    assert seconds(line, 'all-gather', 1e9, 'tensor')[0] == pytest.approx(1e9 * 7 / 8 / 90e9)


def test_axes_that_share_a_side_share_its_links():
    net = network(topology.parse_tpu('v6e:16x16'), data=16, fsdp=4, tensor=4)
    inner = seconds(net, 'all-gather', 1e9, 'tensor')[0]  # 4 neighbours of 16: a line
    outer = seconds(net, 'all-gather', 1e9, 'fsdp')[0]  # every fourth of the ring: 4 groups on the same links
    assert inner == pytest.approx(1e9 * 3 / 4 / 90e9)
    assert outer == pytest.approx(1e9 * 3 / 4 / (180e9 / 4))


def test_between_slices_goes_the_share_of_each_device():
    net = network(topology.parse_tpu('v5e:4x4', 2), data=2, fsdp=16)
    ici, dcn = seconds(net, 'all-reduce', 1e9, 'data')
    assert (ici, dcn) == (0, pytest.approx(2 * 1e9 / 2 / 3.125e9))
    _, dcn = seconds(net, 'all-reduce', 1e9, 'data', 'fsdp')
    assert dcn == pytest.approx(2 * 1e9 / 16 / 2 / 3.125e9)


def test_axes_of_a_group():
    net = network(topology.parse_tpu('v5p:4x4x4'), data=4, fsdp=4, tensor=4)
    for axes in (('data',), ('tensor',), ('data', 'fsdp')):
        assert net.axes(net.group(*axes)) == axes
