"""Contract 5: packed documents give the logits and the loss that they give alone."""

import jax
import numpy as np
import pytest
from tiny import BOS, LLAMA, VARIANTS, V, random_params, tiny_config, tiny_model

from llm_jax.data.batch import unpack_rows
from llm_jax.train.step import make_loss

L = 24
LENGTHS = [5, 1, 9, 6]  # and then 3 of padding


@pytest.mark.parametrize(
    'overrides',
    [
        {'position': 'rope'}, {'position': 'learned', 'attention': 'mha', 'n_kv_heads': 0},
        {'position': 'sinusoidal', 'attention': 'mqa', 'n_kv_heads': 0}, {'position': 'none'}, *VARIANTS.values(),
    ],
    ids=['rope', 'learned', 'sinusoidal', 'none', *VARIANTS],
)  # fmt: skip
def test_documents_alone_and_together(overrides):
    config = tiny_config(**(LLAMA | overrides), data__seq_len=L, train__loss_chunk=8)
    model = tiny_model(config)
    params = random_params(model)
    rng = np.random.default_rng(0)
    documents = [[BOS, *rng.integers(2, V, n - 1)] for n in LENGTHS]
    pad = lambda tokens: np.array(tokens + [-1] * (L + 1 - len(tokens)), np.int32)
    # The last target of a document is the BOS of the next.
    alone = np.stack([pad([*document, BOS]) for document in documents])
    together = np.tile(pad([*sum(documents, []), BOS]), (len(documents), 1))

    @jax.jit
    def run(tokens):
        rows = unpack_rows(tokens, BOS)
        logits = model.apply({'params': params}, rows.tokens, rows.positions, rows.segments)
        _, sums = make_loss(model, config, bos_id=BOS)(params, tokens)
        return logits, sums

    logits_alone, sums_alone = run(alone)
    logits, sums = run(together)
    for i, (start, n) in enumerate(zip(np.cumsum([0, *LENGTHS]), LENGTHS, strict=False)):
        np.testing.assert_allclose(logits[0, start : start + n], logits_alone[i, :n], rtol=1e-5, atol=1e-5)
    rows = len(documents)  # `together` is there once for each document
    np.testing.assert_allclose(sums['nll'] / rows, sums_alone['nll'], rtol=1e-5)
    assert sums['weight'] / rows == sums_alone['weight'] == sum(LENGTHS)
