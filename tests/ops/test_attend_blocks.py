"""Attention where a row is split over devices, against the loops of `reference`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from tiny import on_mesh, tiny_config

from llm_jax.dist import mesh as mesh_lib
from llm_jax.ops import zigzag
from llm_jax.ops.attend import Scores, attend, blocks
from llm_jax.ops.attend.blocks import Split, schedule

RULES = tiny_config().model.rules
L, H, K, V = 32, 4, 8, 6
SEGMENTS = np.array([[0] * 9 + [1] * 3 + [2] * 20, [0] * 32])
SLOPES, SINKS = np.array([0.5, 0.25, 0.1, 1.0], np.float32), np.array([0.5, -2.0, 3.0, 0.0], np.float32)
CASES = {
    'plain': ({'context': 4}, 1, Scores(), {}),
    'grouped': ({'data': 2, 'context': 2, 'tensor': 2}, 2, Scores(), {}),
    'all': (
        {'data': 2, 'context': 4}, 2, Scores(scale=0.9, softcap=1.5, window=6),
        {'scale': 0.9, 'softcap': 1.5, 'window': 6, 'slopes_H': SLOPES, 'sinks_H': SINKS},
    ),
}  # fmt: skip


def inputs(G):
    rng = np.random.default_rng(0)
    return [rng.normal(size=(2, L, *shape)).astype(np.float32) for shape in ((H, K), (G, K), (G, V), (H, V))]


def run(sizes, kind, scores, known, arrays, probe):
    """(output in the order of the text, gradients of q, k, v and the sinks)."""
    slopes, sinks = known.get('slopes_H'), known.get('sinks_H')

    def loss(q, k, v, sinks):
        q, k, v = (zigzag.split(x, RULES) for x in (q, k, v))
        q, k, v = (mesh_lib.shard(x, RULES, (*mesh_lib.TOKENS, 'heads', None)) for x in (q, k, v))
        y = attend(q, k, v, rules=RULES, scores=scores, segments_BL=segments, slopes_H=slopes, sinks_H=sinks,
                   context=kind)  # fmt: skip
        y = zigzag.restore(y, RULES, ('heads', None))
        return jnp.sum(probe * y), y

    with on_mesh(sizes):
        table = jax.P('data' if sizes and 'data' in sizes else None)
        put = lambda x: jax.device_put(x, table) if sizes else x
        segments, arrays, probe = put(SEGMENTS), [put(x) for x in arrays], put(probe)
        n = 3 if sinks is None else 4
        sinks = sinks if sinks is None or not sizes else jax.device_put(sinks, jax.P())
        (_, y), grads = jax.jit(jax.value_and_grad(loss, range(n), has_aux=True))(*arrays, sinks)
        return jax.device_get((y, grads))


@pytest.mark.parametrize('size', [512, 2])
@pytest.mark.parametrize('kind', ['all_gather', 'ring'])
@pytest.mark.parametrize('name', CASES)
def test_equals_loops_and_the_gradients_of_one_device(monkeypatch, name, kind, size):
    monkeypatch.setattr(blocks, 'MAX_BLOCK', size)
    sizes, G, scores, known = CASES[name]
    *arrays, probe = inputs(G)
    y, grads = run(sizes, kind, scores, known, arrays, probe)
    for row in range(2):
        exact = reference.attention(*[x[row].astype(np.float64) for x in arrays], SEGMENTS[row], **known)
        np.testing.assert_allclose(y[row], exact, rtol=1e-5, atol=1e-5)
    _, exact_grads = run(None, kind, scores, known, arrays, probe)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), grads, exact_grads)


@pytest.mark.parametrize('kind', ['all_gather', 'ring'])
@pytest.mark.parametrize(('chunk', 'size', 'window'), [(4, 4, 0), (4, 2, 0), (4, 2, 3), (4, 1, 7), (4, 4, 4)])
def test_schedule_visits_what_is_seen_once_and_nothing_else(kind, chunk, size, window):
    c = 4
    steps = schedule(Split(('context',), c, kind), chunk, size, window)
    visited = [[], [], [], []]
    for step in steps:
        for i, visits in enumerate(step.visits):
            visited[i] += [(int(q), int(k)) for at, _, q, k in visits if at >= 0]
    n = 2 * c * chunk
    distance = np.arange(n)[:, None] - np.arange(n)
    seen = (distance >= 0) & ((distance < window) | (not window))
    blocks_seen = seen.reshape(n // size, size, n // size, size).any((1, 3))
    everything = sorted(pair for pairs in visited for pair in pairs)
    assert everything == [(int(q), int(k)) for q, k in np.argwhere(blocks_seen)]
    if not window:
        assert len({len(pairs) for pairs in visited}) == 1  # even
        # ... at every step of the ring.
        assert all((step.visits >= 0).all() for step in steps)


def test_attention_dropout_keeps_its_rate_and_differs_between_blocks():
    rate, n = 0.25, 64
    q = np.zeros((2, n, 2, 4), np.float32)
    with on_mesh({'context': 4}):
        lies = jax.P(None, 'context')
        q = jax.device_put(q, lies)
        v = jax.device_put(np.ones((2, n, 2, 4), np.float32), lies)
        call = lambda kind: attend(
            q, q, v, rules=RULES, scores=Scores(dropout=rate), dropout_key=jax.random.key(0), context=kind
        )
        y, ring = (np.asarray(jax.jit(call, static_argnums=0)(kind))[..., 0] for kind in ('all_gather', 'ring'))
    np.testing.assert_allclose(y, ring, rtol=1e-5)  # both draw by the place of a block in the text
    late = y[:, np.r_[8:16, 24:32, 40:48]]  # second chunks: means of many weights
    assert abs(late.mean() - 1) < 0.05
    assert 0.02 < late.std() < 0.3
