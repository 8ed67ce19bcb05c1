from awkward import sentencepiece_model
import jax
import numpy as np
import pytest
from tiny import LLAMA, random_params, tiny_config

from llm_jax import tokenizer as tokenizer_lib
from llm_jax.config import schema
from llm_jax.generate import beam, engine, text
from llm_jax.generate.beam import Beams
from llm_jax.generate.settings import Sampler
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

    def blocks(model, params, prompts, *, stop_ids, vocab_size, watchers):
        stops.append(stop_ids)
        ids = tok.encode('the parser')
        for watcher in watchers:
            assert not any(map(watcher.push, ids))
        assert prompts == [[tok.bos_id, *tok.encode('print')], [tok.bos_id]] and vocab_size == tok.vocab_size
        return iter([[ids[:1], ids[:1]], [ids[1:], ids[1:]]])

    monkeypatch.setattr(engine, 'stream', blocks)
    joined = [''.join(new for new, _ in row) for row in zip(*text.stream(None, None, tok, ['print', '']), strict=True)]
    assert joined == text.complete(None, None, tok, ['print', '']) == [' the parser', 'the parser']
    assert stops == [[tok.bos_id, *tok.eos_ids]] * 2 == [[1, 2]] * 2


def test_mistakes_come_before_the_first_step(tokenizer, trained):
    with pytest.raises(schema.ConfigError, match='prompt 0: .*past the context of 64'):
        text.stream(*trained, tokenizer, ['def '], max_new_tokens=1000)


def test_a_window_that_slides_sees_the_last_tokens_that_fit(tokenizer, trained):
    """As the full forward pass over the last max_seq_len tokens says; a row does not depend on the others."""
    model, params = trained
    most, options = model.config.max_seq_len, {'sampler': Sampler(0.0), 'vocab_size': 300}
    prompts = [[tokenizer.bos_id, *tokenizer.encode('def ' * 12)], [tokenizer.bos_id] * (most + 9)]
    rows = engine.generate(model, params, prompts, max_new_tokens=20, slide=True, **options)
    forward = jax.jit(lambda ids: model.apply({'params': params}, ids))
    for prompt, new in zip(prompts, rows, strict=True):
        assert len(new) == 20
        row = list(prompt)
        for token in new:
            seen = row[-most:]
            logits = forward(np.asarray([seen + [0] * (most - len(seen))]))[0, len(seen) - 1, :300]
            assert token == int(logits.argmax())
            row.append(token)
    drawn = {'max_new_tokens': 70, 'seed': 3, 'vocab_size': 300, 'sampler': Sampler(1.0), 'stop_ids': [5, 6, 7]}
    short = [[1, 9], [1, 2, 3, 4], *prompts]
    together = engine.generate(model, params, short, slide=True, **drawn)
    assert together[0] == engine.generate(model, params, short[:1], slide=True, **drawn)[0]
    assert together[0][:60] == engine.generate(model, params, short[:1], **drawn | {'max_new_tokens': 60})[0]


def test_beams_are_texts_with_their_scores(tokenizer, trained):
    beams = Beams(3, n_return=2)
    found = text.search(*trained, tokenizer, ['def ', ''], max_new_tokens=12, beams=beams)
    for prompt, row in zip(['def ', ''], found, strict=True):
        ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
        limits = {'stop_ids': [tokenizer.bos_id, *tokenizer.eos_ids], 'vocab_size': 300}
        (alone,) = beam.search(*trained, [ids], max_new_tokens=12, beams=beams, **limits)
        assert [new for new, _ in row] == [tokenizer.decode(one.tokens, continues=bool(prompt)) for one in alone]
        assert np.allclose([score for _, score in row], [one.score for one in alone], rtol=1e-4)
        assert len(row) == 2 and row[0][1] >= row[1][1]


def test_room_is_what_the_longest_prompt_leaves(tokenizer, trained):
    assert text.room(trained[0], tokenizer, ['', 'def ']) == 64 - 1 - len(tokenizer.encode('def '))
