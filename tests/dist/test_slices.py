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
        ('V5P:4x4x12', '4x4x12', 192, 48, 192, 'v5p-384', 'ct5p-hightpu-4t'),
        ('v5p-12288', '16x16x24', 6144, 1536, 6144, 'v5p-12288', 'ct5p-hightpu-4t'),  # the largest
        ('v5p-3072', '8x12x16', 1536, 384, 1536, 'v5p-3072', 'ct5p-hightpu-4t'),
        ('v5p-1536', '8x8x12', 768, 192, 768, 'v5p-1536', 'ct5p-hightpu-4t'),
        ('v5p:4x4x48', '4x4x48', 768, 192, 768, None, 'ct5p-hightpu-4t'),  # v5p-1536 would be 8x8x12
        ('7x:4x4x4', '4x4x4', 64, 16, 128, None, 'tpu7x-standard-4t'),
        ('7x:1x1x1', '1x1x1', 1, 1, 2, None, 'tpu7x-standard-1t'),
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
        ('v5e:2x8', 'no slice of v5e'),
        ('v5e:4x12', 'no slice of v5e'),
        ('v5e:8x4', 'no slice of v5e'),
        ('v6e:6x6', 'no slice of v6e'),
        ('v6e:2x16', 'no slice of v6e'),
        ('v5p:4x4x2', 'no slice of v5p'),
        ('v5p:2x2x12', 'no slice of v5p'),
        ('v5p:8x8x4', 'no slice of v5p'),
        ('v5p:1x1x1', 'no slice of v5p'),
        ('v5p:0x4x4', 'no slice of v5p'),
        ('v4:2x2', 'no slice of v4'),
        ('v5p-12416', 'no slice of v5p'),
        ('v5p-0', 'no slice of v5p'),
        ('tritium:4x4', 'trillium'),
    ],
)
def test_errors(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_slice(text)
