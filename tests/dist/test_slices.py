"""Slices against what the pages of Cloud TPU say of them."""

import pytest

from llm_jax.config.schema import ConfigError
from llm_jax.launch.clouds import accelerator_type, machine_type
from llm_jax.dist.slices import parse_slice


@pytest.mark.parametrize(
    ('text', 'topology', 'chips', 'hosts', 'devices', 'kind', 'machine'),
    [
        ('v5e-16', '4x4', 16, 4, 16, 'v5litepod-16', 'ct5lp-hightpu-4t'),
        ('v5litepod-8', '2x4', 8, 1, 8, 'v5litepod-8', 'ct5lp-hightpu-8t'),
        ('v5e-1', '1x1', 1, 1, 1, 'v5litepod-1', 'ct5lp-hightpu-1t'),
        ('v6e:16x16', '16x16', 256, 64, 256, 'v6e-256', 'ct6e-standard-4t'),
        ('v4-32', '2x2x4', 16, 4, 16, 'v4-32', 'ct4p-hightpu-4t'),
        ('v5p-8', '2x2x1', 4, 1, 4, 'v5p-8', 'ct5p-hightpu-4t'),
        ('v5p:8x8x8', '8x8x8', 512, 128, 512, 'v5p-1024', 'ct5p-hightpu-4t'),
        ('V5P:4x4x12', '4x4x12', 192, 48, 192, None, 'ct5p-hightpu-4t'),  # no default topology of 384 cores
        ('7x:4x4x4', '4x4x4', 64, 16, 128, None, 'tpu7x-standard-4t'),
    ],
)
def test_known_slices(text, topology, chips, hosts, devices, kind, machine):
    tpu = parse_slice(text)
    assert (tpu.topology, tpu.chips, tpu.hosts, tpu.devices) == (topology, chips, hosts, devices)
    assert (accelerator_type(tpu), machine_type(tpu)) == (kind, machine)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('v5e', 'no slice of v5e; there are, for example, v5e:1x1, v5e:2x2'),
        ('v9-8', "no TPU 'v9'; there are v4, v5e, v5p, v6e, 7x"),
        ('v5e-12', 'there are, for example, v5e-1, v5e-4, v5e-8, v5e-16'),
        ('v5p-7', 'there are, for example, v5p-8, v5p-16'),
        ('v5e:3x5', 'no slice of v5e; there are, for example, v5e:1x1, v5e:2x2'),
        ('v5p:8x8', 'no slice of v5p; there are, for example, v5p:2x2x1'),
        ('v5p:4x4x6', 'no slice of v5p'),
        ('v6e:32x32', 'v6e:16x16'),
        ('tritium:4x4', 'trillium'),
    ],
)
def test_errors(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_slice(text)
