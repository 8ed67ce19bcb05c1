"""Every kind of tokenizer is known from its files, and what is wrong with them is said."""

import hashlib
import json
import struct

from awkward import byte_level_bpe, cases, sentencepiece_model, unzipped, write_pair
import pytest

from llm_jax import tokenizer
from llm_jax.config import schema
from llm_jax.config.schema import ConfigError
from llm_jax.tokenizer import llama2c

NAMES = [('vocab.json', 'merges.txt'), ('encoder.json', 'vocab.bpe'), ('gpt2_encoder.json', 'gpt2_vocab.bpe')]


@pytest.mark.parametrize('names', NAMES)
def test_a_pair_is_found_by_its_directory_and_by_either_file(tmp_path, names):
    write_pair(tmp_path, *names)
    found = [tokenizer.load(path) for path in (tmp_path, *(str(tmp_path / name) for name in names))]
    assert len({tok.fingerprint for tok in found}) == 1 and isinstance(found[0], tokenizer.JsonTokenizer)
    assert found[0].encode_batch(cases(100)) == [e.ids for e in encode_ordinary(cases(100))]


def encode_ordinary(texts):
    bpe = byte_level_bpe()
    bpe.encode_special_tokens = True
    return bpe.encode_batch(texts)


def test_the_most_telling_file_of_a_directory_is_taken(tmp_path):
    write_pair(tmp_path, 'vocab.json', 'merges.txt')
    (tmp_path / 'tokenizer.model').write_bytes(sentencepiece_model())
    assert isinstance(tokenizer.load(tmp_path), tokenizer.SentencePieceTokenizer)
    byte_level_bpe(('<|endoftext|>', '<extra>')).save(str(tmp_path / 'tokenizer.json'))
    assert tokenizer.load(tmp_path).vocab_size == 502


def test_broken_files(tmp_path):
    def message(path):
        with pytest.raises(ConfigError) as error:
            tokenizer.load(path)
        assert str(path) in str(error.value) and '\n' not in str(error.value)
        return str(error.value)

    def pair(name):
        write_pair(tmp_path / name, 'vocab.json', 'merges.txt')
        return tmp_path / name

    assert 'no such file; name tokenizer.json, a SentencePiece' in message(tmp_path / 'none')
    (tmp_path / 'empty').mkdir()
    assert 'no such file in it; it needs tokenizer.json' in message(tmp_path / 'empty')

    half = pair('half')
    (half / 'merges.txt').unlink()
    assert 'merges.txt is missing beside it' in message(half)

    two = pair('two')
    write_pair(two, 'b_vocab.json', 'b_merges.txt')
    assert 'it holds several (b_vocab.json, vocab.json); name one' in message(two)
    assert tokenizer.load(two / 'b_merges.txt').vocab_size == 501

    broken = pair('broken')
    (broken / 'vocab.json').write_text('{"a": 1')
    assert 'vocab.json is broken JSON: Expecting' in message(broken)
    (broken / 'vocab.json').write_text('[]')
    assert 'vocab.json holds no JSON object' in message(broken)
    (broken / 'vocab.json').write_bytes(b'\xff\xfe')
    assert 'vocab.json is no UTF-8 text' in message(broken)
    (broken / 'vocab.json').write_text('{"a": 1}')
    assert "vocab.json has no '<|endoftext|>'" in message(broken)
    (broken / 'vocab.json').write_text('{"a": 1, "<|endoftext|>": 2}')
    assert 'do not fit together' in message(broken)
    (broken / 'merges.txt').write_text('#version: 0.2\na b c\n')
    assert "line 2 of merges.txt is 'a b c', not two tokens" in message(broken)

    other = pair('other')
    (other / 'tokenizer_config.json').write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    assert 'names a Qwen2Tokenizer' in message(other)

    single = tmp_path / 'tokenizer.json'
    for text, what in (('{', 'broken JSON'), ('{}', 'no model with a vocab'), ('[1]', 'no model with a vocab')):
        single.write_text(text)
        assert what in message(single)
    spec = json.loads(byte_level_bpe().to_str())
    single.write_text(json.dumps(spec | {'pre_tokenizer': {'type': 'Unheard'}}))
    assert 'not a tokenizer.json that tokenizers' in message(single)
    single.write_text(json.dumps(spec))
    (tmp_path / 'tokenizer_config.json').write_text('{')
    assert 'tokenizer_config.json is broken JSON' in message(single)
    byte_level_bpe(()).save(str(tmp_path / 'empty' / 'tokenizer.json'))
    assert 'put a tokenizer_config.json with "bos_token" beside it' in message(tmp_path / 'empty' / 'tokenizer.json')


def test_an_unknown_kind_to_train_is_an_error():
    with pytest.raises(ConfigError, match="data.tokenizer.kind = 'sentencpiece' is unknown.*did you mean"):
        tokenizer.train(schema.Tokenizer(kind='sentencpiece'), ['a'], seed=0)


# --- llama2.c ----------------------------------------------------------------------------


def llama2c_file(pieces: list[str]) -> bytes:
    names = ['<unk>', '\n<s>\n', '\n</s>\n', *(f'<0x{b:02X}>' for b in range(256)), *pieces]
    encoded = [name.encode() for name in names]
    tokens = (struct.pack('<fi', -i, len(name)) + name for i, name in enumerate(encoded))
    return struct.pack('<i', max(map(len, encoded))) + b''.join(tokens)


def test_llama2c_merges_the_best_score_first(tmp_path):
    (tmp_path / 'tokenizer.bin').write_bytes(llama2c_file(['ab', 'bc', ' a', 'a', 'b', 'c', ' ', 'é']))
    tok = tokenizer.load(tmp_path)
    ids = {name: 259 + i for i, name in enumerate(['ab', 'bc', ' a', 'a', 'b', 'c', ' ', 'é'])}
    spelled = lambda text: [ids[piece] for piece in text]
    assert (tok.vocab_size, tok.bos_id, tok.eos_ids, tok.prefix, tok.lossless) == (267, 1, (2,), b' ', False)
    assert tok.encode('abc') == spelled([' ', 'ab', 'c'])
    assert tok.encode('a bc') == spelled([' a', ' ', 'bc'])
    assert tok.encode('é\n') == [*spelled([' ', 'é']), 3 + ord('\n')] and tok.encode('') == []
    assert tok.token_bytes[[0, 1, 2, 3, ids[' a'], ids['é']]].tolist() == [0, 0, 0, 1, 2, 2]
    for text in cases(300):
        if '\u2581' not in text:
            assert tok.decode([1, *tok.encode(text)]) == text
    tok.save(tmp_path / 'saved')
    assert tokenizer.load(tmp_path / 'saved').fingerprint == tok.fingerprint


def test_llama2c_gives_the_reference_ids(shared_data):
    tok = tokenizer.load(shared_data / 'checkpoint')
    reference = json.loads(unzipped(shared_data / 'checkpoint' / 'stories260K_reference.json.gz'))
    for prompt in reference['prompts']:
        assert [tok.bos_id, *tok.encode(prompt['text'])] == prompt['tokens_with_bos']
        assert tok.decode(prompt['tokens_with_bos']) == prompt['text']
    lines = unzipped(shared_data / 'tinystories' / 'valid.jsonl.gz').split('\n')
    stories = reference['tinystories_valid_first300']['stories']
    assert len(stories) == 300
    for line, story in zip(lines, stories, strict=False):
        text = json.loads(line)['text']
        assert hashlib.sha256(text.encode()).hexdigest().startswith(story['sha256_text'])
        ids = [tok.bos_id, *tok.encode(text)]
        assert (len(ids), ids[:16], tok.decode(ids)) == (story['n_tokens'], story['first_tokens'], text)


@pytest.mark.parametrize(
    'data', [b'', b'\7\0\0\0', llama2c_file([])[:-1], llama2c_file([]) + b'\0', b'\7\0\0\0' + b'\xff' * 9]
)
def test_a_broken_file_of_llama2c(tmp_path, data):
    (tmp_path / 'tok.bin').write_bytes(data)
    with pytest.raises(ConfigError, match=r"tok\.bin'.*not a tokenizer of llama2\.c.*copy the file again"):
        tokenizer.load(tmp_path)
    with pytest.raises(ConfigError):
        llama2c.to_sentencepiece(data)
