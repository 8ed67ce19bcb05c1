import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from llm_jax.config.schema import DEFAULT_RULES
from llm_jax.ops.attend import Scores, attend
from llm_jax.ops.attend import xla as attend_lib

RULES = tuple(DEFAULT_RULES.items())
SEGMENTS = np.array([[0] * 5 + [1] * 1 + [2] * 10, [0] * 16])


def inputs(G, L=16, H=4, K=8):
    rng = np.random.default_rng(0)
    return [rng.normal(size=(2, L, n, K)).astype(np.float32) for n in (H, G, G)]


@pytest.mark.parametrize('chunk', [64, 4, 5])  # one slice; several; a last one that is shorter
@pytest.mark.parametrize('heads', [4, 2, 1])
@pytest.mark.parametrize('segments', [None, SEGMENTS])
def test_equals_loops(monkeypatch, chunk, heads, segments):
    monkeypatch.setattr(attend_lib, 'MIN_SLICE', chunk)
    q, k, v = inputs(heads)
    run = jax.jit(lambda q, k, v, s: attend(q, k, v, rules=RULES, segments_BL=s))
    y = run(q, k, v, segments)
    for row in range(2):
        one = [x[row].astype(np.float64) for x in (q, k, v)]
        exact = reference.attention(*one, None if segments is None else segments[row])
        np.testing.assert_allclose(y[row], exact, rtol=1e-5, atol=1e-5)


OPTIONS = {
    'window': (Scores(window=3), {'window': 3}),
    'soft-cap': (Scores(softcap=0.7), {'softcap': 0.7}),
    'scale': (Scores(scale=0.9), {'scale': 0.9}),
    'slopes': (Scores(), {'slopes_H': np.array([0.5, 0.25, 0.1, 1.0], np.float32)}),
    'sinks': (Scores(), {'sinks_H': np.array([0.5, -2.0, 3.0, 0.0], np.float32)}),
    'all': (
        Scores(scale=0.9, softcap=1.5, window=6),
        {'scale': 0.9, 'softcap': 1.5, 'window': 6, 'slopes_H': np.array([0.5, 0.25, 0.1, 1.0], np.float32),
         'sinks_H': np.array([0.5, -2.0, 3.0, 0.0], np.float32)},
    ),
}  # fmt: skip


@pytest.mark.parametrize('chunk', [64, 4, 5])
@pytest.mark.parametrize('name', OPTIONS)
def test_options_equal_loops(monkeypatch, chunk, name):
    monkeypatch.setattr(attend_lib, 'MIN_SLICE', chunk)
    scores, known = OPTIONS[name]
    arrays = {key: known[key] for key in ('slopes_H', 'sinks_H') if key in known}
    q, k, v = inputs(2)
    y = jax.jit(lambda q, k, v: attend(q, k, v, rules=RULES, segments_BL=SEGMENTS, scores=scores, **arrays))(q, k, v)
    for row in range(2):
        exact = reference.attention(*[x[row].astype(np.float64) for x in (q, k, v)], SEGMENTS[row], **known)
        np.testing.assert_allclose(y[row], exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('chunk', [64, 5])
@pytest.mark.parametrize('name', OPTIONS)
def test_gradients_of_options_equal_finite_differences_of_the_loops(monkeypatch, chunk, name):
    """Central differences in float64, along one random direction for each argument."""
    monkeypatch.setattr(attend_lib, 'MIN_SLICE', chunk)
    scores, known = OPTIONS[name]
    slopes, sinks = known.get('slopes_H'), known.get('sinks_H')
    arrays = [x[:1] for x in inputs(2)] + ([] if sinks is None else [sinks])
    rng = np.random.default_rng(1)
    probe, *directions = (rng.normal(size=x.shape) for x in [arrays[0], *arrays])

    def ours(q, k, v, sinks=None):
        y = attend(q, k, v, rules=RULES, segments_BL=SEGMENTS[:1], scores=scores, slopes_H=slopes, sinks_H=sinks)
        return jnp.sum(probe * y)

    def exact(q, k, v, sinks=None):
        options = known | ({} if sinks is None else {'sinks_H': sinks})
        return np.sum(probe[0] * reference.attention(q[0], k[0], v[0], SEGMENTS[0], **options))

    grads = jax.jit(jax.grad(ours, argnums=tuple(range(len(arrays)))))(*arrays)
    for i, (grad, direction) in enumerate(zip(grads, directions, strict=True)):
        exactly = [x.astype(np.float64) for x in arrays]
        moved = lambda size, i=i, d=direction, all=exactly: [x + size * d if i == j else x for j, x in enumerate(all)]
        slope = (exact(*moved(1e-5)) - exact(*moved(-1e-5))) / 2e-5
        np.testing.assert_allclose(np.sum(np.asarray(grad) * direction), slope, rtol=1e-3, atol=1e-4)


def plain(q, k, v, segments):
    """Attention with a whole matrix of weights, which JAX can differentiate by itself."""
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum('blhk,bshk->bhls', q, k) * q.shape[-1] ** -0.5
    mask = np.tril(np.ones(scores.shape[-2:], bool)) & (segments[:, :, None] == segments[:, None])
    return jnp.einsum('bhls,bshk->blhk', jax.nn.softmax(jnp.where(mask[:, None], scores, -jnp.inf), axis=-1), v)


@pytest.mark.parametrize('chunk', [64, 4, 5])
@pytest.mark.parametrize('heads', [4, 2, 1])
def test_gradients_equal_those_of_plain_attention(monkeypatch, chunk, heads):
    monkeypatch.setattr(attend_lib, 'MIN_SLICE', chunk)
    q, k, v = inputs(heads)
    probe = np.random.default_rng(1).normal(size=q.shape).astype(np.float32)
    ours = lambda q, k, v: jnp.sum(probe * attend(q, k, v, rules=RULES, segments_BL=SEGMENTS))
    theirs = lambda q, k, v: jnp.sum(probe * plain(q, k, v, SEGMENTS))
    grads = [jax.jit(jax.grad(f, argnums=(0, 1, 2)))(q, k, v) for f in (ours, theirs)]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), *grads)


def test_gradients_under_dropout_equal_finite_differences(monkeypatch):
    monkeypatch.setattr(attend_lib, 'MIN_SLICE', 4)
    arrays = inputs(2)
    rng = np.random.default_rng(0)
    probe, *directions = (rng.normal(size=x.shape).astype(np.float32) for x in [arrays[0], *arrays])

    @jax.jit
    def loss(q, k, v):
        y = attend(
            q, k, v, rules=RULES, segments_BL=SEGMENTS, scores=Scores(dropout=0.4), dropout_key=jax.random.key(3)
        )
        return jnp.sum(probe * y)

    grads = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*arrays)
    for i, (grad, direction) in enumerate(zip(grads, directions, strict=True)):
        step = 1e-2 * direction
        moved = [[x + sign * step if i == j else x for j, x in enumerate(arrays)] for sign in (1, -1)]
        slope = (float(loss(*moved[0])) - float(loss(*moved[1]))) / 2e-2
        np.testing.assert_allclose(np.sum(np.asarray(grad) * direction), slope, rtol=2e-2, atol=2e-2)


def test_large_scores_stay_finite_and_exact():
    q, k, v = inputs(4)
    run = jax.jit(lambda q, k, v: attend(q, k, v, rules=RULES))
    y = run(q * 100, k * 100, v)
    exact = reference.attention(*[x[0].astype(np.float64) for x in (q * 100, k * 100, v)])
    np.testing.assert_allclose(y[0], exact, rtol=2e-2, atol=2e-2)


def test_softmax_is_float32_under_bfloat16():
    q, k, v = (x.astype(jnp.bfloat16) for x in inputs(2))
    y = jax.jit(lambda q, k, v: attend(q, k, v, rules=RULES))(q, k, v)
    assert y.dtype == jnp.bfloat16
    exact = reference.attention(*[np.asarray(x[0], np.float64) for x in (q, k, v)])
    np.testing.assert_allclose(np.asarray(y[0], np.float64), exact, atol=3e-2)


def test_slots_see_what_is_written_up_to_their_own():
    q, k, v = inputs(2)
    run = jax.jit(lambda q, k, v, s: attend(q, k, v, rules=RULES, slots_BL=s))
    y = run(q[:, :3], k, v, np.array([[4, 5, 6], [0, 1, 2]]))
    for row, start in enumerate((4, 0)):
        for i in range(3):
            n = start + i + 1
            padded = np.zeros((n, *q.shape[2:]))
            padded[-1] = q[row, i]
            exact = reference.attention(padded, k[row, :n].astype(np.float64), v[row, :n].astype(np.float64))[-1]
            np.testing.assert_allclose(y[row, i], exact, rtol=1e-5, atol=1e-5)


def test_dropout_zeroes_weights_at_its_rate_and_keeps_the_mean():
    rate, L = 0.25, 64
    q = np.zeros((4, L, 8, 4), np.float32)  # uniform weights: row t has t + 1 weights of 1 / (t + 1)
    v = np.zeros((4, L, 8, L), np.float32) + np.eye(L, dtype=np.float32)[None, :, None, :]
    k = np.zeros((4, L, 8, 4), np.float32)
    run = jax.jit(lambda v, key: attend(q, k, v[..., :4], rules=RULES, scores=Scores(dropout=rate), dropout_key=key))
    # With v a unit vector, the output is the weight itself.
    w = np.stack([run(v[..., s : s + 4], jax.random.key(0)) for s in range(0, L, 4)])  # [L/4, B, t, H, 4]
    w = np.moveaxis(w, 0, 3).reshape(4, L, 8, L)
    t, s = np.tril_indices(L)
    kept = w[:, t, :, s] * (t[:, None, None] + 1)  # 0 or 1 / (1 - rate)
    assert np.all(np.isclose(kept, 0) | np.isclose(kept, 1 / (1 - rate), rtol=1e-5))
    n = kept.size
    assert abs(np.mean(kept == 0) - rate) < 4 * np.sqrt(rate * (1 - rate) / n)
    assert np.std(np.mean(kept == 0, axis=0)) > 0  # rows and heads draw their own
