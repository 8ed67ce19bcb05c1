"""Tokenizers of other models keep ids and text: GPT-2's files and tokenizer.json."""

import json

from awkward import AWKWARD, TEXTS, byte_level_bpe, cases, sentencepiece_model, unzipped, write_pair
import numpy as np
import pytest
import tokenizers

from llm_jax import tokenizer
from llm_jax.config.schema import ConfigError


@pytest.fixture(scope='module')
def gpt2_like(tmp_path_factory):
    directory = tmp_path_factory.mktemp('gpt2_like')
    write_pair(directory, 'vocab.json', 'merges.txt')
    return tokenizer.load(directory)


def write_json(directory, model: tokenizers.Tokenizer, **beside: dict):
    directory.mkdir(parents=True, exist_ok=True)
    model.save(str(directory / 'tokenizer.json'))
    for name, content in beside.items():
        (directory / f'{name}.json').write_text(json.dumps(content))
    return directory


def test_gpt2_gives_the_reference_ids(shared_data):
    tok = tokenizer.load(shared_data / 'tokenizer')
    assert (tok.vocab_size, tok.bos_id, tok.eos_ids, tok.lossless, tok.prefix) == (50257, 50256, (), True, b'')
    lines = unzipped(shared_data / 'tokenizer' / 'gpt2_encode_reference.jsonl.gz').strip().split('\n')
    cases = [json.loads(line) for line in lines]
    assert len(cases) == 186
    batch = tok.encode_batch([case['text'] for case in cases])
    for case, ids in zip(cases, batch, strict=True):
        assert ids == case['ids'] == tok.encode(case['text'])
        assert tok.decode(ids) == case['text']
        assert tok.token_bytes[ids].sum() == len(case['text'].encode())


def test_gpt2_reads_whole_books_as_the_reference_does(shared_data):
    tok = tokenizer.load(shared_data / 'tokenizer' / 'gpt2_vocab.bpe')
    assert len(tok.encode((shared_data / 'misc' / 'the-verdict.txt').read_text())) == 5145
    assert len(tok.encode(unzipped(shared_data / 'misc' / 'tinyshakespeare.txt.gz'))) == 338025


def test_byte_level_tokenizers_keep_every_string(gpt2_like):
    tok = gpt2_like
    assert tok.lossless and tok.bos_id == tok.vocab_size - 1 and tok.token_bytes[tok.bos_id] == 0
    texts = cases()
    for text, ids in zip(texts, tok.encode_batch(texts), strict=True):
        assert tok.decode([tok.bos_id, *ids]) == text, repr(text)
        assert tok.token_bytes[ids].sum() == len(text.encode())
        assert tok.bos_id not in ids


def test_every_byte_is_a_token_and_a_stream_gives_whole_characters(gpt2_like):
    tok = gpt2_like
    single = {tok.decode_token(i) for i in range(tok.vocab_size) if tok.token_bytes[i] == 1}
    assert single == {bytes([b]) for b in range(256)}
    stream = tokenizer.StreamDecoder(tok)
    for text in cases(300):
        assert ''.join(map(stream.push, tok.encode(text))) + stream.flush() == text


def test_a_lone_surrogate_is_an_error(gpt2_like):
    with pytest.raises(UnicodeEncodeError):
        gpt2_like.encode('a\ud800')


def test_names_of_special_tokens_are_text(tmp_path):
    special = ('<|endoftext|>', '<|im_start|>', '<|im_end|>')
    tok = tokenizer.load(write_json(tmp_path, byte_level_bpe(special)))
    control = {i for i in range(tok.vocab_size) if tok.token_bytes[i] == 0}
    assert len(control) == 3
    for text in AWKWARD:
        assert not control & set(tok.encode(text)) and tok.decode(tok.encode(text)) == text


def test_bos_and_eos_come_from_the_files_beside(tmp_path):
    special = ('<|endoftext|>', '<|im_end|>', '<s>')
    bpe = byte_level_bpe(special)
    text, end, start = (bpe.token_to_id(name) for name in special)

    def ids(name, **beside):
        tok = tokenizer.load(write_json(tmp_path / name, bpe, **beside))
        return tok.bos_id, tok.eos_ids

    assert ids('none') == (text, ())
    assert ids('named', tokenizer_config={'bos_token': {'content': '<s>'}, 'eos_token': '<|im_end|>'}) == (
        start,
        (end,),
    )
    assert ids('map', special_tokens_map={'bos_token': '<s>'}) == (start, ())
    assert ids(
        'chat',
        tokenizer_config={'bos_token': None, 'eos_token': '<|im_end|>'},
        generation_config={'bos_token_id': text, 'eos_token_id': [end, text]},
        config={'eos_token_id': start},
    ) == (text, (end,))
    assert ids('model', config={'bos_token_id': start, 'eos_token_id': end}) == (start, (end,))
    with pytest.raises(ConfigError, match=r"tokenizer\.json'.*bos_token '<x>' of tokenizer_config\.json is no token"):
        ids('wrong name', tokenizer_config={'bos_token': '<x>'})
    with pytest.raises(ConfigError, match='is 9999, which no token has'):
        ids('wrong id', config={'bos_token_id': 9999})


def test_an_end_of_text_that_its_file_calls_text_is_still_control(tmp_path):
    bpe = byte_level_bpe()
    bpe.add_tokens(['<end>', '<think>'])
    tok = tokenizer.load(write_json(tmp_path, bpe, tokenizer_config={'eos_token': '<end>'}))
    end, think = bpe.token_to_id('<end>'), bpe.token_to_id('<think>')
    assert tok.eos_ids == (end,) and end not in tok.encode('a<end>') and tok.decode(tok.encode('a<end>')) == 'a<end>'
    assert tok.encode('<think>') == [think] and tok.decode([think]) == '<think>'  # an ordinary one stays what it is
    assert tok.token_bytes[[end, think]].tolist() == [0, 7]


def test_a_tokenizer_that_normalises_says_so(tmp_path):
    bpe = byte_level_bpe()
    bpe.normalizer = tokenizers.normalizers.NFC()
    assert not tokenizer.load(write_json(tmp_path, bpe)).lossless


def test_padding_and_truncation_of_the_file_are_not_applied(tmp_path):
    bpe = byte_level_bpe()
    plain = bpe.encode(TEXTS[0]).ids
    bpe.enable_truncation(8)
    bpe.enable_padding(length=16)
    tok = tokenizer.load(write_json(tmp_path, bpe))
    assert tok.encode(TEXTS[0]) == plain and len(tok.encode('a')) == 1


def test_ids_without_a_token_stand_for_nothing(tmp_path):
    spec = json.loads(byte_level_bpe().to_str())
    spec['model']['vocab']['gap'] = 600
    (tmp_path / 'tokenizer.json').write_text(json.dumps(spec))
    tok = tokenizer.load(tmp_path)
    assert tok.vocab_size == 601 and tok.token_bytes[599] == 0 and tok.decode([599, 600]) == 'gap'


@pytest.mark.parametrize('prefix', [True, False])
def test_pieces_with_byte_fallback(tmp_path, prefix):
    keeps = {'normalization_rule_name': 'identity', 'remove_extra_whitespaces': False, 'add_dummy_prefix': prefix}
    source = tokenizer.SentencePieceTokenizer(sentencepiece_model(**keeps))
    source.export(tmp_path)
    tok = tokenizer.load(tmp_path / 'tokenizer.json')
    assert (tok.bos_id, tok.eos_ids, tok.prefix, tok.lossless) == (1, (2,), source.prefix, False)
    np.testing.assert_array_equal(tok.token_bytes, source.token_bytes)
    for text in cases(500):
        ids = tok.encode(text)
        assert ids == source.encode(text), repr(text)
        assert tok.decode(ids) == source.decode(ids) and tok.decode(ids, continues=True) == source.decode(
            ids, continues=True
        )


def test_a_tokenizer_that_makes_special_tokens_of_text_is_refused(tmp_path):
    pieces = [('<unk>', 0.0), ('<s>', 0.0), *((f'<0x{b:02X}>', -9.0) for b in range(256)), ('a', -1.0)]
    unigram = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, 0, byte_fallback=True))
    unigram.decoder = tokenizers.decoders.ByteFallback()
    unigram.add_special_tokens(['<unk>', '<s>'])
    with pytest.raises(ConfigError, match="text '<unk>' would become a special token"):
        tokenizer.load(write_json(tmp_path, unigram, tokenizer_config={'bos_token': '<s>'}))


@pytest.mark.parametrize('chat', [False, True])
def test_save_and_load(tmp_path, gpt2_like, chat):
    tok = gpt2_like
    if chat:
        beside = {
            'tokenizer_config': {'bos_token': None, 'eos_token': '<|im_end|>', 'chat_template': '{{ messages }}'},
            'generation_config': {'bos_token_id': 500, 'eos_token_id': [501, 502]},
        }
        special = ('<|endoftext|>', '<|im_end|>', '<|eot|>')
        tok = tokenizer.load(write_json(tmp_path / 'from', byte_level_bpe(special), **beside))
        assert (tok.bos_id, tok.eos_ids) == (500, (501, 502))
    tok.save(tmp_path / 'to')
    other = tokenizer.load(tmp_path / 'to')
    assert other.fingerprint == tok.fingerprint
    assert (other.bos_id, other.eos_ids, other.vocab_size) == (tok.bos_id, tok.eos_ids, tok.vocab_size)
    assert other.encode_batch(cases(100)) == tok.encode_batch(cases(100))
    assert other.chat_templates == tok.chat_templates == ({'default': '{{ messages }}'} if chat else {})
    if chat:
        assert tok.fingerprint != gpt2_like.fingerprint


def test_a_kind_that_loses_text_is_refused(tmp_path):
    words = tokenizers.Tokenizer(tokenizers.models.WordPiece({'[UNK]': 0, 'a': 1}, unk_token='[UNK]'))
    words.decoder = tokenizers.decoders.WordPiece()
    with pytest.raises(ConfigError, match=r"tokenizer\.json'.*WordPiece.*loses text.*byte-level BPE"):
        tokenizer.load(write_json(tmp_path / 'words', words))
    few = tokenizers.Tokenizer(tokenizers.models.BPE({'a': 0, '<|endoftext|>': 1}, []))
    few.pre_tokenizer, few.decoder = tokenizers.pre_tokenizers.ByteLevel(), tokenizers.decoders.ByteLevel()
    with pytest.raises(ConfigError, match='255 of the 256 bytes have no token'):
        tokenizer.load(write_json(tmp_path / 'few', few))
