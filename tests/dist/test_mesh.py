import re

import jax
import numpy as np
import pytest
from tiny import VARIANTS, on_mesh, tiny_config, tiny_model

from llm_jax.dist import mesh as mesh_lib
from llm_jax.config.schema import ConfigError, Mesh
from llm_jax.nn.transformer import init_params


@pytest.mark.parametrize(
    ('axes', 'devices', 'expected'),
    [((1, -1, 1), 8, (1, 8, 1)), ((-1, 2, 2), 8, (2, 2, 2)), ((2, 2, 2), 8, (2, 2, 2)), ((1, 1, -1), 1, (1, 1, 1))],
)
def test_axis_sizes(axes, devices, expected):
    sizes = mesh_lib.axis_sizes(Mesh(*axes), devices)
    assert [sizes[axis] for axis in ('data', 'fsdp', 'tensor')] == list(expected)


@pytest.mark.parametrize(
    ('axes', 'fix'),
    [
        ((1, 4, 1), 'the axes must multiply to 8; set one of them to -1 to take the rest'),
        ((2, 8, 1), 'the axes must multiply to 8; set one of them to -1 to take the rest'),
        ((1, 3, -1), 'without the -1 they multiply to 3, which must divide 8'),
        ((1, -1, 16), 'without the -1 they multiply to 16, which must divide 8'),
    ],
)
def test_axes_that_do_not_fit(axes, fix):
    written = 'mesh = data {} × fsdp {} × tensor {}'.format(*axes)
    with pytest.raises(ConfigError, match=re.escape(f'{written} does not fit 8 device(s): {fix}')):
        mesh_lib.axis_sizes(Mesh(*axes), 8)


def test_devices_where_none_is_needed():
    """As many as are asked for, else the fewest; what does not fit is told with a number that does."""
    assert mesh_lib.device_count(Mesh(1, -1, 4), None) == 4
    assert mesh_lib.device_count(Mesh(1, -1, 4), 16) == 16
    assert mesh_lib.device_count(Mesh(2, 2, 2), None) == 8
    for asked in (1, 6):
        with pytest.raises(ConfigError, match=f'--devices {asked}: .* --devices 4 fits$'):
            mesh_lib.device_count(Mesh(1, -1, 4), asked)


def test_make_mesh_is_explicit():
    mesh = mesh_lib.make_mesh(Mesh(data=2, fsdp=-1, tensor=2))
    assert {axis: n for axis, n in mesh.shape.items() if n > 1} == {'data': 2, 'fsdp': 2, 'tensor': 2}
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Explicit}


def test_spec():
    rules = tiny_config().model.rules
    assert mesh_lib.spec(rules, ('vocab', 'd_model')) is None  # no mesh
    assert mesh_lib.batch_shard_count(rules) == 1
    with on_mesh((2, 2, 2)):
        assert mesh_lib.spec(rules, ('vocab', 'd_model')) == jax.P('tensor', 'fsdp')
        assert mesh_lib.spec(rules, ('batch', None, 'heads')) == jax.P(('data', 'fsdp'), None, 'tensor')
        assert mesh_lib.batch_shard_count(rules) == 4


def test_rows_of_a_process():
    """Devices 2 and 3 of four play a process of their own."""
    rules = tiny_config().model.rules
    mesh = mesh_lib.make_mesh(Mesh(data=2, fsdp=2, tensor=2))
    sharding = mesh_lib.batch_sharding(mesh, rules)
    np.testing.assert_array_equal(mesh_lib.local_rows(sharding, 8), np.arange(8))

    class Half:
        def addressable_devices_indices_map(self, shape):
            return {d: s for d, s in sharding.devices_indices_map(shape).items() if d.id >= 4}

    np.testing.assert_array_equal(mesh_lib.local_rows(Half(), 8), [4, 5, 6, 7])


@pytest.mark.parametrize('sizes', [(1, 1, 1), (2, 2, 2), (1, 8, 1)], ids=str)
def test_global_batch(sizes):
    config = Mesh(*sizes)
    mesh = mesh_lib.make_mesh(config, jax.devices()[: np.prod(sizes)])
    sharding = mesh_lib.batch_sharding(mesh, tiny_config().model.rules)
    local = np.arange(8 * 3, dtype=np.int32).reshape(8, 3)
    rows = mesh_lib.local_rows(sharding, 8)
    batch = mesh_lib.global_batch(local[rows], rows, sharding, 8)
    np.testing.assert_array_equal(batch, local)
    assert batch.sharding == sharding
    assert batch.addressable_shards[0].data.shape == (8 // (sizes[0] * sizes[1]), 3)


@pytest.mark.parametrize('sizes', [{'data': 2, 'fsdp': 8}, {'data': 4, 'fsdp': 2, 'tensor': 2}], ids=str)
def test_only_data_goes_over_slices(sizes, tpu_devices):
    mesh = mesh_lib.make_mesh(Mesh(**sizes), tpu_devices('v5e:2x4', 2))
    assert {axis: n for axis, n in mesh.shape.items() if n > 1} == sizes
    per_slice = [{device.slice_index for device in part.flat} for part in mesh.devices]
    n = sizes['data'] // 2
    assert per_slice == [{0}] * n + [{1}] * n


def test_slices_that_data_cannot_be_split_over(tpu_devices):
    with pytest.raises(ConfigError, match='mesh.data = 1 cannot be split over 2 TPU slices'):
        mesh_lib.make_mesh(Mesh(data=1, fsdp=-1), tpu_devices('v5e:2x4', 2))


@pytest.mark.parametrize('name', VARIANTS)
def test_fsdp_leaves_no_matrix_whole(name):
    """What is not split over fsdp is on every device of a slice, with its moments."""
    with on_mesh({'fsdp': 8}):
        shapes = jax.eval_shape(lambda: init_params(tiny_model(tiny_config(**VARIANTS[name])), jax.random.key(0)))
    matrices = [
        (jax.tree_util.keystr(path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
        if path[-1].key in ('kernel', 'embedding')
    ]
    whole = [name for name, leaf in matrices if 'fsdp' not in leaf.sharding.spec]
    assert matrices and not whole
