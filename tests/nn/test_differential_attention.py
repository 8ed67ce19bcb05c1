"""experiments/pretrain/differential_attention.py: a part that its own file defines keeps every contract."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import (
    BOS,
    LLAMA,
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

from llm_jax import metrics
from llm_jax.config import parts
from llm_jax.config.schema import ConfigError
from llm_jax.generate import decode
from llm_jax.generate.engine import generate
from llm_jax.nn.attention import Tokens
from llm_jax.nn.transformer import weights_of

FILE = pathlib.Path(__file__).parents[2] / 'experiments/pretrain/differential_attention.py'
DIFFERENTIAL = parts.import_file(FILE).DifferentialAttention


def config_of(**fields):
    return tiny_config(**LLAMA | {'attention': DIFFERENTIAL} | fields)


def rotated(x_LHK):
    """Pairs (i, i + K/2) as complex numbers, turned by position · frequency."""
    K = x_LHK.shape[-1]
    z = x_LHK[..., : K // 2] + 1j * x_LHK[..., K // 2 :]
    angle = np.arange(len(x_LHK))[:, None] * 10_000.0 ** (-2 * np.arange(K // 2) / K)
    z = z * np.exp(1j * angle)[:, None]
    return np.concatenate([z.real, z.imag], -1)


@pytest.mark.parametrize('layer', [0, 3])
def test_equals_the_paper(layer):
    """Equations 1 to 3, written out in float64."""
    config = config_of(attention_softcap=0.0).model
    K, D = 4, 32
    x_BLD = np.random.default_rng(0).normal(size=(1, L, D)).astype(np.float32)
    module = DIFFERENTIAL(config, name='attention')
    position = parts.position(config)
    positions_BL = jnp.arange(L)[None]
    tokens = Tokens(None, positions_BL, None, position.tables(config, positions_BL, K), layer)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x_BLD, tokens, None))['params']
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32), shapes)
    got, _ = jax.jit(lambda p: module.apply({'params': p}, x_BLD, tokens, None))(params)

    p, x = jax.tree.map(lambda leaf: leaf.astype(np.float64), params), x_BLD[0].astype(np.float64)
    q, k, v = (np.einsum('LD,DHK->LHK', x, p[name]['kernel']) for name in 'qkv')
    k, v = (np.repeat(y, 2, axis=1) for y in (k, v))  # two query heads share each
    maps = []
    for half in (slice(0, K), slice(K, 2 * K)):
        scores = np.einsum('QHK,SHK->HQS', rotated(q[..., half]), rotated(k[..., half])) / np.sqrt(K)
        scores = np.where(np.tril(np.ones((L, L), bool)), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        maps.append(weights / weights.sum(-1, keepdims=True))
    first = 0.8 - 0.6 * np.exp(-0.3 * layer)
    lam = np.exp(p['lambda_q1'] @ p['lambda_k1']) - np.exp(p['lambda_q2'] @ p['lambda_k2']) + first
    y = np.einsum('HQS,SHV->QHV', maps[0] - lam * maps[1], v)
    y = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5) * p['head_norm']['scale'] * (1 - first)
    np.testing.assert_allclose(got[0], np.einsum('LHV,HVD->LD', y, p['out']['kernel']), rtol=2e-4, atol=2e-5)


@pytest.fixture(scope='module')
def model():
    return tiny_model(config_of())


@pytest.fixture(scope='module')
def params(model):
    return random_params(model)


@pytest.fixture(scope='module')
def rows():
    return np.random.default_rng(0).integers(2, V, (4, L)).astype(np.int32)


@pytest.fixture(scope='module')
def logits(model, params, rows):
    return np.asarray(jax.jit(model.apply)({'params': params}, rows))


def test_no_output_depends_on_a_later_token(model, params, rows, logits):
    changed = rows.copy()
    changed[:, 9] = (changed[:, 9] + 1) % V
    differs = np.any(np.asarray(jax.jit(model.apply)({'params': params}, changed)) != logits, axis=(0, -1))
    np.testing.assert_array_equal(differs, np.arange(L) >= 9)


def test_unrolled_is_scanned(params, rows, logits):
    """The index of the layer is the same in a loop and out of it."""
    unrolled = tiny_model(config_of(scan=False))
    np.testing.assert_allclose(jax.jit(unrolled.apply)({'params': params}, rows), logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('sizes', [None, (1, 4, 2)], ids=str)
def test_cached_decoding_is_the_full_forward_pass(model, params, rows, logits, sizes):
    config = config_of()
    with on_mesh(sizes):
        lay = functools.partial(place, config=config)
        forward = jax.jit(functools.partial(decode.forward, model))
        weights = decode.prepare(model, place_params(model, params))
        caches = jax.jit(lambda: decode.empty_caches(model.config, len(rows), L))()
        positions = np.broadcast_to(np.arange(L), rows.shape)
        at, last = 7, np.full(len(rows), 6)
        out, caches = forward(weights, lay(rows[:, :at]), lay(positions[:, :at]), caches, last)
        np.testing.assert_allclose(out, logits[:, at - 1], rtol=1e-4, atol=1e-4)
        for i in range(at, at + 3):
            out, caches = forward(weights, lay(rows[:, i : i + 1]), lay(positions[:, i : i + 1]), caches, 0 * last)
            np.testing.assert_allclose(out, logits[:, i], rtol=1e-4, atol=1e-4)


def test_a_step_is_the_same_on_every_mesh():
    config = config_of(optimizer__eps=1e-3)
    alone, split = one_step(config, (1, 1, 1)), one_step(config, (1, 4, 2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), alone[:2], split[:2])


def test_trains_and_samples():
    config = config_of(optimizer__learning_rate=1e-2)
    step, state = tiny_training(config)
    losses = []
    for _ in range(6):
        state, measured = step(state, packed_tokens(8))
        losses.append(float(measured['loss']))
    assert losses[-1] < losses[0]
    learnt = state.params['layers']['attention']['lambda_q1'] != random_params(tiny_model(config))['layers'][
        'attention']['lambda_q1']  # fmt: skip
    assert learnt.all()
    out = generate(tiny_model(config), state.params, [[BOS, 5], [BOS, 7, 9]], max_new_tokens=4)
    assert [len(row) for row in out] == [4, 4]


def test_what_it_says_of_itself(model, params):
    config = model.config
    counts = metrics.count(config, params, weights_of(model))
    # Two maps, each 4 heads · (4 + 8) multiplications of a pair; twice for multiply and add, three times with backward.
    attention = 2 * 2 * 3 * config.n_layers * (4 * (4 + 8)) * L
    assert metrics.flops_per_token(config, counts, L) == 6 * counts.matmul + attention
    with pytest.raises(ConfigError, match=r"model.qk_norm = 'head': differential attention has none"):
        config_of(qk_norm='head')


def test_has_an_option():
    config = config_of(model__options__attention__lambda_std=0.5)
    shapes = tiny_model(config)
    made = shapes.init(jax.random.key(0), jnp.zeros((1, L), jnp.int32))['params']['layers']['attention']
    assert 0.3 < float(jnp.std(jnp.stack([made[f'lambda_{name}'] for name in ('q1', 'q2', 'k1', 'k2')]))) < 0.7
    message = r'model.options.attention.lambda_sdt = 0.5: DifferentialAttention has no such option; did you mean'
    with pytest.raises(ConfigError, match=message):
        config_of(model__options__attention__lambda_sdt=0.5)
