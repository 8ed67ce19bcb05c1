import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import BOS, LLAMA, V, random_params, tiny_config, tiny_model

from llm_jax.config import schema
from llm_jax.config.schema import ConfigError
from llm_jax.data.prepare import prepare
from llm_jax.lab.extrapolate import POSITIONS, SCALINGS, extrapolate, longer_rows, perplexities
from llm_jax.report import extrapolation as extrapolation_page

ENDS = [8, 16, 32]


def rows(n, length, seed=0):
    tokens = np.random.default_rng(seed).integers(2, V, (n, length + 1)).astype(np.int32)
    tokens[:, 0] = BOS
    return tokens


def test_perplexities_by_position_in_the_document():
    config = tiny_config(**LLAMA, max_seq_len=32)
    model = tiny_model(config)
    params = random_params(model)
    tokens = rows(2, 32)
    tokens[0, 10] = BOS  # a second document: its positions count from 0 again
    expected = [[], [], []]
    for row in tokens:
        starts = [*np.flatnonzero(row[:-1] == BOS), 32]
        for start, stop in zip(starts[:-1], starts[1:], strict=True):
            alone = row[start : stop + 1]  # a document alone, without segments or positions
            logits = model.apply({'params': params}, jnp.asarray(alone[None, :-1]))[0]
            log_p = np.asarray(jax.nn.log_softmax(logits))
            for i, target in enumerate(alone[1:]):
                expected[np.searchsorted(ENDS, i + 1)].append(-log_p[i, target])
    got = perplexities(model, params, [tokens[:1], tokens[1:]], bos_id=BOS, ends=ENDS)
    np.testing.assert_allclose(got, [np.exp(np.mean(nll)) for nll in expected], rtol=1e-4)


def test_longer_rows_are_the_stream_again(tmp_path):
    (tmp_path / 'a.txt').write_text('\n'.join(f'line {i} of a text that goes on' for i in range(2000)))
    data = schema.Data(
        sources={'a': f'text:{tmp_path}/a.txt'}, max_document_chars=2000, seq_len=16, validation_fraction=0.5,
        cache_dir=str(tmp_path / 'cache'), tokenizer=schema.Tokenizer(vocab_size=300),
    )  # fmt: skip
    prepared = prepare(data, seed=0)
    short = prepared.rows('validation')['a'].read(np.arange(40))
    long = longer_rows(prepared, 64, 5)
    assert long.shape == (5, 65)
    np.testing.assert_array_equal(long[:, :-1].ravel(), short[:20, :-1].ravel())
    np.testing.assert_array_equal(long[:-1, -1], long[1:, 0])
    with pytest.raises(ConfigError, match='not one row of 1000000'):
        longer_rows(prepared, 10**6, 5)


def test_every_part_is_measured_and_shown(tmp_path):
    """Text in which each token repeats the one before: easy at any length, if positions do not mislead."""
    config = tiny_config(**LLAMA, train__duration=60, optimizer__learning_rate=1e-2, schedule__warmup=10)
    repeats = np.random.default_rng(0).integers(2, V, (60, 8, 1)).repeat(17, -1).astype(np.int32)
    repeats[..., 0] = BOS
    held_out = np.random.default_rng(1).integers(2, V, (2, 4, 1)).repeat(65, -1).astype(np.int32)
    held_out[..., 0] = BOS
    result = extrapolate(config, repeats, held_out, vocab_size=V, bos_id=BOS, lengths=[16, 32, 64])
    assert list(result.perplexity) == [*POSITIONS, *(f'rope, {scaling}' for scaling in SCALINGS)]
    values = np.asarray(list(result.perplexity.values()))
    assert values.shape == (11, 3) and np.all(values >= 1)
    alibi = result.perplexity['alibi']
    assert alibi[-1] < 1.1 * alibi[0]  # Press et al. 2022: reads on as it was trained
    rotary = {name: tuple(values) for name, values in result.perplexity.items() if name.startswith('rope')}
    assert rotary['rope, dynamic'] == rotary['rope, ntk']  # which it is at the longest length
    assert len(set(rotary.values())) == 6  # all others are different models
    page = extrapolation_page.write(tmp_path, result.numbers, sentence=result.sentence, command='none')
    assert 'perplexity against length' in page.read_text()
    assert json.loads((tmp_path / 'extrapolation.json').read_text())['perplexity'] == result.perplexity
