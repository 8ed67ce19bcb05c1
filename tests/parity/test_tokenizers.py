"""An exported tokenizer gives the same ids in Hugging Face transformers."""

from awkward import AWKWARD, TEXTS, byte_level_bpe, cases, sentencepiece_model, unzipped
import pytest

from llm_jax import tokenizer
from llm_jax.config import schema
from llm_jax.config.schema import ConfigError

transformers = pytest.importorskip('transformers')

_KEEPS = {'normalization_rule_name': 'identity', 'remove_extra_whitespaces': False}


def check(tok: tokenizer.Tokenizer, directory, texts: list[str]):
    """Exports, and encodes and decodes there and here; returns what was loaded there."""
    tok.export(directory)
    there = transformers.AutoTokenizer.from_pretrained(directory, split_special_tokens=True)
    for text in texts:
        ids = tok.encode(text)
        assert there.encode(text, add_special_tokens=False) == ids, repr(text)
        assert there.decode(ids, clean_up_tokenization_spaces=False) == tok.decode(ids), repr(text)
    assert (there.bos_token_id, len(there)) == (tok.bos_id, tok.vocab_size)
    return there


def test_our_own(tmp_path):
    tok = tokenizer.train(schema.Tokenizer(vocab_size=1000), TEXTS, seed=0)
    there = check(tok, tmp_path, cases())
    assert (there.eos_token_id, there.pad_token_id, there.unk_token_id) == (2, 3, 0)
    assert there('def f').input_ids == [tok.bos_id, *tok.encode('def f')]
    assert there('def f', 'g').input_ids == [tok.bos_id, *tok.encode('def f'), tok.bos_id, *tok.encode('g')]


def test_our_own_on_real_text(tmp_path, shared_data):
    verdict = (shared_data / 'misc' / 'the-verdict.txt').read_text()
    plays = unzipped(shared_data / 'misc' / 'tinyshakespeare.txt.gz')
    tok = tokenizer.train(schema.Tokenizer(vocab_size=4096), [plays], seed=0)
    check(tok, tmp_path, [verdict, plays[:200_000], *AWKWARD])


@pytest.mark.parametrize('options', [{}, {'add_dummy_prefix': False}])
def test_foreign_sentencepiece(tmp_path, options):
    check(tokenizer.SentencePieceTokenizer(sentencepiece_model(**_KEEPS | options)), tmp_path, cases())


def test_llama2c(tmp_path, shared_data):
    stories = unzipped(shared_data / 'tinystories' / 'valid.jsonl.gz').split('\n')[:100]
    check(tokenizer.load(shared_data / 'checkpoint' / 'tok512.bin'), tmp_path, stories + cases(500))


def test_gpt2(tmp_path, shared_data):
    check(tokenizer.load(shared_data / 'tokenizer'), tmp_path, cases())


def test_tokenizer_json(tmp_path):
    byte_level_bpe().save(str(tmp_path / 'tokenizer.json'))
    there = check(tokenizer.load(tmp_path), tmp_path / 'exported', cases(500))
    again = tokenizer.load(tmp_path / 'exported')
    assert again.encode_batch(AWKWARD) == [there.encode(text, add_special_tokens=False) for text in AWKWARD]


def test_what_transformers_itself_saves_is_read(tmp_path):
    byte_level_bpe().save(str(tmp_path / 'tokenizer.json'))
    tok = tokenizer.load(tmp_path)
    check(tok, tmp_path / 'exported', []).save_pretrained(tmp_path / 'theirs')
    theirs = tokenizer.load(tmp_path / 'theirs')
    assert (theirs.bos_id, theirs.vocab_size) == (tok.bos_id, tok.vocab_size)
    assert theirs.encode_batch(cases(100)) == tok.encode_batch(cases(100))


@pytest.mark.parametrize(
    'options, what',
    [
        ({'model_type': 'unigram'} | _KEEPS, 'it is no BPE model'),
        ({}, 'it normalises text'),
        (_KEEPS | {'user_defined_symbols': ['<turn>']}, 'it has user-defined pieces'),
    ],
)
def test_what_cannot_be_equal_is_refused(tmp_path, options, what):
    tok = tokenizer.SentencePieceTokenizer(sentencepiece_model(**options))
    with pytest.raises(ConfigError, match=f'cannot be exported.*{what}'):
        tok.export(tmp_path)
    assert not list(tmp_path.iterdir())
