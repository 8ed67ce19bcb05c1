"""Experts over the mesh: the same step everywhere, and only the tokens travel."""

import collections
import contextlib
import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from tiny import BOS, LLAMA, L, packed_tokens, place, tiny_config, tiny_model, tiny_training

from llm_jax.config.schema import ConfigError, Mesh
from llm_jax.dist import mesh as mesh_lib
from llm_jax.dist.fit import check_fit
from llm_jax.nn.feed_forward import DENSE
from llm_jax.nn.moe import mixture
from llm_jax.nn.transformer import init_params, parameters_of
from llm_jax.train.optimizer import Span, make_optimizer, make_schedule
from llm_jax.train.state import init_state
from llm_jax.train.step import make_train_step

MOE = LLAMA | {
    'feed_forward': 'moe', 'attention': 'mha', 'n_kv_heads': 0, 'model__moe__n_experts': 8, 'optimizer__eps': 1e-3,
    'optimizer__learning_rate': 0.1,
}  # fmt: skip
CASES = {
    'mixtral': {'model__moe__score': 'softmax_top'},
    'deepseek': {
        'bias': True, 'model__moe__score': 'sigmoid', 'model__moe__n_groups': 4, 'model__moe__top_groups': 2,
        'model__moe__n_shared': 1, 'model__moe__balance': 'bias', 'model__moe__group_score': 'top2',
        'model__moe__top_k': 3,
    },
}  # fmt: skip
EXPERT_MESHES = (
    {'expert': 8}, {'expert': 4, 'tensor': 2}, {'expert': 2, 'fsdp': 4}, {'data': 2, 'expert': 2, 'tensor': 2},
)  # fmt: skip


def on(**axes):
    if not axes:
        return contextlib.nullcontext()
    mesh = Mesh(**({'fsdp': 1} | axes))
    return jax.set_mesh(mesh_lib.make_mesh(mesh, jax.devices()[: math.prod(axes.values())]))


def one_step(config, **axes):
    with on(**axes):
        step, state = tiny_training(config)
        new, metrics = step(state, place(packed_tokens(config.train.batch_size), config))
        return jax.device_get((metrics, new.params)), [jax.tree.map(jax.typeof, s) for s in (state, new)]


def close(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), a, b)


@pytest.fixture(scope='module', params=CASES)
def fields(request):
    return MOE | CASES[request.param]


@pytest.fixture(scope='module')
def one_device(fields):
    return one_step(tiny_config(**fields))[0]


@pytest.mark.parametrize('axes', EXPERT_MESHES, ids=str)
def test_same_step(fields, one_device, axes):
    """Random routers are uneven, so the smallest capacity takes more rounds than one."""
    result, (before, after) = one_step(tiny_config(**fields, model__moe__capacity_factor=1.0), **axes)
    close(result, one_device)
    assert before == after


def test_same_step_with_all_rows_everywhere(fields, one_device):
    config = tiny_config(**fields, model__moe__dispatch='gather', model__moe__capacity_factor=1.0)
    close(one_step(config, expert=4, tensor=2)[0], one_device)


def layer(n_tokens, **fields):
    """An expert layer's config, and random tokens, choices and matrices [E, ...] for it."""
    config, rng = tiny_config(**MOE, bias=True, **fields).model, np.random.default_rng(0)
    E, D, F, k = config.moe.n_experts, 32, 96, config.moe.top_k
    draw = lambda *shape: (0.3 * rng.normal(size=shape)).astype(np.float32)
    weights = [(draw(E, D, F), draw(E, F)), (draw(E, D, F), draw(E, F))], (draw(E, F, D), draw(E, D))
    chosen = np.argsort(rng.random((4, n_tokens // 4, E)), -1)[..., :k].astype(np.int32)
    return config, weights, draw(4, n_tokens // 4, D), chosen, np.abs(draw(4, n_tokens // 4, k))


def exact(weights, x, chosen, scale):
    """Every token through each expert that it chose, one at a time, in float64."""
    (gate, up), down = jax.tree.map(lambda w: w.astype(np.float64), weights)
    one = lambda w, e: {'kernel': w[0][e], 'bias': w[1][e]}
    y = np.zeros(x.shape)
    for at in np.ndindex(chosen.shape):
        e = chosen[at]
        expert = {'gate': one(gate, e), 'up': one(up, e), 'down': one(down, e)}
        y[at[:2]] += scale[at] * reference.feed_forward('swiglu', x[at[:2]][None].astype(np.float64), expert)[0]
    return y


def placed(config, weights, *rest):
    spec = lambda *names: mesh_lib.spec(config.rules, names)
    ins, out = (
        (('experts', 'd_model', 'd_ff'), ('experts', 'd_ff')),
        (('experts', 'd_ff', 'd_model'), ('experts', None)),
    )
    put = lambda pair, axes: tuple(jax.device_put(w, spec(*a)) for w, a in zip(pair, axes, strict=True))
    weights = [put(pair, ins) for pair in weights[0]], put(weights[1], out)
    return weights, *(jax.device_put(x, spec(*mesh_lib.TOKENS)) for x in rest)


@pytest.mark.parametrize('dispatch', ['all_to_all', 'gather'])
def test_rows_split_over_context_and_everyone_wants_one_expert(dispatch):
    """Tokens lie over data, expert and context; all choose expert 5, so that every round is needed."""
    config, weights, x, chosen, scale = layer(64, model__moe__dispatch=dispatch, model__moe__capacity_factor=1.0)
    chosen[..., 0] = np.where((chosen == 5).any(-1), chosen[..., 0], 5)
    with on(expert=2, context=2, tensor=2):
        run = jax.jit(lambda *args: mixture(config, DENSE['swiglu'], *args))
        y, dropped = run(*placed(config, weights, x, chosen, scale))
        assert y.sharding.spec == jax.P('expert', 'context', None)
    np.testing.assert_allclose(y, exact(weights, x, chosen, scale), rtol=1e-4, atol=1e-4)
    assert dropped == 0


def test_what_is_over_capacity_is_dropped_if_asked():
    """A round of one device has room for 8 rows of each other: of its 16 choices of expert 5, 8 are left."""
    config, weights, x, chosen, scale = layer(64, model__moe__top_k=1, model__moe__capacity_factor=1.0)
    config = dataclasses.replace(config, moe=dataclasses.replace(config.moe, dropless=False))
    chosen[:] = 5
    with on(expert=4):
        run = jax.jit(lambda *args: mixture(config, DENSE['swiglu'], *args))
        y, dropped = jax.device_get(run(*placed(config, weights, x, chosen, scale)))
    full = exact(weights, x, chosen, scale)
    np.testing.assert_allclose(y[:, :8], full[:, :8], rtol=1e-4, atol=1e-4)
    assert dropped == 32
    assert not y[:, 8:].any()


def test_dropped_choices_are_reported():
    fields = MOE | {'model__moe__dropless': False, 'model__moe__capacity_factor': 1.0}
    metrics = one_step(tiny_config(**fields), expert=8)[0][0]
    assert 0 < metrics['router_dropped'] < 1
    assert one_step(tiny_config(**fields))[0][0]['router_dropped'] == 0  # one device has room for all


def collectives(axes, **fields):
    """(kind, elements of the largest result) of every collective of a compiled step."""
    config = tiny_config(**MOE, **fields)
    with on(**axes):
        step, state = tiny_training(config)
        text = step.lower(state, place(packed_tokens(8), config)).compile().as_text()
    kinds = 'all-to-all|all-gather|reduce-scatter|all-reduce|collective-permute'
    found = re.findall(rf'= (\(?[a-z]+\d+\[.*?) ({kinds})\(', text)
    sizes = lambda shapes: [math.prod(map(int, s.split(','))) for s in re.findall(r'\[([\d,]+)\]', shapes)]
    return collections.Counter((kind, max(sizes(shapes), default=1)) for shapes, kind in found)


@pytest.mark.parametrize('axes', EXPERT_MESHES[:3], ids=str)
def test_only_tokens_travel_between_experts(axes):
    """What a step sends because of its experts; the scanned layer is there once forward, once backward."""
    found = collectives(axes)
    E, D, F, k = 8, 32, 96, 2
    tokens, n = 8 * L // 8 * axes.get('tensor', 1), axes['expert']
    C = min(tokens * min(k, E // n), 8 * math.ceil(1.5 * tokens * k / n / 8))
    # Rows go and come back, in the first round and in the others: forward (2 each), backward (2 each), and once again
    # for the backward pass of the others, which need them anew. Their weights go with them. Once the numbers of rows.
    assert {key: n for key, n in found.items() if key[0] == 'all-to-all'} == {
        ('all-to-all', C * D): 9, ('all-to-all', C): 5, ('all-to-all', E // n): 1,
    }  # fmt: skip
    held = E // n * D * F  # of each matrix, by the devices of fsdp and tensor together
    large = {key: n for key, n in found.items() if key[1] >= held // axes.get('tensor', 1) // axes.get('fsdp', 1)}
    fsdp = {('all-gather', held): 3, ('reduce-scatter', held // axes.get('fsdp', 1)): 3}
    assert {key: n for key, n in large.items() if key[0] != 'all-to-all'} == (fsdp if 'fsdp' in axes else {})


def test_gathering_sends_no_rows_to_and_fro():
    found = collectives({'expert': 8}, model__moe__dispatch='gather')
    assert 'all-to-all' not in {kind for kind, _ in found}
    assert ('all-gather', 8 * L * 32) in found


@pytest.mark.parametrize(
    ('fields', 'sizes', 'message'),
    [
        ({'model__moe__n_experts': 6}, {'expert': 4},
         'model.moe.n_experts = 6 cannot be split over mesh expert 4: it must be a multiple of 4. '
         'Change it (e.g. to 8), the mesh, or mesh.rules.experts'),
        ({'model__moe__d_ff': 9}, {'tensor': 2}, 'model.moe.d_ff = 9 cannot be split over mesh tensor 2'),
        ({'mesh__rules__experts': 'fsdp'}, {'fsdp': 2}, "mesh.rules.d_model = 'fsdp': 'fsdp' already splits 'experts'"),
        ({'mesh__rules__batch': ('data', 'fsdp')}, {'expert': 2},
         "mesh.rules.experts = 'expert' is an axis that does not split the batch"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(fields, sizes, message):
    sizes = dict.fromkeys(mesh_lib.AXES, 1) | sizes
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_fit(tiny_config(**(MOE | fields)), sizes)


def test_an_axis_without_experts_splits_the_batch():
    config = tiny_config(**(LLAMA | {'optimizer__eps': 1e-3}))
    close(one_step(config, expert=4)[0], one_step(config)[0])


def test_capacity_below_an_even_share():
    with pytest.raises(ConfigError, match=re.escape('model.moe.capacity_factor = 0.5')):
        tiny_config(**MOE, model__moe__capacity_factor=0.5)


def test_gradients_through_further_rounds_equal_those_of_one():
    """All choices on one device: the rounds of the smallest capacity against one round that has room for all."""
    config, weights, x, chosen, scale = layer(64, model__moe__capacity_factor=1.0)
    roomy = dataclasses.replace(config, moe=dataclasses.replace(config.moe, capacity_factor=8.0))
    chosen %= 2
    chosen[..., 1] = 1 - chosen[..., 0]
    results = []
    with on(expert=4):
        args = placed(config, weights, x, chosen, scale)
        for c in (config, roomy):
            loss = lambda w, x, s, c=c: jnp.sum(jnp.sin(mixture(c, DENSE['swiglu'], w, x, args[2], s)[0]))
            results.append(jax.device_get(jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(args[0], args[1], args[3])))
    close(*results)


@pytest.mark.parametrize('dispatch', ['all_to_all', 'gather'])
def test_rows_are_moved_by_gathers_alone(dispatch):
    """Forward and backward: what is known from both sides needs no scatter, which TPUs do row by row after a sort."""
    config, weights, x, chosen, scale = layer(64, model__moe__dispatch=dispatch)
    config = dataclasses.replace(config, bias=False)
    weights = [w[:1] for w in weights[0]], weights[1][:1]
    loss = lambda w, x, chosen, s: jnp.sum(mixture(config, DENSE['swiglu'], w, x, chosen, s)[0])
    with on(expert=4):
        ins, out = (
            [(mesh_lib.spec(config.rules, ('experts', 'd_model', 'd_ff')),)] * 2,
            (mesh_lib.spec(config.rules, ('experts', 'd_ff', 'd_model')),),
        )
        weights = jax.tree.map(jax.device_put, weights, (ins, out))
        rows = [jax.device_put(a, mesh_lib.spec(config.rules, mesh_lib.TOKENS)) for a in (x, chosen, scale)]
        text = jax.jit(jax.grad(loss, argnums=(0, 1, 3))).lower(weights, *rows).as_text()
    scattered = re.findall(r'"stablehlo.scatter".*?\) -> (tensor<\S+>)', text, re.DOTALL)
    assert not [kind for kind in scattered if 'f32' in kind]
    assert scattered  # the numbers of rows are counted by one


def test_the_tpu_compiler_takes_the_step(tpu_devices):
    """A whole step for four chips that are not there: rows by all-to-all, further rounds in loops that seldom turn."""
    config = tiny_config(**MOE, d_model=256, dtype='bfloat16', model__moe__d_ff=512, mesh__expert=2, mesh__fsdp=2)
    mesh = mesh_lib.make_mesh(config.mesh, tpu_devices('v5p:2x2x1'))
    model = tiny_model(config)
    schedule = make_schedule(config.schedule, 0.1, Span(10, 2, 0, 0.1))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
        optimizer = make_optimizer(config.optimizer, schedule, params, parameters_of(model))
        state = jax.eval_shape(lambda: init_state(model, optimizer, jax.random.key(0), with_ema=False))
        lies = mesh_lib.spec(config.model.rules, ('batch', None))
    on_chips = lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.NamedSharding(mesh, spec))
    state = jax.tree.map(lambda x: on_chips(x, x.sharding.spec if x.sharding else jax.P()), state)
    tokens = on_chips(jax.ShapeDtypeStruct((8, L + 1), jnp.int32), lies)
    with jax.set_mesh(mesh):
        step = make_train_step(model, config, optimizer, schedule, bos_id=BOS)
        text = jax.jit(step).lower(state, tokens).compile().as_text()
    assert re.search(r' all-to-all(-start)?\(', text)
    assert 'about_0_turns/while' in text
