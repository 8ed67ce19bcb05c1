"""Tokens of training rows are coloured by their weights."""

import numpy as np

from llm_jax import tokenizer
from llm_jax.config import schema
from llm_jax.report.tokens import coloured


def test_each_token_has_the_colour_of_its_weight():
    texts = iter(['one two three four five six'] * 20)
    tok = tokenizer.train(schema.Tokenizer(vocab_size=290, reserved=('<|end|>',)), texts, 0)
    ids = [*tok.encode('one two'), tok.special['<|end|>']]
    weights = np.ones(len(ids))
    weights[0], weights[-1] = 0, 2
    text = coloured(np.array(ids), weights, tok)
    assert text.plain.endswith('<|end|>|')
    assert [str(span.style) for span in text.spans[::2]] == ['dim', *['green'] * (len(ids) - 2), 'bold magenta']
