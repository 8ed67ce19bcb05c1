"""Repeated passages, against looking at every window in plain Python."""

import random

import numpy as np
import pytest

from llm_jax.config.schema import ConfigError
from llm_jax.corpus.dedup import EXCHANGES, Substrings, substrings, words
from llm_jax.corpus.document import Document, Dropped
from llm_jax.corpus.exchange import run_in_memory


def documents(texts, kind='text'):
    return [Document(str(i), 's', '', text, kind) for i, text in enumerate(texts)]


def run(corpus, shards=1, **options):
    size = max(1, -(-len(corpus) // shards))
    parts = [corpus[i : i + size] for i in range(0, len(corpus), size)]
    return [x for part in run_in_memory(EXCHANGES['substrings'](Substrings(**options)), parts) for x in part]


def what_stays(corpus, length):
    """Words left of each document of plain words, by the definition."""
    first, out = {}, []
    for i, document in enumerate(corpus):
        tokens = document.text.split()
        gone = [False] * len(tokens)
        for start in range(len(tokens) - length + 1):
            where, place = first.setdefault(tuple(tokens[start : start + length]), (i, start))
            if (where, place) != (i, start):
                begin = max(start, place + length) if where == i else start
                gone[begin : start + length] = [True] * (start + length - begin)
        out.append([token for token, g in zip(tokens, gone, strict=True) if not g])
    return out


@pytest.mark.parametrize('length', [2, 3, 5, 8, 20, 50])
def test_equals_every_window(length):
    rng = random.Random(length)
    for _ in range(60):
        vocabulary = rng.choice([1, 2, 3, 5, 50])
        word = lambda v=vocabulary: str(rng.randrange(v))
        pool = [[word() for _ in range(rng.randrange(1, 3 * length + 20))] for _ in range(4)]
        texts = []
        for _ in range(rng.randrange(1, 8)):
            tokens = []
            for _ in range(rng.randrange(4)):
                passage = rng.choice(pool)
                begin = rng.randrange(len(passage))
                tokens += passage[begin : begin + rng.randrange(len(passage))] + [word()] * rng.randrange(3)
            texts.append(' '.join(tokens))
        corpus = documents(texts)
        out = run(corpus, shards=rng.randrange(1, 4), length=length, min_words=0)
        assert [x.text.split() for x in out] == what_stays(corpus, length)


def test_one_shared_passage_of_exactly_the_length():
    rng = random.Random(0)
    word = lambda: f'w{rng.randrange(10**9)}'
    for shared in (49, 50, 51, 200):
        passage = ' '.join(word() for _ in range(shared))
        around = [' '.join(word() for _ in range(rng.randrange(60, 300))) for _ in range(4)]
        corpus = documents([f'{around[0]} {passage} {around[1]}', f'{around[2]} {passage} {around[3]}'])
        expected = f'{around[2]} {around[3]}' if shared >= 50 else corpus[1].text
        assert [x.text for x in run(corpus, shards=2)] == [corpus[0].text, expected]


def test_case_and_punctuation_make_no_difference_and_go_with_the_passage():
    passage = ' '.join(f'word{i}' for i in range(60))
    before, after = ' '.join(f'b{i}' for i in range(60)), ' '.join(f'a{i}' for i in range(60))
    other = f'{before}: \n\n“({passage.upper().replace(" ", ", ")}).”  ({after}).'
    assert run(documents([passage, other]))[1].text == f'{before}:\n\n({after}).'


@pytest.mark.parametrize(
    ('text', 'cut', 'expected'),
    [
        ('a b c d e', (1, 3), 'a d e'),
        ('a b\nc d e', (1, 3), 'a\nd e'),
        ('a b\n \nc d e', (1, 3), 'a\n\nd e'),
        ('a. B c! D e.', (1, 3), 'a. D e.'),
        ('"a b" (c d) e', (0, 2), '(c d) e'),
        ('a "b c" d', (1, 3), 'a d'),
        ('a b c.', (1, 3), 'a'),
        ('a (b', (1, 2), 'a'),
        ('one-two three-four', (1, 3), 'one- four'),
        ('一二三四五', (1, 3), '一四五'),
        ('一。二三。四', (1, 3), '一。四'),
        ('  a b', (1, 2), '  a'),
        ('a b', (0, 2), ''),
    ],
)
def test_cuts_are_clean(text, cut, expected):
    begins, ends = (np.array([x]) for x in cut)
    assert substrings.cut_words(text, words.find_words([text]), begins, ends) == expected


def test_several_cuts():
    text = 'a b c d. "E f" g h'
    found = words.find_words([text])
    assert substrings.cut_words(text, found, np.array([0, 2, 4]), np.array([1, 3, 6])) == 'b d. g h'


def test_what_is_left_too_short_goes():
    passage = ' '.join(f'word{i}' for i in range(60))
    out = run(documents([passage, passage + ' and three more', 'short']))
    assert isinstance(out[1], Dropped) and out[1].reason == 'substrings.mostly_repeated'
    assert out[1].detail == '3 of 63 words left < 50'
    assert [x.text for x in out if isinstance(x, Document)] == [passage, 'short']


def test_code_stays():
    corpus = documents([' '.join(f'word{i}' for i in range(60))] * 3, kind='code')
    assert run(corpus) == corpus


def test_few_prints():
    """The index takes about 1 byte a word, not the 16 of a record for every window."""
    rng = random.Random(0)
    corpus = documents([' '.join(str(rng.randrange(10**6)) for _ in range(50_000))])
    prints = EXCHANGES['substrings'](Substrings()).rounds[0].emit(0, corpus, None)
    assert 0.9 < prints.nbytes / 50_000 < 1.1


def test_wrong_options():
    with pytest.raises(ConfigError, match='substrings.length = 1'):
        EXCHANGES['substrings'](Substrings(length=1))
