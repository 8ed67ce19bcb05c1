"""The tokenizer keeps every string as it is, counts bytes exactly and trains reproducibly."""

import unicodedata

from awkward import TEXTS, cases, sentencepiece_model
import numpy as np
import pytest
import sentencepiece

from llm_jax import tokenizer
from llm_jax.config import schema
from llm_jax.config.schema import ConfigError
from llm_jax.tokenizer import training


@pytest.fixture(scope='module', params=['bpe', 'unigram'])
def tok(request):
    return tokenizer.train(schema.Tokenizer(algorithm=request.param, vocab_size=600), TEXTS, seed=0)


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
    assert ''.join(training.pieces(long)) == long.replace('\u2581', '').replace('\0', '')
    assert max(len(c.encode()) for c in training.pieces('\U0001f600' * 50_000)) <= 4 * 8192
    sample = training._sample([long], 20_000, seed=0)
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


def test_training_demands_a_model_that_keeps_text(monkeypatch):
    monkeypatch.setattr(training, 'SentencePieceTokenizer', lambda model: load_model(sentencepiece_model()))
    with pytest.raises(ConfigError, match='changes text'):
        tokenizer.train(schema.Tokenizer(vocab_size=400), TEXTS, seed=0)


# --- Models that others trained ----------------------------------------------------------


def load_model(model: bytes) -> tokenizer.SentencePieceTokenizer:
    return tokenizer.SentencePieceTokenizer(model)


KEEPS = {'normalization_rule_name': 'identity', 'remove_extra_whitespaces': False}
FOREIGN = {
    'as Llama 2': KEEPS,
    'as Gemma': KEEPS | {'add_dummy_prefix': False},
    'normalising': {},
    'unigram': {'model_type': 'unigram'},
    'user-defined pieces': KEEPS | {'user_defined_symbols': ['<turn>', '\t\t']},
}


@pytest.mark.parametrize('name', FOREIGN)
def test_foreign_models_encode_and_decode_as_the_library_does(name):
    model = sentencepiece_model(**FOREIGN[name])
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    tok = load_model(model)
    assert (tok.vocab_size, tok.bos_id, tok.eos_ids, tok.lossless) == (library.vocab_size(), 1, (2,), False)
    assert tok.prefix == (b'' if name == 'as Gemma' else b' ')
    texts = cases(500)
    batch = tok.encode_batch(texts)
    assert batch == library.encode(texts) and tok.encode(texts[-1]) == batch[-1]
    for text, ids in zip(texts, batch, strict=True):
        assert tok.decode([tok.bos_id, *ids, 2]) == library.decode(ids), repr(text)
        assert tok.token_bytes[ids].sum() == len(tok.decode(ids, continues=True).encode())
        assert not set(ids) & {0, 1, 2}
        if FOREIGN[name].get('remove_extra_whitespaces') is False and '\u2581' not in text:
            assert tok.decode(ids) == text
            assert tok.token_bytes[ids].sum() == len(text.encode()) + (len(tok.prefix) if text else 0)


def test_the_prefix_is_no_part_of_the_text_and_a_continuation_has_none():
    tok = load_model(sentencepiece_model(**KEEPS))
    ids = tok.encode('print it')
    assert tok.decode(ids) == 'print it' and tok.decode(ids, continues=True) == ' print it'
    for continues, text in ((False, 'print it'), (True, ' print it')):
        stream = tokenizer.StreamDecoder(tok, continues=continues)
        for _ in range(2):  # it starts afresh
            assert ''.join(map(stream.push, [tok.bos_id, *ids])) + stream.flush() == text


def test_foreign_models_that_cannot_be_used():
    with pytest.raises(ConfigError, match='no byte fallback'):
        load_model(sentencepiece_model(byte_fallback=False, vocab_size=150))
    with pytest.raises(ConfigError, match='spaces behind words'):
        load_model(sentencepiece_model(treat_whitespace_as_suffix=True))
    with pytest.raises(ConfigError, match='neither BOS nor EOS'):
        load_model(sentencepiece_model(bos_id=-1, eos_id=-1))
    assert load_model(sentencepiece_model(bos_id=-1, eos_id=1)).bos_id == 1


@pytest.mark.parametrize('algorithm', ['bpe', 'unigram'])
def test_reserved_tokens_are_no_text(algorithm):
    names = ('<|user|>', '<|assistant|>', '<|end|>')
    config = schema.Tokenizer(algorithm=algorithm, vocab_size=600, reserved=names)
    tok = tokenizer.train(config, TEXTS, seed=0)
    assert tok.reserved == dict(zip(names, (4, 5, 6), strict=True)) and tok.vocab_size == 600
    for text in [*names, 'a<|user|>b', *cases(200)]:
        ids = tok.encode(text)
        assert tok.decode(ids) == text and not set(ids) & set(range(7))
    assert list(tok.token_bytes[:7]) == [0] * 7 and tok.decode([4, *tok.encode('x'), 6]) == 'x'
    plain = tokenizer.train(schema.Tokenizer(algorithm=algorithm, vocab_size=600), TEXTS, seed=0)
    assert plain.reserved == {} and plain.fingerprint != tok.fingerprint


def test_digits_are_split_only_if_wished():
    texts = [*TEXTS, 'in 2024 and 2024, 2024 was 2024; 2024!\n' * 50]
    config = lambda split: schema.Tokenizer(vocab_size=500, split_digits=split)
    size = lambda split: len(tokenizer.train(config(split), texts, seed=0).encode(' 2024'))
    assert size(True) == 5 and size(False) == 1


@pytest.mark.parametrize('name', ['', 'a b', '<|bos|>', '<0x41>', 'a,b', 7])
def test_names_that_cannot_be_reserved(name):
    with pytest.raises(ConfigError, match=r'data\.tokenizer\.reserved'):
        tokenizer.train(schema.Tokenizer(reserved=('<|ok|>', name)), TEXTS, seed=0)
    with pytest.raises(ConfigError, match='twice'):
        tokenizer.train(schema.Tokenizer(reserved=('<|ok|>', '<|ok|>')), TEXTS, seed=0)


def test_a_share_does_not_depend_on_shards():
    texts = [f'{i} ' * 9000 for i in range(50)]
    whole = list(training.share(texts, 0.3, seed=1))
    halves = [*training.share(texts[:20], 0.3, seed=1), *training.share(texts[20:], 0.3, seed=1)]
    assert whole == halves and all(rank < 0.3 * 2**64 for rank, _ in whole)
    pieces = [piece for text in texts for piece in training.pieces(text)]
    assert 0.15 < len(whole) / len(pieces) < 0.45
    assert [piece for _, piece in training.share(texts, 1.0, seed=1)] == pieces
