"""Bits per byte of outside text: against a sum in float64 over documents taken one by one, and on the command line."""

import gzip
import json
import math
import subprocess
import sys

import jax
import numpy as np
import pytest

from llm_jax import config as config_lib
from llm_jax import tokenizer
from llm_jax.config import cli, schema
from llm_jax.config.schema import ConfigError
from llm_jax.evals import texts
from llm_jax.nn.transformer import build, init_params
from llm_jax.runs import Loaded

DOCUMENTS = ['def f(x):\n    return x + 1\n', 'Nothing else is here, but this.', 'naïve ☃ 中文\n']


@pytest.fixture(scope='module')
def loaded():
    tok = tokenizer.train(schema.Tokenizer(vocab_size=300), DOCUMENTS * 3, seed=0)
    config = config_lib.default()
    config.name, config.data.seq_len = 'tiny', 256
    config.model.d_model, config.model.n_layers, config.model.n_heads = 16, 2, 2
    config.model.init_std = 0.5  # far from the uniform distribution
    config = config_lib.validate(config)
    model = build(config.model, vocab_size=tok.vocab_size, seq_len=256)
    return Loaded(model, init_params(model, jax.random.key(0)), tok, config, 0)


def nats(loaded, ids, targets):
    """-log p of targets, each after the ids up to its place, summed in float64."""
    logits = np.asarray(loaded.model.apply({'params': loaded.params}, np.array([ids])), np.float64)[0]
    log_p = (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )
    return -sum(log_p[i, target] for i, target in enumerate(targets))


@pytest.mark.parametrize('batch_size', [1, 4])
def test_bits_are_those_of_each_document_by_itself(loaded, batch_size):
    tok = loaded.tokenizer
    total = count = 0
    for i, text in enumerate(DOCUMENTS):
        ids = [tok.bos_id, *tok.encode(text)]
        # The end of a document is the next one's beginning, which the last one has not.
        targets = ids[1:] + [tok.bos_id] * (i < len(DOCUMENTS) - 1)
        total += nats(loaded, ids, targets)
        count += len(targets)
    size = sum(len(text.encode()) for text in DOCUMENTS)
    found = texts.score(loaded, DOCUMENTS, batch_size=batch_size)
    assert (found.bytes, found.documents, found.tokens) == (size, 3, count)
    assert found.bits_per_byte == pytest.approx(total / math.log(2) / size, rel=1e-4)
    assert found.perplexity == pytest.approx(math.exp(total / count), rel=1e-3)


def test_shorter_rows_count_every_token_too(loaded):
    found = texts.score(loaded, DOCUMENTS, seq_len=7)
    assert found.tokens == texts.score(loaded, DOCUMENTS).tokens


def test_texts_are_cut_at_their_first_bytes(tmp_path):
    (tmp_path / 'a.txt').write_text('é' * 10)
    with gzip.open(tmp_path / 'b.jsonl.gz', 'wt') as lines:
        lines.writelines(json.dumps({'text': text}) + '\n' for text in ('one', 'two', 'three'))
    specs = {'a': f'text:{tmp_path}/a.txt', 'b': f'jsonl:{tmp_path}/b.jsonl.gz'}
    assert texts.read_texts(specs, 0) == {'a': ['é' * 10], 'b': ['one', 'two', 'three']}
    assert texts.read_texts(specs, 5) == {'a': ['éé'], 'b': ['one', 'tw']}  # not half a character
    (tmp_path / 'a.txt').write_text('')
    with pytest.raises(ConfigError, match='holds no text'):
        texts.read_texts({'a': specs['a']}, 0)


def test_a_model_without_its_text_has_no_bits_per_byte(loaded):
    with pytest.raises(ConfigError, match='no tokenizer'):
        texts.score(Loaded(loaded.model, loaded.params, None, loaded.config, 0), DOCUMENTS)


@pytest.mark.parametrize(('arguments', 'error'), [(['wiki'], 'NAME=VALUE'), (['a=x', 'a=y'], 'there twice')])
def test_names_on_the_command_line(arguments, error):
    assert cli.named(['wiki=text:a=b'], '--text') == {'wiki': 'text:a=b'}
    with pytest.raises(ConfigError, match=error):
        cli.named(arguments, '--text')


def test_the_tool_wants_a_text():
    result = subprocess.run([sys.executable, 'tools/evaluate.py', 'runs/x'], capture_output=True, text=True)
    assert result.returncode == 2 and '--text' in result.stderr
