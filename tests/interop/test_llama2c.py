"""A real small model of llama2.c against what llama2.c itself computed."""

import gzip
import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.config.schema import ConfigError
from llm_jax.generate import engine
from llm_jax.generate.settings import Sampler
from llm_jax.interop import convert, llama2c
from llm_jax.nn.transformer import Transformer

BOS, LONGEST = 1, 512


@pytest.fixture(scope='module')
def stories(shared_data):
    config, params = llama2c.load(shared_data / 'checkpoint' / 'stories260K.bin')
    with gzip.open(shared_data / 'checkpoint' / 'stories260K_reference.json.gz') as file:
        return Transformer(config.model), params, json.load(file)


class Bpe:
    """Its tokenizer: the best pair is merged until none is left, as llama2.c does; words are independent."""

    def __init__(self, file):
        data, at, self.scores, self.pieces = file.read_bytes(), 4, {}, []
        while at < len(data):
            score, length = struct.unpack_from('<fi', data, at)
            piece = data[at + 8 : at + 8 + length]
            self.scores.setdefault(piece, (score, len(self.pieces)))
            self.pieces.append(piece)
            at += 8 + length
        self.known = {}

    def word(self, text):
        if text not in self.known:
            parts = [c.encode() for c in text]
            parts = [p for part in parts for p in ([part] if part in self.scores else [bytes([b]) for b in part])]
            while True:
                pairs = [(self.scores[a + b][0], -i) for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False))
                         if a + b in self.scores]  # fmt: skip
                if not pairs:
                    break
                i = -max(pairs)[1]
                parts[i : i + 2] = [parts[i] + parts[i + 1]]
            self.known[text] = [self.scores[p][1] if p in self.scores else p[0] + 3 for p in parts]
        return self.known[text]

    def __call__(self, text):
        first, *rest = (' ' + text).split(' ')
        return [BOS, *self.word(first), *(token for word in rest for token in self.word(' ' + word))]


def test_logits(stories):
    model, params, reference = stories
    for prompt in reference['prompts']:
        ours = model.apply({'params': params}, jnp.asarray([prompt['tokens_with_bos']]))[0]
        theirs = np.asarray(prompt['logits'])
        assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


def test_loss_on_stories(stories, shared_data):
    model, params, reference = stories
    encode = Bpe(shared_data / 'checkpoint' / 'tok512.bin')
    with gzip.open(shared_data / 'tinystories' / 'valid.jsonl.gz', 'rt') as file:
        texts = [json.loads(line)['text'] for _, line in zip(range(300), file, strict=False)]
    wanted = reference['tinystories_valid_first300']
    tokens_NL = np.full((len(texts), LONGEST), -1)
    for row, text, known in zip(tokens_NL, texts, wanted['stories'], strict=True):
        tokens = encode(text)
        assert tokens[:16] == known['first_tokens']
        assert len(tokens) == known['n_tokens']
        tokens = tokens[:LONGEST]
        row[: len(tokens)] = tokens

    @jax.jit
    def losses(tokens_BL):
        logits_BLV = model.apply({'params': params}, jnp.maximum(tokens_BL[:, :-1], 0))
        targets_BL = tokens_BL[:, 1:]
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits_BLV), jnp.maximum(targets_BL, 0)[..., None], -1)[..., 0]
        return -jnp.where(targets_BL >= 0, picked, 0).sum(-1)

    nll_N = np.concatenate([losses(tokens_BL) for tokens_BL in np.split(tokens_NL, 20)])
    np.testing.assert_allclose(nll_N, [story['nll_sum'] for story in wanted['stories']], rtol=1e-4)
    assert nll_N.sum(dtype=np.float64) / wanted['n_predicted'] == pytest.approx(1.35074, abs=2e-4)


def test_greedy_text(stories, shared_data):
    model, params, reference = stories
    bpe = Bpe(shared_data / 'checkpoint' / 'tok512.bin')
    (tokens,) = engine.generate(model, params, [[BOS]], max_new_tokens=256, sampler=Sampler(0.0))
    spell = lambda token: b'' if token == BOS else bytes([token - 3]) if 3 <= token < 259 else bpe.pieces[token]
    text = b''.join(map(spell, tokens)).decode()
    assert text.strip() == reference['greedy']['text'].strip()


def test_a_run_directory_of_it(stories, shared_data, tmp_path):
    import llm_jax

    model, params, _ = stories
    assert convert.from_llama2c(shared_data / 'checkpoint' / 'stories260K.bin', tmp_path / 'run') is None
    loaded = llm_jax.load(tmp_path / 'run')
    assert loaded.model.config == model.config
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    with pytest.raises(ConfigError, match='rope.interleaved = True'):
        convert.to_hf(tmp_path / 'run', tmp_path / 'hf')


def write(file, header, floats):
    file.write_bytes(struct.pack('<7i', *header) + np.arange(floats, dtype='<f4').tobytes())
    return file


def test_a_head_of_its_own(tmp_path):
    """dim 4, hidden 3, 2 layers, 2 heads, 1 kv head, 5 tokens (untied), 6 positions."""
    layer = 4 + 16 + 8 + 8 + 16 + 4 + 12 + 12 + 12
    total = 5 * 4 + 2 * layer + 4 + 2 * 6 * 1 + 5 * 4
    config, params = llama2c.load(write(tmp_path / 'a.bin', (4, 3, 2, 2, 1, -5, 6), total))
    assert not config.model.tie_embeddings
    np.testing.assert_array_equal(params['unembed']['kernel'], np.arange(total - 20, total).reshape(5, 4).T)
    # Tensors are stacked over layers in the file: the second q follows the first.
    first = 5 * 4 + 2 * 4
    q = params['layers']['attention']['q']['kernel']
    np.testing.assert_array_equal(q[1].reshape(4, 4).T, np.arange(first + 16, first + 32).reshape(4, 4))


def test_errors(tmp_path):
    with pytest.raises(ConfigError, match='by its header it should have'):
        llama2c.load(write(tmp_path / 'short.bin', (4, 3, 2, 2, 1, 5, 6), 100))
    with pytest.raises(ConfigError, match='no llama2.c file'):
        llama2c.load(write(tmp_path / 'other.bin', (4, 3, 0, 2, 1, 5, 6), 100))
