"""Contract 2: one step is the same on every mesh, and gradients lie like their parameters."""

import jax
import numpy as np
import pytest
from tiny import (
    BOS,
    GPT2,
    LLAMA,
    VARIANTS,
    L,
    V,
    on_mesh,
    one_step,
    packed_tokens,
    place,
    place_params,
    random_params,
    tiny_config,
    tiny_model,
    tiny_training,
)

from llm_jax.dist.mesh import active_rules
from llm_jax.ops.attend import Scores, attend
from llm_jax.train.step import make_eval_step, make_loss

MESHES = [(1, 1, 1), (1, 8, 1), (1, 4, 2), (2, 2, 2)]
# Between them: mha and gqa, tied and untied, all at once or in chunks and micro-batches.
# A large eps keeps Adam from blowing rounding errors of near-zero gradients up.
CONFIGS = {
    'gpt2': GPT2 | {'train__z_loss': 0.01, 'optimizer__eps': 1e-3},
    'llama, in pieces': LLAMA | {
        'train__batch_size': 16, 'train__grad_accumulation': 2, 'train__loss_chunk': 8, 'train__ema_decay': 0.5,
        'optimizer__eps': 1e-3,
    },
}  # fmt: skip


@pytest.fixture(scope='module', params=CONFIGS)
def config(request):
    return tiny_config(**CONFIGS[request.param], optimizer__learning_rate=0.1)


@pytest.fixture(scope='module')
def one_device(config):
    return one_step(config, MESHES[0])


@pytest.mark.parametrize('sizes', MESHES[1:], ids=str)
def test_same_step(config, sizes, one_device):
    results = one_step(config, sizes)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), results, one_device)
    assert not config.model.tie_embeddings or 'unembed' not in results[1]


@pytest.mark.parametrize('name', VARIANTS)
def test_same_step_with_every_part(name):
    """Losses, gradients' norm and parameters after a step, on one device and on data 2 x fsdp 2 x tensor 2."""
    config = tiny_config(**(LLAMA | VARIANTS[name] | {'optimizer__eps': 1e-3, 'n_kv_heads': 0, 'attention': 'mha'}
                            | {k: v for k, v in VARIANTS[name].items() if k == 'attention'}))  # fmt: skip
    metrics, params, _ = one_step(config, (1, 1, 1))
    metrics_8, params_8, _ = one_step(config, (2, 2, 2))
    np.testing.assert_allclose(metrics_8['loss'], metrics['loss'], rtol=1e-5)
    np.testing.assert_allclose(metrics_8['grad_norm'], metrics['grad_norm'], rtol=1e-3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), params_8, params)


@pytest.mark.parametrize('rule', ['kv_heads', 'heads'])
def test_heads_that_are_not_split_like_their_keys(rule):
    """One of the two is whole on every device: the way to split more heads than there are keys."""
    rules = tiny_config(**{f'mesh__rules__{rule}': None}).model.rules
    rng = np.random.default_rng(0)
    q, k, v, probe = (rng.normal(size=(4, L, n, 8)).astype(np.float32) for n in (4, 2, 2, 4))
    loss = lambda q, k, v, probe: jax.numpy.sum(probe * attend(q, k, v, rules=rules))
    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    results = [run(q, k, v, probe)]
    with on_mesh((2, 2, 2)):
        table = active_rules(rules)
        split = lambda x, name: jax.device_put(x, jax.P(table['batch'], None, table[name], None))
        results.append(run(split(q, 'heads'), split(k, 'kv_heads'), split(v, 'kv_heads'), split(probe, 'heads')))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)


@pytest.mark.parametrize('sizes', MESHES[1:], ids=str)
def test_gradients_lie_like_their_parameters(config, sizes):
    with on_mesh(sizes):
        model = tiny_model(config)
        _, state = tiny_training(config)
        tokens = place(packed_tokens(8), config)
        loss = make_loss(model, config, bos_id=BOS)
        grads, _ = jax.eval_shape(jax.grad(loss, has_aux=True), state.params, tokens)
        spec = lambda x: (x.shape, x.dtype, x.sharding.spec)
        assert jax.tree.map(spec, grads) == jax.tree.map(lambda p: spec(jax.typeof(p)), state.params)


@pytest.mark.parametrize('sizes', MESHES[1:], ids=str)
def test_parameters_are_split(sizes):
    """What the rules say is split over n devices takes 1/n of each device's memory."""
    named = dict(zip(('data', 'fsdp', 'tensor'), sizes, strict=True))
    with on_mesh(sizes):
        _, state = tiny_training(tiny_config(**LLAMA))
        for path, leaf in jax.tree_util.tree_leaves_with_path((state.params, state.opt_state)):
            axes = [part for part in jax.typeof(leaf).sharding.spec if part]
            n = np.prod([named[a] for a in axes] or [1])
            assert leaf.addressable_shards[0].data.size * n == leaf.size
            # Everything with two dimensions or more is split in every way that there is.
            name = jax.tree_util.keystr(path, simple=True, separator='/')
            ways = {axis for axis in ('fsdp', 'tensor') if named[axis] > 1}
            assert set(axes) == (ways if name.endswith(('kernel', 'embedding')) else set()), name


def test_attention_dropout_differs_between_devices():
    """Equal rows and equal heads, one of each on a device: each device draws its own mask."""
    rules = tiny_config().model.rules
    q_BLHK, v_BLHK = np.zeros((4, L, 2, 8), np.float32), np.ones((4, L, 2, 8), np.float32)
    run = lambda q, v, key: attend(q, q, v, rules=rules, scores=Scores(dropout=0.5), dropout_key=key)
    with on_mesh((2, 2, 2)):
        spec = jax.P(('data', 'fsdp'), None, 'tensor', None)
        q_BLHK, v_BLHK = jax.device_put(q_BLHK, spec), jax.device_put(v_BLHK, spec)
        y_BLHK = np.asarray(jax.jit(run)(q_BLHK, v_BLHK, jax.random.key(0)))
    per_device = y_BLHK[..., 0].transpose(0, 2, 1).reshape(8, L)
    assert len(np.unique(per_device, axis=0)) == 8


def test_evaluation_is_the_same():
    config = tiny_config(**LLAMA, dtype='bfloat16')
    model = tiny_model(config)
    results = []
    for sizes in (None, (2, 2, 2)):
        with on_mesh(sizes):
            evaluate = make_eval_step(model, config, bos_id=BOS, token_bytes=np.arange(V))
            params = place_params(model, random_params(model, scale=0.1))
            results.append(jax.device_get(jax.jit(evaluate)(params, place(packed_tokens(8), config))))
    assert results[0]['bytes'] == results[1]['bytes'] > 0
    np.testing.assert_allclose(results[0]['nll'], results[1]['nll'], rtol=3e-3)  # bfloat16
