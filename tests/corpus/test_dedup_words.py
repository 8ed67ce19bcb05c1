"""Words of many texts at once, against words that are found character by character."""

import random
import unicodedata

import awkward
import numpy as np
import pytest

from llm_jax.corpus.dedup import words
from llm_jax.corpus.document import Document

_OPERATORS = '*/%_&@#\\'


def plain_words(text: str) -> list[tuple[int, int, str]]:
    """(start, stop, folded word) by the definition, without any array."""
    out, word, start = [], '', 0
    for i, character in enumerate(text + ' '):
        category = unicodedata.category(character)
        counts = category[0] in 'LMN' or category in ('Sm', 'Sc') or character in _OPERATORS
        alone = counts and any(first <= ord(character) < stop for first, stop in words._UNSPACED)
        if word and (not counts or alone):
            out.append((start, i, word))
            word = ''
        if alone:
            out.append((i, i + 1, character.lower()[0]))
        elif counts:
            start = i if not word else start
            word += character.lower()[0]
    return out


def test_words_and_places():
    texts = [*awkward.cases(300), 'Don’t stop', 'สวัสดี ab', 'x中文y', '\U0001f600\U00020000a', '\ud800 lone']
    texts = [text for text in texts if all(ord(c) < 0x2A6E0 or ord(c) > 0x32400 for c in text)]  # all of it assigned
    for group in (texts, *([text] for text in texts)):
        found = words.find_words(group)
        begin, hashes = 0, {}
        for t, text in enumerate(group):
            span = slice(found.offsets[t], found.offsets[t + 1])
            places = zip(found.starts[span].tolist(), found.stops[span].tolist(), strict=True)
            expected = plain_words(text)
            assert [(a - begin, b - begin) for a, b in places] == [(a, b) for a, b, _ in expected], repr(text)
            for (_, _, word), value in zip(expected, found.hashes[span].tolist(), strict=True):
                assert hashes.setdefault(word, value) == value
            begin += len(text) + 1
        assert len(set(hashes.values())) == len(hashes)


def test_hash_of_a_word_is_the_same_wherever_it_stands():
    alone = words.find_words(['zebra']).hashes[0]
    for before in (1, 100, 4095, 4096, 4097, 200_000):
        assert words.find_words(['x' * before + ' Zebra!']).hashes[-1] == alone


def test_hashes_of_spans_tell_order_content_and_length():
    values = words.mix(np.array([1, 2, 3, 1, 2, 3, 2, 1, 1], np.uint64))
    spans = {(a, b): tuple(values[a:b]) for a in range(9) for b in range(a + 1, 10)}
    starts, stops = np.array(list(spans)).T
    hashes = words.hash_spans(values, starts, stops).tolist()
    assert len({(content, value) for content, value in zip(spans.values(), hashes, strict=True)}) == len(set(hashes))
    assert len(set(hashes)) == len(set(spans.values()))


def test_no_collisions_among_many_runs():
    rng = np.random.default_rng(0)
    values = words.mix(rng.integers(0, 50, 200_000).astype(np.uint64))
    starts = np.arange(len(values) - 12)
    content = np.lib.stride_tricks.sliding_window_view(values, 12)[:-1]
    assert len(np.unique(words.hash_spans(values, starts, starts + 12))) == len(np.unique(content, axis=0))


@pytest.mark.parametrize(
    ('one', 'other', 'same'),
    [
        ('Hello, World!', 'hello   world', True),
        ('“It’s — well — fine…”\n', '"It\'s - well - fine..."', True),
        ('What is 3 * 5?', 'What is 3 / 5?', False),
        ('What is 3 - 5?', 'What is 3 + 5?', False),
        ('3.14', '314', False),
        ('a b', 'ab', False),
        ('...', '!!!', False),
        ('', ' ', False),
        ('中文', '中 文', False),
        ('.start', 'start.', True),
    ],
)
def test_folded(one, other, same):
    assert (words.folded(one) == words.folded(other)) == same


def test_folded_ignores_what_stands_around():
    for text in awkward.cases(300):
        if plain_words(text):
            assert words.folded(text) == words.folded(f' {text}. '), repr(text)


def test_blocks_hold_every_document_once(monkeypatch):
    monkeypatch.setattr(words, '_BLOCK', 50)
    rng = random.Random(0)
    for count in (0, 1, 30):
        documents = [Document(str(i), 's', '', 'x' * rng.randrange(90), 'text') for i in range(count)]
        blocks = list(words.in_blocks(documents))
        assert [text for _, texts in blocks for text in texts] == [d.text for d in documents]
        assert [first for first, _ in blocks] == np.cumsum([0, *(len(t) for _, t in blocks)])[:-1].tolist()
