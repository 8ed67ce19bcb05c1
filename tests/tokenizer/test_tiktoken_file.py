"""Files of tiktoken encode as that library does, and are told from SentencePiece's by their content."""

import base64
import json
import random

from awkward import cases, random_text, sentencepiece_model, unzipped
import pytest

from llm_jax import tokenizer
from llm_jax.config.schema import ConfigError
from llm_jax.tokenizer import tiktoken_file

SOME = [chr(c) for c in (*range(0x250), 0x300, 0x5D0, 0x661, 0x4E2D, 0x3000, 0x2028, 0x85, 0x212A, 0x17F, 0x1F642)]
# As each project writes them for its own library.
_PIECES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
LLAMA3 = _PIECES + r'|\s*[\r\n]+|\s+(?!\S)|\s+'


def tiktoken_pattern(name):
    """The regular expression of an encoding in tiktoken's own code, whose ranks would have to be downloaded."""
    public = pytest.importorskip('tiktoken_ext.openai_public', reason='tiktoken is not installed')
    with pytest.MonkeyPatch.context() as patch:
        for reader in ('load_tiktoken_bpe', 'data_gym_to_mergeable_bpe_ranks'):
            patch.setattr(public, reader, lambda *_, **__: {})
        return public.ENCODING_CONSTRUCTORS[name]()['pat_str']


def small_ranks():
    """The bytes, and pieces of the awkward texts, in any order: also some that merging never makes."""
    rng = random.Random(0)
    found = {}
    for text in cases(200):
        data = text.encode()
        for _ in range(6):
            start = rng.randrange(len(data) + 1)
            found.setdefault(data[start : start + rng.randint(2, 6)])
    tokens = sorted(token for token in found if len(token) > 1)
    rng.shuffle(tokens)
    return {token: rank for rank, token in enumerate([*(bytes([b]) for b in range(256)), *tokens])}


def write(path, ranks):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b''.join(base64.b64encode(token) + b' %d\n' % rank for token, rank in ranks.items()))
    return path


def texts():
    rng = random.Random(1)
    runs = [c * n for c in ' \n\r\t=a' for n in (1, 2, 3, 7, 40)]
    mixed = [''.join(rng.choice(SOME) for _ in range(60)) for _ in range(300)]
    periodic = [''.join(rng.choice('ab') for _ in range(80)) for _ in range(100)]
    return cases(300) + runs + mixed + periodic + [random_text(rng) + end for end in (' ', ' \n ', '\n\n', "'LL")]


@pytest.mark.parametrize('name', ['gpt2', 'cl100k_base', 'o200k_base', 'llama3', 'qwen'])
def test_ids_are_those_of_tiktoken(tmp_path, name):
    tiktoken = pytest.importorskip('tiktoken', reason='it is a dependency of the tests alone, and not installed')
    ranks = small_ranks()
    pattern = {'llama3': LLAMA3, 'qwen': LLAMA3.replace('{1,3}', '')}.get(name) or tiktoken_pattern(name)
    reference = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    tok = tokenizer.load(write(tmp_path / f'{name}.tiktoken', ranks))
    assert tok.lossless
    for text, ids in zip(texts(), tok.encode_batch(texts()), strict=True):
        assert ids == reference.encode_ordinary(text), text
        assert tok.decode(ids) == text


def test_special_tokens_have_their_ids(tmp_path):
    ranks = small_ranks()
    model = tokenizer.load(write(tmp_path / 'meta' / 'tokenizer.model', ranks))
    first = len(ranks)
    assert (model.bos_id, model.eos_ids) == (first, (first + 1, first + 8, first + 9))
    assert model.vocab_size == first + 256
    assert not {*range(first, first + 256)} & set(model.encode('<|begin_of_text|><|eot_id|>'))
    assert model.decode([first, first + 6, *model.encode('a'), first + 9]) == 'a'
    model.save(tmp_path / 'saved')
    again = tokenizer.load(tmp_path / 'saved')
    assert (again.fingerprint, again.bos_id, again.eos_ids) == (model.fingerprint, model.bos_id, model.eos_ids)
    names = {t['content']: t['id'] - first for t in model._spec['added_tokens']}
    assert [names[f'<|{n}|>'] for n in ('finetune_right_pad_id', 'python_tag', 'reserved_special_token_247')] == [
        4,
        10,
        255,
    ]
    assert tokenizer.load(write(tmp_path / 'cl100k_base.tiktoken', ranks)).bos_id == 100257
    # An unknown name, but as many ranks as Qwen's.
    assert tiktoken_file.encoding_of('vocab.tiktoken', 151_643) is tiktoken_file.ENCODINGS['qwen']


def test_a_sentencepiece_model_stays_one(tmp_path):
    (tmp_path / 'tokenizer.model').write_bytes(sentencepiece_model())
    assert isinstance(tokenizer.load(tmp_path / 'tokenizer.model'), tokenizer.SentencePieceTokenizer)


def test_what_cannot_be_used_is_said(tmp_path):
    ranks = small_ranks()

    def message(name, data=None):
        path = write(tmp_path / name, ranks)
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(ConfigError) as error:
            tokenizer.load(path)
        assert '\n' not in str(error.value) and name in str(error.value)
        return str(error.value)

    assert 'call the file after its encoding' in message('mine.tiktoken')
    assert "did you mean 'cl100k_base'" in message('cl100k-base.tiktoken')
    assert "line 1 is b'not base64'" in message('gpt2.tiktoken', b'not base64\n')
    assert "line 2 is b'YWI='" in message('gpt2.tiktoken', b'YQ== 0\nYWI=\n')
    assert 'a token or a rank is there twice' in message('gpt2.tiktoken', b'YQ== 0\nYQ== 1\n')
    assert 'of the 256 bytes have no token' in message('gpt2.tiktoken', b'YQ== 0\nYg== 1\n')
    clash = b'YQ== 0\nYg== 50256\n'
    assert '<|endoftext|> of its encoding has id 50256, which is a token of the file' in message('gpt2.tiktoken', clash)


def test_gpt2_encodes_as_the_reference_of_tiktoken(shared_data, tmp_path):
    spelled = tiktoken_file.byte_alphabet()
    vocab = json.loads((shared_data / 'tokenizer' / 'gpt2_encoder.json').read_text())
    del vocab['<|endoftext|>']
    ranks = {bytes(spelled[c] for c in token): rank for token, rank in vocab.items()}
    tok = tokenizer.load(write(tmp_path / 'any.tiktoken', ranks))  # known by the number of its ranks
    assert (tok.bos_id, tok.vocab_size) == (50256, 50257)
    for line in unzipped(shared_data / 'tokenizer' / 'gpt2_encode_reference.jsonl.gz').splitlines():
        item = json.loads(line)
        assert tok.encode(item['text']) == item['ids']
