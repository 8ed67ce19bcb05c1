from awkward import sentencepiece_model
import pytest
from tiny import LLAMA, random_params, tiny_config

from llm_jax import tokenizer as tokenizer_lib
from llm_jax.config import schema
from llm_jax.generate import engine, text
from llm_jax.generate.samplers import Sampler
from llm_jax.nn.transformer import build

PROMPTS = ['def ', '', 'naïve ▁ \U0001f642\n', 'def ']


@pytest.fixture(scope='module')
def tokenizer():
    words = ' '.join(f'{a}{b} naïve {b}{a}\n' for a in 'abcdefgh' for b in 'klmnop')
    return tokenizer_lib.train(schema.Tokenizer(vocab_size=300), [words], seed=0)


@pytest.fixture(scope='module')
def trained(tokenizer):
    # Twenty rows more than the tokenizer has tokens.
    config = tiny_config(**(LLAMA | {'vocab_size': 320}), data__seq_len=64)
    model = build(config.model, vocab_size=tokenizer.vocab_size, seq_len=64)
    return model, random_params(model)


OPTIONS = {'max_new_tokens': 30, 'sampler': Sampler(3.0), 'seed': 1}


def test_prompts_begin_with_bos_and_bos_ends_them(tokenizer, trained):
    prompts = [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in PROMPTS]
    endless = engine.generate(*trained, prompts, vocab_size=300, **OPTIONS)
    expected = []
    for row in endless:
        end = row.index(tokenizer.bos_id) if tokenizer.bos_id in row else len(row)
        expected.append(tokenizer.decode(row[:end]))
    assert text.complete(*trained, tokenizer, PROMPTS, **OPTIONS) == expected
    assert expected[0] != expected[3]


def test_stream_joined_is_the_completion(tokenizer, trained):
    texts, counts = [''] * 4, [0] * 4
    for block in text.stream(*trained, tokenizer, PROMPTS, **OPTIONS):
        for i, (new, tokens) in enumerate(block):
            texts[i] += new
            counts[i] += tokens
    assert texts == text.complete(*trained, tokenizer, PROMPTS, **OPTIONS)
    assert all(0 < n <= 30 for n in counts)


def test_a_continuation_keeps_the_space_that_a_document_does_not_begin_with(monkeypatch):
    """Of tokenizers that put a space before every text."""
    keeps = {'normalization_rule_name': 'identity', 'remove_extra_whitespaces': False}
    tok = tokenizer_lib.SentencePieceTokenizer(sentencepiece_model(**keeps))
    stops = []

    def blocks(model, params, prompts, *, stop_ids, vocab_size):
        stops.append(stop_ids)
        ids = tok.encode('the parser')
        assert prompts == [[tok.bos_id, *tok.encode('print')], [tok.bos_id]] and vocab_size == tok.vocab_size
        return iter([[ids[:1], ids[:1]], [ids[1:], ids[1:]]])

    monkeypatch.setattr(engine, 'stream', blocks)
    joined = [''.join(new for new, _ in row) for row in zip(*text.stream(None, None, tok, ['print', '']), strict=True)]
    assert joined == text.complete(None, None, tok, ['print', '']) == [' the parser', 'the parser']
    assert stops == [[tok.bos_id, *tok.eos_ids]] * 2 == [[1, 2]] * 2


def test_mistakes_come_before_the_first_step(tokenizer, trained):
    with pytest.raises(schema.ConfigError, match='past model.max_seq_len = 64'):
        text.stream(*trained, tokenizer, ['def '], max_new_tokens=1000)
