"""Contract 13: the log-probs of the engine are those of training, and the importance ratio on policy is 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import LLAMA, V, on_mesh, place_params, random_params, tiny_config, tiny_model

from llm_jax.dist import mesh
from llm_jax.generate.engine import Engine
from llm_jax.generate.requests import Request
from llm_jax.generate.settings import Sampler
from llm_jax.train.losses import token_log_probs

REAL = 50  # tokens of the tokenizer; the model's other rows pad its vocabulary
SIZES = [(1, 1, 1), (1, 4, 2)]


def trainers(model, params, rows, **options):
    """Log-probs of the new tokens, by the loss of training over prompt and answer, padded: one list for each row."""
    L = 32
    tokens = np.zeros((len(rows), L + 1), np.int32)
    for i, row in enumerate(rows):
        ids = [*row.request.prompt, *row.tokens]
        tokens[i, : len(ids)] = ids
    head = lambda params, x_BlD: model.apply({'params': params}, x_BlD, method='head')

    @jax.jit
    def score(params, inputs, targets):
        inputs, targets = (mesh.shard(x, model.config.rules, mesh.TOKENS) for x in (inputs, targets))
        x = model.apply({'params': params}, inputs, method='features')
        return token_log_probs(head, params, x, targets, chunk=8, **options)

    log_probs = np.asarray(score(params, jnp.asarray(tokens[:, :-1]), jnp.asarray(tokens[:, 1:])))
    starts = [len(row.request.prompt) - 1 for row in rows]
    return [scores[n : n + len(row.tokens)] for scores, row, n in zip(log_probs, rows, starts, strict=True)]


@pytest.mark.parametrize('sizes', SIZES, ids=str)
def test_ratio_on_policy(sizes):
    config = tiny_config(**LLAMA, data__seq_len=64, model__logit_softcap=4.0)
    model = tiny_model(config)
    with on_mesh(sizes):
        params = place_params(model, random_params(model))
        engine = Engine(model, params, n_slots=8, vocab_size=REAL)
        for temperature in (1.0, 0.7):
            sampler = Sampler(temperature)
            rows = engine.run(Request([1, 5, i], 20, sampler, seed=2, choice=i) for i in range(8))
            model_log_probs = trainers(model, params, rows, vocab_size=REAL)
            policy_log_probs = trainers(model, params, rows, vocab_size=REAL, temperature=temperature)
            assert len({token for row in rows for token in row.tokens}) > 20
            for row, of_model, of_policy in zip(rows, model_log_probs, policy_log_probs, strict=True):
                np.testing.assert_allclose(row.log_probs, of_model, atol=2e-5)
                np.testing.assert_allclose(np.exp(of_policy - row.sampled_log_probs), 1, atol=2e-5)


def test_what_a_cut_leaves_out_is_seen():
    """Under a cut the sampled log-probs are higher than the model's: the ratio shows the mass that was left out."""
    model = tiny_model(tiny_config(**LLAMA, data__seq_len=64))
    params = random_params(model)
    (row,) = Engine(model, params, n_slots=1, vocab_size=REAL).run([Request([1], 30, Sampler(top_p=0.8))])
    (of_model,) = trainers(model, params, [row], vocab_size=REAL)
    ratio = np.exp(of_model - row.sampled_log_probs)
    assert (ratio < 1).all() and (ratio > 0.8 - 1e-5).all()
    assert REAL < V
