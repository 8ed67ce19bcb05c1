"""The fused kernels: which is chosen, and that each computes what plain XLA does."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import LLAMA, on_mesh, tiny_config

from llm_jax.config.schema import ConfigError
from llm_jax.dist import mesh as mesh_lib
from llm_jax.ops import zigzag
from llm_jax.ops.attend import Scores, attend, splash
from llm_jax.ops.attend.choose import choose_kernel, kernels

RULES = tiny_config().model.rules


def model(**overrides):
    return tiny_config(**LLAMA | {'dtype': 'bfloat16', 'd_head': 64} | overrides).model


@pytest.mark.parametrize(
    ('overrides', 'where', 'expected'),
    [
        ({}, {'platform': 'tpu', 'length': 1024}, ('splash', 'the fastest on TPU')),
        ({}, {'platform': 'cuda', 'length': 1024}, ('cudnn', 'the fastest on NVIDIA GPU')),
        ({}, {'platform': 'cpu', 'length': 1024}, ('xla', 'there is no fused kernel for cpu')),
        ({}, {'platform': 'rocm', 'length': 1024}, ('xla', 'there is no fused kernel for rocm')),
        ({}, {'platform': '', 'length': 1024}, ('xla', 'there is no fused kernel for a mesh without devices')),
        ({'attention_kernel': 'xla'}, {'platform': 'tpu', 'length': 1024},
         ('xla', 'model.attention_kernel asks for it')),
        ({}, {'platform': 'tpu', 'length': 1024, 'cached': True},
         ('xla', 'decoding reads a cache, which the fused kernels do not')),
        ({}, {'platform': 'tpu', 'length': 1000},
         ('xla', 'splash has no rows of 1000 tokens (they must be a multiple of 128)')),
        ({}, {'platform': 'tpu', 'length': 1024, 'context': 4}, ('splash', 'the fastest on TPU')),
        ({}, {'platform': 'tpu', 'length': 1024, 'context': 8},
         ('xla', 'splash has no runs of 64 tokens (they must be a multiple of 128)')),
        ({'context_attention': 'ring'}, {'platform': 'tpu', 'length': 4096, 'context': 4},
         ('xla', 'splash has no ring (model.context_attention)')),
        ({'dropout': 0.1, 'position': 'alibi'}, {'platform': 'tpu', 'length': 1024},
         ('xla', 'splash has no dropout of weights (model.dropout = 0.1) and no ALiBi (model.position)')),
        ({'dropout': 0.1}, {'platform': 'tpu', 'length': 1024, 'dropout': False}, ('splash', 'the fastest on TPU')),
        ({'attention_softcap': 30.0, 'attention_sinks': True}, {'platform': 'tpu', 'length': 1024},
         ('splash', 'the fastest on TPU')),
        ({'attention_softcap': 30.0, 'attention_sinks': True}, {'platform': 'cuda', 'length': 1024},
         ('xla', 'cudnn has no soft-cap (model.attention_softcap = 30.0) and no sinks (model.attention_sinks)')),
        ({'dtype': 'float32'}, {'platform': 'cuda', 'length': 1024}, ('xla', 'cudnn has no float32 (model.dtype)')),
        ({'d_head': 192}, {'platform': 'cuda', 'length': 1024},
         ('xla', 'cudnn has no heads of width 192 (at most 128, a multiple of 8)')),
        ({}, {'platform': 'cuda', 'length': 1024, 'context': 2},
         ('xla', 'cudnn has no rows that are split over devices (mesh.context = 2)')),
    ],
)  # fmt: skip
def test_choice(overrides, where, expected):
    assert choose_kernel(model(**overrides), **where) == expected


@pytest.mark.parametrize(
    ('overrides', 'where', 'message'),
    [
        ({'attention_kernel': 'splash'}, {'platform': 'cpu', 'length': 1024},
         "model.attention_kernel = 'splash' runs on TPU, and this is cpu; use \"auto\" or \"xla\""),
        ({'attention_kernel': 'cudnn'}, {'platform': 'rocm', 'length': 1024}, 'runs on NVIDIA GPU, and this is rocm'),
        ({'attention_kernel': 'cudnn', 'attention_sinks': True}, {'platform': 'cuda', 'length': 1024},
         "model.attention_kernel = 'cudnn' has no sinks (model.attention_sinks); change that, or use"),
        ({'attention_kernel': 'splash', 'position': 'alibi'}, {'platform': '', 'length': 1024}, 'has no ALiBi'),
    ],
)  # fmt: skip
def test_a_kernel_that_cannot_is_an_error(overrides, where, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        choose_kernel(model(**overrides), **where)


def test_layers_may_differ():
    config = model(pattern=({'position': 'alibi'}, {}), n_layers=4)
    assert kernels(config, platform='tpu', length=256) == {
        'xla': 'splash has no ALiBi (model.position)',
        'splash': 'the fastest on TPU',
    }


def test_platform_is_that_of_the_mesh():
    assert mesh_lib.platform() == 'cpu'
    with on_mesh((1, 2, 2)):
        assert mesh_lib.platform() == 'cpu'
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((2,), ('data',))):
        assert mesh_lib.platform() == ''


# --- Splash, interpreted ---------------------------------------------------------------

SINKS = np.array([0.5, -1.0], np.float32)


def arrays(length, width=64, heads=(2, 1, 1)):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(1, length, n, width)).astype(np.float32) for n in heads)
    segments = np.repeat([[0] * 100 + [1] * (length - 100)], 1, 0)
    return q, k, v, segments, rng.normal(size=q.shape).astype(np.float32)


def loss_and_gradients(kernel, scores, sinks, length, sizes=None):
    *qkv, segments, probe = arrays(length)

    def loss(q, k, v, sinks):
        q, k, v = (zigzag.split(x, RULES) for x in (q, k, v))
        y = attend(q, k, v, rules=RULES, scores=scores, segments_BL=segments, sinks_H=sinks, kernel=kernel)
        return jnp.sum(probe * zigzag.restore(y, RULES, ('heads', None)))

    with on_mesh(sizes):
        n = 3 if sinks is None else 4
        return jax.device_get(jax.jit(jax.value_and_grad(loss, range(n)))(*qkv, sinks))


@pytest.mark.parametrize(
    ('scores', 'sinks', 'sizes'),
    [
        (Scores(), None, None),
        (Scores(window=100, softcap=2.0, scale=0.2), SINKS, None),
        (Scores(window=200), SINKS, {'context': 2}),
        (Scores(), None, {'context': 2}),
    ],
    ids=['plain', 'window, soft-cap, sinks', 'context, window, sinks', 'context'],
)
def test_splash_equals_xla(monkeypatch, scores, sinks, sizes):
    """Two query heads share a key head; two documents."""
    monkeypatch.setattr(splash, 'INTERPRET', True)
    length = 512 if sizes else 256
    value, grads = loss_and_gradients('splash', scores, sinks, length, sizes)
    exact, exact_grads = loss_and_gradients('xla', scores, sinks, length)
    np.testing.assert_allclose(value, exact, rtol=1e-4, atol=1e-3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), grads, exact_grads)


# --- Programs for machines that are not here --------------------------------------------


@pytest.mark.parametrize(('length', 'parts', 'window'), [(2048, 1, 0), (4096, 4, 0), (2048, 1, 700), (4096, 4, 1024)])
def test_splash_tables_are_those_of_the_librarys_own_masks(monkeypatch, length, parts, window):
    ours = jax.tree.leaves(splash.make(Scores(window=window), 2, length, parts))
    shape = (length, length)
    monkeypatch.setattr(splash, '_Causal', lambda length: splash.library.CausalMask(shape))
    monkeypatch.setattr(splash, '_Window', lambda length, window: splash.library.LocalMask(shape, (window - 1, 0), 0))
    theirs = jax.tree.leaves(splash.make(Scores(window=window), 2, length, parts))
    assert len(ours) == len(theirs) > 5
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize('axis', ['tensor', 'context'])
def test_splash_is_in_the_program_for_a_tpu(tpu_devices, axis):
    """Three kernels, one for the forward pass, and no scores [L, L]; the mesh alone says that it is for a TPU."""
    L, config = 2048, model()
    mesh = mesh_lib.make_mesh(tiny_config(mesh__fsdp=2, **{f'mesh__{axis}': 2}).mesh, tpu_devices('v5p:2x2x1'))
    with jax.set_mesh(mesh):
        name, _ = choose_kernel(config, platform=mesh_lib.platform(), length=L, context=mesh.shape['context'])
        assert name == 'splash'
        table = mesh_lib.active_rules(RULES)
        shape = lambda n, name: jax.ShapeDtypeStruct(
            (4, L, n, 64), jnp.bfloat16,
            sharding=jax.NamedSharding(mesh, jax.P(table['batch'], table['length'], table[name])),
        )  # fmt: skip
        segments = jax.ShapeDtypeStruct((4, L), jnp.int32, sharding=jax.NamedSharding(mesh, jax.P(table['batch'])))

        def loss(q, k, v, segments):
            y = attend(q, k, v, rules=RULES, segments_BL=segments, kernel=name)
            return jnp.sum(y.astype(jnp.float32))

        run = jax.jit(jax.grad(loss, (0, 1, 2)))
        text = run.lower(shape(8, 'heads'), *[shape(4, 'kv_heads')] * 2, segments).compile().as_text()
    assert len(re.findall(r'custom_call_target="tpu_custom_call"', text)) == 3
    assert not re.search(rf'\b({L}|{L // 2}),{L}\]', text)


def test_cudnn_is_in_the_program_for_a_gpu(monkeypatch):
    """The kernel's own checks ask for the GPU that is here, so they are answered for."""
    stable = pytest.importorskip('jax._src.cudnn.fused_attention_stablehlo')
    monkeypatch.setattr(stable, 'check_cudnn_version', lambda: 91000)
    shape = lambda n: jax.ShapeDtypeStruct((2, 256, n, 64), jnp.bfloat16)

    def loss(q, k, v, segments, window):
        y = attend(q, k, v, rules=RULES, scores=Scores(window=window), segments_BL=segments, kernel='cudnn')
        return jnp.sum(y.astype(jnp.float32))

    with on_mesh((1, 2, 2)):
        table = mesh_lib.active_rules(RULES)
        lies = lambda n: jax.ShapeDtypeStruct(
            (2, 256, n, 64), jnp.bfloat16, sharding=jax.P(table['batch'], None, table['heads'])
        )
        rows = jax.ShapeDtypeStruct((2, 256), jnp.int32, sharding=jax.P(table['batch']))
        gradients = jax.grad(functools.partial(loss, window=100), (0, 1, 2))
        assert jax.eval_shape(gradients, lies(8), lies(4), lies(4), rows)[0].shape == (2, 256, 8, 64)
    for window in (0, 100):
        run = jax.jit(jax.grad(functools.partial(loss, window=window), (0, 1, 2)))
        args = (shape(8), shape(4), shape(4), jax.ShapeDtypeStruct((2, 256), jnp.int32))
        text = jax.export.export(run, platforms=['cuda'], disabled_checks=[
            jax.export.DisabledSafetyCheck.custom_call(name)
            for name in ('__cudnn$fmhaScaleBiasSoftmax', '__cudnn$fmhaScaleBiasSoftmaxBackward')
        ])(*args).mlir_module()  # fmt: skip
        assert '__cudnn$fmhaScaleBiasSoftmax' in text and '__cudnn$fmhaScaleBiasSoftmaxBackward' in text
        assert ('sliding_window_length": 100' in text.replace('\\22', '"').replace('\\', '')) == bool(window)
