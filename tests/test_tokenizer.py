"""The tokenizer keeps every string as it is, counts bytes exactly and trains reproducibly."""

import argparse
import pathlib
import random
import unicodedata

import numpy as np
import pytest

from llm_jax import schema, tokenizer
from llm_jax.schema import ConfigError

TEXTS = [
    pathlib.Path(argparse.__file__).read_text(),
    'def f(x):\n    """Adds one."""\n    if x:\n\t\treturn x + 1\n    return 1234567\n',
    'class A(Base):\n        pass\n\n\nprint("naïve café")\r\n',
    'import os, sys\nfor i in range(10):\n    print(i, end=" ")\n' * 3,
]
AWKWARD = [
    '', ' ', '   ', '\t', '\t\t x', '\n', '\n\n\n', '\r\n', 'a\r\nb\r', '\0', 'a\0b', '\u2581', 'a\u2581b\u2581',
    ' \u2581 ', '\u2581\u2581', '\u2585', '\u0301', 'e\u0301', '\u00e9', '\ufb01', '\u00a0', '\u3000 x', '\u2028',
    '\u200b', '\ufeffx', '\ufffd', '😀👩‍👩‍👧‍👦',
    '<|bos|>', '<unk>', '<0x41>', '<|pad|><|eos|>', ' ⁇ ', '①²', '中文字', 'Ω',
    '\U0010ffff', '\ue000', ' trailing ', '    deep\n        deeper\n', '\x7f\x1b[0m', '１２３',
]  # fmt: skip


@pytest.fixture(scope='module', params=['bpe', 'unigram'])
def tok(request):
    return tokenizer.train(schema.Tokenizer(algorithm=request.param, vocab_size=600), TEXTS, seed=0)


def random_text(rng: random.Random) -> str:
    pools = [
        lambda: chr(rng.randrange(0x80)),
        lambda: rng.choice(' \t\n\r\u2581'),
        lambda: rng.choice(AWKWARD),
        lambda: rng.choice(TEXTS)[: rng.randrange(30)],
        lambda: chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)])),
    ]
    return ''.join(rng.choice(pools)() for _ in range(rng.randrange(25)))


def cases() -> list[str]:
    rng = random.Random(0)
    return AWKWARD + [random_text(rng) for _ in range(2000)]


def test_decode_inverts_encode_for_every_string(tok):
    texts = cases()
    batch = tok.encode_batch(texts)
    for text, ids in zip(texts, batch, strict=True):
        assert tok.decode(ids) == text, repr(text)
        assert tok.encode(text) == ids
        assert tok.token_bytes[ids].sum() == len(text.encode())
        assert not set(ids) & {0, 1, 2, 3}


def test_every_single_character_round_trips(tok):
    every = [chr(c) for c in range(0, 0x110000, 7) if not 0xD800 <= c < 0xE000]
    assert [tok.decode(ids) for ids in tok.encode_batch(every)] == every


def test_text_is_not_normalised(tok):
    assert unicodedata.normalize('NFKC', '\ufb01') == 'fi'
    assert tok.encode('\ufb01') != tok.encode('fi')


def test_a_lone_surrogate_is_an_error(tok):
    with pytest.raises(UnicodeEncodeError):
        tok.encode('a\ud800')


def test_indentation_is_learned(tok):
    assert len(tok.encode('        ')) < 8
    assert len(tok.encode('2024')) == 4  # digits stay apart


def test_token_bytes(tok):
    assert tok.token_bytes.dtype == np.int32 and tok.token_bytes.shape == (tok.vocab_size,) == (600,)
    assert list(tok.token_bytes[:4]) == [0, 0, 0, 0] and tok.bos_id == 1
    assert set(tok.token_bytes[4:260]) == {1} and min(tok.token_bytes[260:]) >= 1


def test_special_tokens_decode_to_nothing_and_bad_bytes_to_a_mark(tok):
    ids = tok.encode('ab')
    assert tok.decode([tok.bos_id, *ids, 2, 3, 0]) == 'ab'
    assert tok.decode(tok.encode('é')[:-1] if len(tok.encode('é')) > 1 else [4 + 0xC3]) == '\ufffd'


def test_stream_decoder_gives_whole_characters(tok):
    stream = tokenizer.StreamDecoder(tok)
    for text in cases()[:300]:
        out = [stream.push(i) for i in tok.encode(text)]
        assert ''.join(out) == text and stream.flush() == ''
    family = '😀'
    out = [stream.push(i) for i in tok.encode(family)]
    assert out[:-1] == [''] * (len(out) - 1) and out[-1] == family


def test_stream_decoder_marks_an_unfinished_character(tok):
    stream = tokenizer.StreamDecoder(tok)
    assert [stream.push(4 + b) for b in '😀'.encode()[:2]] == ['', '']
    assert stream.flush() == '\ufffd' and stream.push(4 + ord('a')) == 'a'


def test_training_depends_on_texts_and_seed_alone():
    config = schema.Tokenizer(vocab_size=300, sample_bytes=600)
    texts = [f'text {i} has words w{i * 7919 % 1000} and more words\n' * 3 for i in range(200)]
    first = tokenizer.train(config, texts, seed=1)
    assert first.fingerprint == tokenizer.train(config, texts[::-1], seed=1).fingerprint
    assert first.fingerprint != tokenizer.train(config, texts, seed=2).fingerprint


def test_the_sample_is_bounded_and_nothing_is_lost_without_a_bound():
    long = 'x' * 50_000 + '\n' + 'line\n' * 10_000 + 'a\u2581b\0c'
    assert ''.join(tokenizer._chunks(long)) == long.replace('\u2581', '').replace('\0', '')
    assert max(len(c.encode()) for c in tokenizer._chunks('\U0001f600' * 50_000)) <= 4 * 8192
    sample = tokenizer._sample([long], 20_000, seed=0)
    assert 0 < sum(map(len, sample)) <= 20_000


def test_long_lines_are_learned_from():
    tok = tokenizer.train(schema.Tokenizer(vocab_size=268), ['zq' * 20_000], seed=0)
    assert len(tok.encode('zq' * 16)) <= 4
    assert tok.decode(tok.encode(' a ')) == ' a '  # though it never saw a space


def test_save_and_load(tok, tmp_path):
    tok.save(tmp_path)
    for path in (tmp_path, tmp_path / tokenizer.FILE_NAME):
        other = tokenizer.load(path)
        assert other.fingerprint == tok.fingerprint and other.encode(TEXTS[0]) == tok.encode(TEXTS[0])


def test_errors(tmp_path, capfd):
    with pytest.raises(ConfigError, match=r'vocab_size = 9999 is more than .* set at most \d+'):
        tokenizer.train(schema.Tokenizer(vocab_size=9999), TEXTS, seed=0)
    with pytest.raises(ConfigError, match=r'vocab_size = 100 is too small .* at least \d+'):
        tokenizer.train(schema.Tokenizer(vocab_size=100), TEXTS, seed=0)
    with pytest.raises(ConfigError, match='no text'):
        tokenizer.train(schema.Tokenizer(), [], seed=0)
    with pytest.raises(ConfigError, match="algorithm = 'bpee'.*did you mean 'bpe'"):
        tokenizer.train(schema.Tokenizer(algorithm='bpee'), TEXTS, seed=0)
    with pytest.raises(ConfigError, match='no such file'):
        tokenizer.load(tmp_path / 'none.model')
    (tmp_path / 'x.model').write_text('hello')
    with pytest.raises(ConfigError, match=r'x\.model.*not a SentencePiece model'):
        tokenizer.load(tmp_path / 'x.model')
    assert capfd.readouterr() == ('', '')  # SentencePiece keeps quiet


def test_a_model_that_changes_text_is_refused(tmp_path):
    import sentencepiece

    prefix = str(tmp_path / 'm')
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS[1:]), model_prefix=prefix, vocab_size=320, byte_fallback=True,
        model_type='bpe', minloglevel=2,
    )  # fmt: skip
    with pytest.raises(ConfigError, match='changes text'):
        tokenizer.load(prefix + '.model')
