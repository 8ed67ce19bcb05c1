"""The pipeline's schedule, against doing one thing after the other, and what it sends."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import (
    BOS,
    LLAMA,
    L,
    packed_tokens,
    place,
    place_params,
    random_params,
    tiny_config,
    tiny_model,
    tiny_training,
)

from llm_jax.checkpoint import Checkpoints
from llm_jax.config.schema import ConfigError
from llm_jax.dist import mesh as mesh_lib
from llm_jax.generate.engine import generate
from llm_jax.nn.transformer import init_params, layer_params
from llm_jax.ops import pipeline
from llm_jax.train.state import init_state
from llm_jax.train.step import make_loss, make_train_step


def on_axes(**axes):
    """A mesh of these axes as the current one."""
    devices = jax.devices()[: int(np.prod(list(axes.values())))]
    config = dataclasses.replace(tiny_config().mesh, **axes)
    return jax.set_mesh(mesh_lib.make_mesh(config, devices))


@pytest.mark.parametrize(
    ('stages', 'microbatches', 'repeats', 'layers', 'fsdp'),
    [(2, 4, 1, 6, 2), (2, 6, 3, 6, 4), (4, 8, 2, 16, 1), (3, 6, 2, 6, 1), (6, 6, 4, 24, 1), (8, 8, 1, 8, 1)],
)  # fmt: skip
def test_equals_one_layer_after_the_other(stages, microbatches, repeats, layers, fsdp):
    """Values, reports and gradients of maps that do not commute, on rows that are all different."""
    rules = tiny_config().model.rules
    rng = np.random.default_rng(0)
    B, D = microbatches * fsdp * 2, 3
    w = rng.normal(size=(layers, D, D)).astype(np.float32) / 2 + np.eye(D, dtype=np.float32)
    x, probe = rng.normal(size=(2, B, L, D)).astype(np.float32)
    ids = rng.integers(0, 9, (B, L)).astype(np.int32)

    def expected(w, x):
        reports = []
        for w_l in w:
            reports.append(jnp.sum(x**2))
            x = jnp.tanh(x @ w_l) + jnp.asarray(ids)[..., None]
        return jnp.sum(x * probe) + jnp.sum(jnp.stack(reports) * jnp.arange(layers)), (x, jnp.stack(reports))

    def group(params, x, ids, key):
        def layer(x, w_l):
            report = jnp.sum(x**2)
            y = jnp.einsum('BLD,DE->BLE', x, w_l, out_sharding=jax.typeof(x).sharding.spec)
            return jnp.tanh(y) + ids[..., None], report

        return jax.lax.scan(layer, x, params)

    def piped(w, x):
        plan = pipeline.schedule(rules, (microbatches, repeats))
        assert plan == (stages, microbatches, repeats)
        x, reports = pipeline.run(group, w, x, ids_on_mesh, None, plan=plan, rules=rules)
        return jnp.sum(x * probe_on_mesh) + jnp.sum(reports * jnp.arange(layers)), (x, reports)

    wanted = jax.value_and_grad(expected, argnums=(0, 1), has_aux=True)(w, x)
    with on_axes(stage=stages, fsdp=fsdp):
        put = lambda a, *axes: jax.device_put(a, mesh_lib.spec(rules, axes))
        ids_on_mesh, probe_on_mesh = put(ids, 'batch', None), put(probe, 'batch', None, None)
        w, x = put(w, 'layers', None, None), put(x, 'batch', None, None)
        got = jax.jit(jax.value_and_grad(piped, argnums=(0, 1), has_aux=True))(w, x)
        assert jax.typeof(got[1][0]) == jax.typeof(w)
        assert jax.typeof(got[1][1]) == jax.typeof(got[0][1][0]) == jax.typeof(x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3), got, wanted)


@pytest.mark.parametrize('plan', [pipeline.Schedule(2, 2, 1), pipeline.Schedule(4, 8, 3), pipeline.Schedule(8, 64, 2)])
def test_the_bubble_is_what_no_stage_can_use(plan):
    """Told from who needs what: each piece of work after the one before it, one at a time on each stage."""
    S = plan.stages
    busy, done = np.zeros((S, plan.iterations), bool), {}
    for block in range(plan.microbatches // S):
        for i in range(S):
            time = 0
            for group in range(S * plan.repeats):
                stage = group % S
                start = block * plan.block + group // S * S + i + stage
                assert start >= time
                assert not busy[stage, start]
                busy[stage, start] = done[block * S + i, group] = True
                time = start + 1
    assert len(done) == plan.microbatches * plan.repeats * S
    np.testing.assert_allclose(1 - busy.mean(), plan.bubble)


def compiled(config, **axes):
    with on_axes(**axes):
        step, state = tiny_training(config)
        tokens = place(packed_tokens(config.train.batch_size), config)
        return step.lower(state, tokens).compile().as_text()


def sent(text, n_devices, distance):
    """Collectives of a program between devices whose numbers differ by exactly `distance`: [(kind, shapes)]."""
    found = []
    for shapes, kind, rest in re.findall(
        r'= (\(?[^=\n]*?\)?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\((.*)',
        text,
    ):
        if pairs := re.search(r'source_target_pairs=\{\{(.*?)\}\}', rest):
            groups = [[int(n) for n in pair.split(',')] for pair in pairs[1].split('},{')]
        elif explicit := re.search(r'replica_groups=\{\{(.*?)\}\}', rest):
            groups = [[int(n) for n in group.split(',')] for group in explicit[1].split('},{')]
        elif iota := re.search(r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', rest):
            numbers = [[int(n) for n in part.split(',')] if part else None for part in iota.groups()]
            ids = np.arange(n_devices).reshape(numbers[1])
            groups = (ids if numbers[2] is None else ids.transpose(numbers[2])).reshape(numbers[0]).tolist()
        else:
            named = re.search(
                r'replica_groups=mesh\[(.*?)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{(.*?)\}', rest
            )
            sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", named[1])}
            ids = np.arange(n_devices)
            if named[2]:
                ids = ids.reshape([int(n) for n in named[2].split(',')])
                ids = ids.transpose([int(n) for n in named[3].split(',')]) if named[3] else ids
            ids = ids.reshape(list(sizes.values()))
            over = [list(sizes).index(name) for name in re.findall(r"'(\w+)'", named[4])]
            groups = (
                np.moveaxis(ids, over, range(-len(over), 0))
                .reshape(-1, int(np.prod([ids.shape[a] for a in over])))
                .tolist()
            )
        if any(abs(a - b) == distance for group in groups for a in group for b in group):
            found.append((kind, shapes))
    return found


@pytest.mark.parametrize('repeats', [1, 2])
def test_what_goes_between_stages(repeats):
    """On stage 2 x fsdp 2 x tensor 2 device numbers of two stages differ by 4: and only one program reaches so far."""
    config = tiny_config(**LLAMA, n_layers=4, train__batch_size=16, mesh__pipeline_repeats=repeats)
    found = sent(compiled(config, stage=2, fsdp=2, tensor=2), 8, 4)
    b, D = 16 // 2 // 2, config.model.d_model
    permutes = [shape.partition('{')[0] for kind, shape in found if kind == 'collective-permute']
    stream = [shape for shape in permutes if shape == f'f32[{b},{L},{D}]']
    # Forward and backward: what a stage made goes up, the rows of the batch go down to stage 0 and back.
    assert len(stream) == 6
    # A circular schedule sends each weight once and its gradient back, as it lies: split over fsdp and tensor.
    weights = len(jax.tree.leaves(init_shapes(config)['layers'])) if repeats > 1 else 0
    assert len(permutes) - len(stream) == 2 * weights
    # Of the rest of a batch, tokens' positions and segments are everywhere.
    others = [(kind, shapes) for kind, shapes in found if kind != 'collective-permute']
    assert {kind for kind, _ in others} == {'all-gather', 'all-reduce'}
    assert all(shapes.startswith('s32[') for kind, shapes in others if kind == 'all-gather')
    # Weights that are on all stages (here the head, 32 x 64 over fsdp and tensor) have their gradients summed.
    summed = ' '.join(shapes for kind, shapes in others if kind == 'all-reduce')
    assert max(np.prod([int(n) for n in dims.split(',')]) for dims in re.findall(r'f32\[([\d,]+)\]', summed)) <= 32 * 64


def init_shapes(config):
    return jax.eval_shape(lambda: init_params(tiny_model(config), jax.random.key(0)))


def test_parameters_and_state_are_split_over_the_stages():
    with on_axes(stage=4, fsdp=2):
        _, state = tiny_training(tiny_config(**LLAMA, n_layers=8))
        stacks = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path((state.params, state.opt_state))
                  if 'layers' in jax.tree_util.keystr(path)]  # fmt: skip
        assert len(stacks) == 3 * 9  # the parameters and Adam's two moments
        assert all(leaf.addressable_shards[0].data.shape[0] == 2 for leaf in stacks)


@pytest.mark.parametrize('repeats', [1, 2])
def test_a_checkpoint_does_not_depend_on_the_stages(tmp_path, repeats):
    config = tiny_config(**LLAMA, n_layers=4, mesh__pipeline_repeats=repeats)
    model = tiny_model(config)
    params = random_params(model)
    checkpoints = Checkpoints(tmp_path, config.checkpoint)
    with on_axes(stage=2, tensor=2):
        checkpoints.save(1, {'params': place_params(model, params)}, {})
        checkpoints.wait()
    for axes in ({'fsdp': 2}, {'stage': 4}):
        with on_axes(**axes) as _:
            mesh = jax.sharding.get_mesh()
            shapes = init_shapes(config)
            restored = checkpoints.restore(1, {'params': shapes}, mesh)['params']
            jax.tree.map(np.testing.assert_array_equal, restored, params)
            one = jax.jit(lambda params: layer_params(params, config.model, 2))(restored)
            jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[2]), one, params['layers'])
    checkpoints.close()


def test_initial_parameters_are_the_same():
    config = tiny_config(**LLAMA, n_layers=4)
    model = tiny_model(config)
    plain = jax.jit(lambda key: init_params(model, key))(jax.random.key(0))
    with on_axes(stage=4, tensor=2):
        staged = jax.jit(lambda key: init_params(model, key))(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, staged, plain)


def test_generation_is_the_same():
    config = tiny_config(**LLAMA, n_layers=4, max_seq_len=64, mesh__pipeline_repeats=2)
    model = tiny_model(config)
    outs = []
    for axes in ({}, {'stage': 2, 'fsdp': 2, 'tensor': 2}):
        with on_axes(**{'fsdp': 1, **axes}):
            params = place_params(model, random_params(model))
            outs.append(generate(model, params, [[1, 5, 6], [1, 9]], max_new_tokens=9))
    assert outs[0] == outs[1]


def test_dropout_differs_between_layers_and_micro_batches():
    """Each call of a group has a key of its own."""
    rules = tiny_config().model.rules

    def group(params, x, ids, key):
        return x, jax.random.bits(key, (jax.tree.leaves(params)[0].shape[0], 8), 'uint32').astype(jnp.float32)

    keys = []
    for microbatches in (4, 8):
        with on_axes(stage=4):
            plan = pipeline.schedule(rules, (microbatches, 2))
            w, x = (jax.device_put(np.zeros((8, *rest)), jax.P('stage')) for rest in ((3,), (L, 3)))
            run = lambda w, x, plan=plan: pipeline.run(group, w, x, None, jax.random.key(0), plan=plan, rules=rules)[1]
            keys.append(np.asarray(jax.jit(run)(w, x)))
    assert len(np.unique(keys[0], axis=0)) == 8
    assert not np.any(np.isclose(keys[1], 2 * keys[0], rtol=1e-6))  # the second half of the keys is not the first


def test_rows_that_do_not_divide():
    config = tiny_config(**LLAMA, mesh__pipeline_microbatches=4)
    with on_axes(stage=2):
        model = tiny_model(config)
        params = place_params(model, random_params(model))
        tokens = place(packed_tokens(6), config)
        with pytest.raises(ConfigError, match='a batch of 6 rows cannot be split into 4 micro-batches on this mesh'):
            jax.eval_shape(lambda p, t: model.apply({'params': p}, t), params, tokens)


@pytest.mark.parametrize('sizes', [{'fsdp': 2, 'tensor': 2}, {'context': 2, 'tensor': 2}], ids=str)
def test_the_kernel_of_tpus_within_a_stage(sizes):
    """Traced for a mesh of no devices: its tables lie on the axes that the pipeline leaves."""
    config = tiny_config(**LLAMA, n_layers=4, attention_kernel='splash', data__seq_len=512)
    sizes = dict.fromkeys(mesh_lib.AXES, 1) | {'stage': 2} | sizes
    explicit = (jax.sharding.AxisType.Explicit,) * len(sizes)
    model = tiny_model(config)
    mesh = jax.sharding.AbstractMesh((*sizes.values(),), (*sizes,), axis_types=explicit)
    with jax.sharding.use_abstract_mesh(mesh):
        params = init_shapes(tiny_config(**LLAMA, n_layers=4))
        rows = jax.sharding.NamedSharding(mesh, mesh_lib.spec(config.model.rules, ('batch', None)))
        rows = jax.ShapeDtypeStruct((8, 513), jnp.int32, sharding=rows)
        traced = jax.jit(jax.grad(make_loss(model, config, bos_id=BOS), has_aux=True)).trace(params, rows)
    assert 'splash_mha' in str(traced.jaxpr)
    spec = lambda x: (x.shape, x.sharding.spec)
    assert jax.tree.map(spec, traced.out_info[0]) == jax.tree.map(spec, params)


@pytest.mark.parametrize(
    ('axes', 'overrides', 'sent', 'kernels'),
    [
        ({'fsdp': 2, 'tensor': 2}, {}, 'bf16[4,16,256]', 0),
        pytest.param(
            {'context': 2, 'tensor': 2},
            {'data__seq_len': 512, 'mesh__rules__residual_length': ('context', 'tensor')},
            'bf16[8,128,256]', 3, marks=pytest.mark.slow,
        ),
    ],
    ids=['fsdp, tensor', 'context, tensor, splash'],
)  # fmt: skip
def test_compiles_for_a_tpu(tpu_devices, axes, overrides, sent, kernels):
    """A step in bfloat16 on v5e:2x4, two stages in a circle: its sends are asynchronous, and it fits."""
    config = tiny_config(
        **LLAMA, n_layers=8, d_model=256, dtype='bfloat16', remat='full', train__batch_size=32,
        mesh__pipeline_repeats=2, mesh__pipeline_microbatches=4, **overrides,
    )  # fmt: skip
    sizes = dataclasses.replace(config.mesh, stage=2, **axes)
    mesh, model, optimizer = mesh_lib.make_mesh(sizes, tpu_devices('v5e:2x4')), tiny_model(config), optax.sgd(0.1)
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(lambda: init_state(model, optimizer, jax.random.key(0), with_ema=False))
        on_mesh = lambda spec: jax.sharding.NamedSharding(mesh, spec)
        place_one = lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=on_mesh(x.sharding.spec if x.sharding else jax.P())
        )
        state = jax.tree.map(place_one, shapes)
        rows = on_mesh(mesh_lib.spec(config.model.rules, ('batch', None)))
        tokens = jax.ShapeDtypeStruct((32, config.data.seq_len + 1), jnp.int32, sharding=rows)
        step = make_train_step(model, config, optimizer, lambda _: 0.1, bos_id=BOS)
        text = jax.jit(step, donate_argnums=0).lower(state, tokens).compile().as_text()
    permutes = re.findall(r'collective-permute-start', text)
    assert len(permutes) >= 6
    assert sent in text
    assert text.count('tpu_custom_call') >= kernels
