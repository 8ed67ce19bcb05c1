import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import BOS, LLAMA, on_mesh, one_step, packed_tokens, place, tiny_config, tiny_training

from llm_jax.data.batch import Batch, unpack_rows
from llm_jax.train.losses import chunk_length, cross_entropy

B, L, D, V = 3, 12, 8, 32
SLICED = LLAMA | {'train__loss_chunk': 8, 'model__tie_embeddings': False}


def head(params, x_BLD):
    return x_BLD @ params['kernel'] + params['bias']


@pytest.fixture(scope='module')
def batch():
    rng = np.random.default_rng(0)
    params = {'kernel': rng.normal(size=(D, V)).astype(np.float32), 'bias': rng.normal(size=V).astype(np.float32)}
    x = rng.normal(size=(B, L, D)).astype(np.float32)
    weights = rng.choice([0.0, 1.0, 0.5], (B, L)).astype(np.float32)
    targets = rng.integers(0, V, (B, L))
    return params, x, Batch(targets, targets, weights, targets, targets)


def exact_loss(params, x, rows, z_loss):
    """(objective, nll) in float64."""
    logits = head(params, x.astype(np.float64))
    top = logits.max(-1)
    log_z = np.log(np.exp(logits - top[..., None]).sum(-1)) + top
    nll = log_z - np.take_along_axis(logits, rows.targets[..., None], -1)[..., 0]
    return (rows.loss_weights * (nll + z_loss * log_z**2)).sum(), (rows.loss_weights * nll).sum()


@pytest.mark.parametrize('z_loss', [0.0, 0.1])
@pytest.mark.parametrize('chunk', [L, 4, 1])
def test_value_and_gradients(batch, z_loss, chunk):
    params, x, rows = batch

    def loss(params, x, scale=1.0):
        objective, nll = cross_entropy(head, params, x, rows.targets, rows.loss_weights, z_loss=z_loss, chunk=chunk)
        return scale * objective, nll

    def plain(params, x):
        logits = head(params, x)
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, rows.targets)
        z = jnp.square(jax.nn.logsumexp(logits, axis=-1))
        return jnp.sum(rows.loss_weights * (nll + z_loss * z))

    objective, nll = jax.jit(loss)(params, x)
    exact = exact_loss(params, x, rows, z_loss)
    np.testing.assert_allclose((objective, nll), exact, rtol=1e-6)
    expected = jax.jit(jax.grad(plain, argnums=(0, 1)))(params, x)
    for scale in (1.0, 3.0):  # a factor from outside reaches the gradients
        grads, aux = jax.jit(jax.grad(lambda *a: loss(*a, scale), argnums=(0, 1), has_aux=True))(params, x)  # noqa: B023
        np.testing.assert_allclose(aux, exact[1], rtol=1e-6)
        close = lambda a, b: np.testing.assert_allclose(a, scale * b, rtol=1e-4, atol=1e-5)  # noqa: B023
        jax.tree.map(close, grads, expected)


def test_tokens_of_weight_0_have_no_gradient(batch):
    params, x, rows = batch
    grad = jax.jit(
        jax.grad(lambda x: cross_entropy(head, params, x, rows.targets, rows.loss_weights, z_loss=0.1, chunk=4)[0])
    )(x)  # fmt: skip
    assert np.all(np.asarray(grad)[rows.loss_weights == 0] == 0)
    assert np.all(np.abs(np.asarray(grad)[rows.loss_weights > 0]).max(-1) > 0)


def test_large_logits_stay_finite(batch):
    params, x, rows = batch
    objective, _ = jax.jit(
        lambda x: cross_entropy(head, params, x, rows.targets, rows.loss_weights, z_loss=0.0, chunk=4)
    )(x * 1e4)
    np.testing.assert_allclose(objective, exact_loss(params, x * 1e4, rows, 0.0)[0], rtol=1e-5)


def test_gradients_have_the_dtype_of_their_inputs(batch):
    params, x, rows = batch
    loss = lambda params, x: cross_entropy(head, params, x, rows.targets, rows.loss_weights, z_loss=0.1, chunk=4)[0]
    grads = jax.eval_shape(jax.grad(loss, argnums=(0, 1)), params, jnp.asarray(x, jnp.bfloat16))
    assert grads[0]['kernel'].dtype == jnp.float32
    assert grads[1].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ('seq_len', 'rows', 'tokens', 'expected'),
    [
        (256, 16, 4096, 256),
        (256, 16, 2048, 128),
        (256, 16, 2047, 64),
        (250, 1, 100, 50),
        (7, 1, 3, 1),
        (8, 99, 4, 1),
    ],
)
def test_chunk_length(seq_len, rows, tokens, expected):
    assert chunk_length(seq_len, rows, tokens) == expected


# --- Rows ------------------------------------------------------------------------------


def brute_force(row):
    """The fields of one row, token by token."""
    out, segment, position = [], 0, -1
    for token, target in zip(row[:-1], row[1:], strict=True):
        position += 1
        if token == BOS:
            segment, position = segment + 1, 0
        out.append((max(token, 0), max(target, 0), float(token >= 0 and target >= 0), segment, position))
    return [np.array(column) for column in zip(*out, strict=True)]


def test_unpack_equals_brute_force():
    tokens = packed_tokens(64, 24)
    tokens[0, 0] = BOS  # rows that begin a document, and rows that begin within one
    tokens[1, 0] = 5
    tokens[2] = -1  # nothing but padding
    tokens[3, 3:6] = BOS  # empty documents
    rows = jax.jit(unpack_rows, static_argnums=1)(tokens, BOS)
    for i, row in enumerate(tokens):
        got = (rows.tokens, rows.targets, rows.loss_weights, rows.segments, rows.positions)
        for a, b in zip(got, brute_force(row), strict=True):
            np.testing.assert_array_equal(a[i], b)
    assert rows.loss_weights.dtype == jnp.float32


def test_unpack_reads_the_document_break():
    rows = unpack_rows(jnp.array([[7, 8, BOS, 9, BOS, BOS, 3, -1, -1]]), BOS)
    assert rows.tokens.tolist() == [[7, 8, BOS, 9, BOS, BOS, 3, 0]]
    assert rows.targets.tolist() == [[8, BOS, 9, BOS, BOS, 3, 0, 0]]
    assert rows.loss_weights.tolist() == [[1, 1, 1, 1, 1, 1, 0, 0]]
    assert rows.segments.tolist() == [[0, 0, 1, 1, 2, 3, 3, 3]]
    assert rows.positions.tolist() == [[0, 1, 0, 1, 0, 0, 1, 2]]


@pytest.mark.parametrize(
    ('vocab', 'tokens'), [(50_304, 2048), (65_536, 2048), (131_072, 1024), (262_144, 512), (2**28, 1)]
)
def test_large_vocabularies_have_short_slices(vocab, tokens):
    assert chunk_length(4096, 1, 0, vocab) == tokens
    assert chunk_length(4096, 2, 0, vocab) == max(1, tokens // 2)


@pytest.mark.parametrize('once', [True, False])
def test_slices_on_a_mesh_are_those_of_one_device(once):
    config = tiny_config(**SLICED | {'train__gather_head_once': once})
    (alone, params, _), (shared, same, _) = (one_step(config, sizes) for sizes in ((1, 1, 1), (2, 2, 2)))
    np.testing.assert_allclose(shared['loss'], alone['loss'], rtol=1e-6)
    np.testing.assert_allclose(shared['grad_norm'], alone['grad_norm'], rtol=1e-6)
    for one, two in zip(jax.tree.leaves(params), jax.tree.leaves(same), strict=True):
        np.testing.assert_allclose(two, one, atol=1e-5)


def test_nothing_of_the_head_moves_within_the_loop_over_slices():
    def loops_that_move(once):
        config = tiny_config(**SLICED | {'scan': False, 'train__gather_head_once': once})
        with on_mesh({'fsdp': 8}):
            step, state = tiny_training(config)
            text = step.lower(state, place(packed_tokens(8), config)).compile().as_text()
        bodies = re.findall(r'while\(.*?body=%?([\w.-]+)', text)
        body = lambda name: re.search(rf'^%?{re.escape(name)} .*?^}}', text, re.M | re.S)[0]
        return sum(bool(re.search(' (all-gather|all-reduce|reduce-scatter)', body(name))) for name in bodies)

    assert (loops_that_move(True), loops_that_move(False)) == (0, 1)
