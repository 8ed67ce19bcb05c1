"""Exact duplicates: the first stays, however the corpus is cut into shards."""

import random

import pytest

from llm_jax.corpus.dedup import EXCHANGES, Exact, exact
from llm_jax.corpus.document import Document, Dropped
from llm_jax.corpus.exchange import run_in_memory


def documents(texts, kind='text'):
    return [Document(f's/{i}.txt', 's', '', text, kind) for i, text in enumerate(texts)]


def run(shards, **options):
    return run_in_memory(EXCHANGES['exact'](Exact(**options)), shards)


def test_first_stays_and_is_named():
    texts = ['One text.', 'another', 'ONE  text', '“One” text!', 'another one', 'Another']
    (out,) = run([documents(texts)])
    assert [type(x) is Dropped for x in out] == [False, False, True, True, False, True]
    assert {x.document.id: (x.reason, x.detail) for x in out if isinstance(x, Dropped)} == {
        's/2.txt': ('exact.duplicate', 'of s/0.txt'),
        's/3.txt': ('exact.duplicate', 'of s/0.txt'),
        's/5.txt': ('exact.duplicate', 'of s/1.txt'),
    }
    assert [x.text for x in out if isinstance(x, Document)] == ['One text.', 'another', 'another one']


def test_without_folding_only_the_same_characters_count():
    (out,) = run([documents(['One text', 'one text', 'One text'])], fold=False)
    assert [type(x) is Dropped for x in out] == [False, False, True]


def test_code_keeps_case_punctuation_and_indentation():
    texts = ['a = [b]\n', 'a = (b)\n', 'A = [b]\n', '  a = [b]\n', 'a = [b]  \n\n', '\na = [b]', 'a = [b]']
    (out,) = run([documents(texts, kind='code')])
    assert [type(x) is Dropped for x in out] == [False, False, False, False, True, True, True]


def test_nothing_but_signs():
    (out,) = run([documents(['', '...', '!!!', '', '...', ' '])])
    assert [type(x) is Dropped for x in out] == [False, False, False, True, True, False]


@pytest.mark.parametrize('cuts', [(0,), (3,), (1, 2, 50), tuple(range(0, 200, 7))])
def test_shards_make_no_difference(cuts):
    rng = random.Random(0)
    corpus = documents([rng.choice('abcdefgh') * rng.randrange(1, 12) for _ in range(200)])
    edges = [0, *cuts, len(corpus)]
    shards = [corpus[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    out = [x for shard in run(shards) for x in shard]
    first = {}
    for got, document in zip(out, corpus, strict=True):
        kept = first.setdefault(document.text, document)
        assert got == (document if kept is document else Dropped(document, 'exact.duplicate', f'of {kept.id}'))


def test_the_same_key_is_not_enough(monkeypatch):
    """Documents that share 64 bits but not the other 64 are different."""
    monkeypatch.setattr(exact, 'digest', lambda d, fold: b'sameeeee' + d.text[0].encode() * 8)
    (out,) = run([documents(['ba', 'ab', 'bc', 'ad', 'c'])])
    assert [getattr(x, 'detail', '') for x in out] == ['', '', 'of s/0.txt', 'of s/1.txt', '']


def test_long_names_are_shortened_in_the_middle():
    name = 'source/' + 'é' * 200 + '#17'
    same = [Document(name, 's', '', 'x y', 'text'), Document('b', 's', '', 'x y', 'text')]
    (out,) = run([same])
    assert out[1].detail.startswith('of source/éé') and out[1].detail.endswith('é#17') and '...' in out[1].detail
