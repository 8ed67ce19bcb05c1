"""Looking words up gives exactly the tokens that SentencePiece gives for the whole text."""

import io
import pathlib
import random

from awkward import TEXTS, cases, sentencepiece_model
import pytest
import sentencepiece

from llm_jax import tokenizer
from llm_jax.config import schema
from llm_jax.tokenizer import words
from llm_jax.tokenizer.export import SPACE
from llm_jax.tokenizer.sentence_piece import SentencePieceTokenizer

# Prose and code, of several scripts, at hand wherever Python is.
REAL = [pathlib.Path(module.__file__).read_text(encoding='utf-8') for module in (random, pathlib, io)]
REAL += ['\n'.join(TEXTS), 'Il était là, “déjà vu”… naïve—coöperate;\tx_1 = 2024\r\n\r\n  \n   done  ']


@pytest.fixture(scope='module')
def tok():
    return tokenizer.train(schema.Tokenizer(vocab_size=1500), REAL, seed=0)


def whole(tok, texts):
    """What the library itself makes of texts."""
    return sentencepiece.SentencePieceProcessor(model_proto=tok._model).encode(texts)


def test_tokens_are_those_of_the_whole_text(tok):
    texts = [text for text in [*REAL, *cases()] if SPACE not in text]
    assert tok._words is not None
    for _ in range(2):  # the second time all words are known
        assert tok.encode_batch(texts) == whole(tok, texts)


def test_tokens_of_random_text_are_those_of_the_whole_text(tok):
    draw = random.Random(0)
    alphabet = sorted({*''.join(REAL), *'aA éß中日ر้\u0301\0\ufeff🙂 \n\t_0'} - {SPACE})
    texts = [''.join(draw.choices(alphabet, k=draw.randrange(60))) for _ in range(3000)]
    assert tok.encode_batch(texts) == whole(tok, texts)


@pytest.mark.parametrize('pattern', words._PATTERNS)
def test_words_hold_every_character(pattern):
    for text in [*REAL, *cases()]:
        assert ''.join(pattern.findall(text)) == text


def merged(vocabulary):
    """A `Words` over a vocabulary, and the list of what it has encoded."""
    encoded = []

    def encode(texts):
        encoded.extend(texts)
        return [[len(text)] for text in texts]

    return words.Words(vocabulary, encode), encoded


@pytest.mark.parametrize(
    ('vocabulary', 'cut'),
    [
        (['a', ' b', '  ', '.\n'], ['ab', '.', ' cd', '\n']),
        (['a', ' b', 'e.'], ['ab.', ' cd\n']),  # a token of letters and what is none
        (['a', 'b c'], ['ab. cd\n']),  # a token of two words
    ],
)
def test_text_is_cut_only_where_no_token_reaches(vocabulary, cut):
    found, encoded = merged(vocabulary)
    assert found.encode(['ab. cd\n']) == [[len(word) for word in cut]]
    assert sorted(encoded) == sorted(cut)


def test_words_are_merged_once_and_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(words, '_MOST_CHARS', 10)
    found, encoded = merged(['a'])
    assert found.encode(['aa bb', 'bb bb']) == [[2, 3], [2, 3]]
    assert sorted(encoded) == [' bb', 'aa', 'bb']
    found.encode(['aa bb'])
    assert len(encoded) == 3
    assert found.encode(['much too long', 'aa']) == [[4, 4, 5], [2]]
    assert not found._known  # given up, and begun again
    assert found.encode(['aa']) == [[2]]


def test_other_models_are_left_to_the_library():
    """A unigram model weighs a text as a whole, and one that puts a space before it puts it before words too."""
    assert tokenizer.train(schema.Tokenizer(algorithm='unigram', vocab_size=600), REAL, seed=0)._words is None
    assert SentencePieceTokenizer(sentencepiece_model())._words is None
