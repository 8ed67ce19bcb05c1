"""Tokenizers of characters and of bytes keep every text, and say what they have no room for."""

import dataclasses

from awkward import cases
import pytest

from llm_jax import tokenizer
from llm_jax.config import schema
from llm_jax.config.schema import ConfigError

TEXTS = ['hello world\n', 'naïve ▁ \U0001f642\0', 'low']


@pytest.mark.parametrize('kind', ['characters', 'bytes'])
def test_every_text_comes_back(kind, tmp_path):
    config = schema.Tokenizer(kind=kind, reserved=('<|user|>',))
    tok = tokenizer.train(config, iter(TEXTS), seed=0)
    texts = [*TEXTS, *cases(100), '<|user|><|bos|><0x41>']
    assert tok.lossless and tok.prefix == b'' and tok.vocab_size <= tokenizer.expected_size(config)
    for text, ids in zip(texts, tok.encode_batch(texts), strict=True):
        assert tok.decode(ids) == text and tok.token_bytes[ids].sum() == len(text.encode())
        assert max(ids, default=0) < tok.bos_id  # neither BOS nor a reserved name
    tok.save(tmp_path)
    again = tokenizer.load(tmp_path)
    assert (again.fingerprint, again.bos_id, again.vocab_size) == (tok.fingerprint, tok.bos_id, tok.vocab_size)


def test_ids_of_characters_are_their_order_in_the_text(tmp_path):
    tok = tokenizer.train(schema.Tokenizer(kind='characters'), TEXTS, seed=0)
    alphabet = sorted(set(''.join(TEXTS)))  # as nanoGPT numbers them
    assert tok.encode('hello') == [alphabet.index(char) for char in 'hello']
    assert tok.vocab_size == len(alphabet) + 256 + 1
    assert tok.encode('Z') == [len(alphabet) + ord('Z')]


def test_ids_of_bytes_are_the_bytes():
    config = schema.Tokenizer(kind='bytes', vocab_size=7)
    tok = tokenizer.train(config, [], seed=0)
    assert tok.encode('aé') == [0x61, 0xC3, 0xA9]
    assert (tok.bos_id, tok.vocab_size, tokenizer.expected_size(config)) == (256, 257, 257)


def test_the_rarest_characters_are_left_to_the_bytes():
    config = schema.Tokenizer(kind='characters', vocab_size=256 + 1 + 2)
    tok = tokenizer.train(config, ['aabbbc'], seed=0)
    assert tok.encode('abc') == [0, 1, 2 + ord('c')] and tok.vocab_size == config.vocab_size
    with pytest.raises(ConfigError, match='data.tokenizer.vocab_size = 257 has no room for characters.*at least 260'):
        tokenizer.train(dataclasses.replace(config, vocab_size=257), ['aabbbc'], seed=0)
    with pytest.raises(ConfigError, match='there is no text to train the tokenizer on; look at data.sources'):
        tokenizer.train(config, [''], seed=0)
    with pytest.raises(ConfigError, match="kind = 'character' is unknown; did you mean 'characters'"):
        tokenizer.train(dataclasses.replace(config, kind='character'), ['a'], seed=0)
