"""Token log-probabilities and their gradients equal those of materialised logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import BOS, GPT2, packed_tokens, random_params, tiny_config, tiny_model

from llm_jax.data.batch import unpack_rows
from llm_jax.train.forward import per_token_nll
from llm_jax.train.losses import cross_entropy, token_log_probs

B, L, D, V = 3, 12, 8, 32
RNG = np.random.default_rng(0)
PARAMS = {'kernel': RNG.normal(size=(D, V)).astype(np.float32), 'bias': RNG.normal(size=V).astype(np.float32)}
X_BLD = RNG.normal(size=(B, L, D)).astype(np.float32)
SIGNED_BL = RNG.normal(size=(B, L)).astype(np.float32)


def head(params, x_BLD):
    """A soft-capped head."""
    return 3 * jnp.tanh((x_BLD @ params['kernel'] + params['bias']) / 3)


def materialised(params, x_BLD, targets_BL, temperature=1.0, vocab_size=V):
    log_p_BLV = jax.nn.log_softmax(head(params, x_BLD)[..., :vocab_size] / temperature)
    return jnp.take_along_axis(log_p_BLV, targets_BL[..., None], -1)[..., 0]


@pytest.mark.parametrize('chunk', [L, 4, 1])
@pytest.mark.parametrize('options', [{}, {'temperature': 0.7, 'vocab_size': V - 5}], ids=str)
def test_values_and_gradients_of_any_loss(chunk, options):
    """The loss is no sum of log-probabilities: its cotangents are signed, differ by token, and depend on them."""
    targets_BL = RNG.integers(0, V - 5, (B, L))

    def run(log_probs):
        def loss(params, x_BLD):
            log_probs_BL = log_probs(params, x_BLD, targets_BL, **options)
            return jnp.sum(SIGNED_BL * log_probs_BL) + jnp.sum(jnp.exp(jnp.sum(log_probs_BL, 1) / L)), log_probs_BL

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(PARAMS, X_BLD)

    chunked = lambda params, x_BLD, targets_BL, **options: token_log_probs(
        head, params, x_BLD, targets_BL, chunk=chunk, **options
    )
    got, expected = run(chunked), run(materialised)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), got, expected)


def test_its_gradient_is_that_of_a_weighted_cross_entropy():
    targets_BL = RNG.integers(0, V, (B, L))
    options = {'chunk': 4}
    by_weights = lambda params: cross_entropy(head, params, X_BLD, targets_BL, -SIGNED_BL, z_loss=0.0, **options)[0]
    by_log_probs = lambda params: jnp.sum(SIGNED_BL * token_log_probs(head, params, X_BLD, targets_BL, **options))
    assert_equal = np.testing.assert_array_equal
    jax.tree.map(assert_equal, jax.jit(jax.grad(by_log_probs))(PARAMS), jax.jit(jax.grad(by_weights))(PARAMS))


def test_the_gradient_has_the_dtype_of_its_input():
    loss = lambda params, x: jnp.sum(token_log_probs(head, params, x, jnp.zeros((B, L), jnp.int32), chunk=4))
    grads = jax.eval_shape(jax.grad(loss, argnums=(0, 1)), PARAMS, jnp.asarray(X_BLD, jnp.bfloat16))
    assert grads[0]['kernel'].dtype == jnp.float32
    assert grads[1].dtype == jnp.bfloat16


def test_a_slice_of_logits_is_all_that_is_in_memory():
    """Temporaries of the compiled gradient: far below one array of all logits, and near those of the cross-entropy."""
    rows, length, width, vocab, chunk = 4, 512, 64, 8192, 32
    plain = lambda params, x_BLD: x_BLD @ params
    args = (
        jax.ShapeDtypeStruct((width, vocab), jnp.float32),
        jax.ShapeDtypeStruct((rows, length, width), jnp.float32),
        jax.ShapeDtypeStruct((rows, length), jnp.int32),
        jax.ShapeDtypeStruct((rows, length), jnp.float32),
    )

    def temporaries(loss):
        compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*args).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    by_log_probs = temporaries(
        lambda params, x_BLD, targets_BL, weights_BL: jnp.sum(
            weights_BL * token_log_probs(plain, params, x_BLD, targets_BL, chunk=chunk)
        )
    )
    by_cross_entropy = temporaries(
        lambda params, x_BLD, *rest: cross_entropy(plain, params, x_BLD, *rest, z_loss=0.0, chunk=chunk)[0]
    )
    all_logits = 4 * rows * length * vocab
    assert by_log_probs < all_logits / 4
    assert by_log_probs < 1.2 * by_cross_entropy


def test_nll_of_a_model_equals_that_of_its_logits():
    config = tiny_config(**GPT2, logit_softcap=5.0)
    model = tiny_model(config)
    params, batch = random_params(model), unpack_rows(jnp.asarray(packed_tokens(4)), BOS)

    @jax.jit
    def run(params):
        logits_BLV = model.apply({'params': params}, batch.tokens, batch.positions, batch.segments)
        log_p_BLV = jax.nn.log_softmax(logits_BLV)
        return per_token_nll(model, params, batch), -jnp.take_along_axis(log_p_BLV, batch.targets[..., None], -1)[
            ..., 0
        ]

    np.testing.assert_allclose(*run(params), rtol=2e-5, atol=2e-6)
