"""Repeated lines, against counting them in plain Python."""

from collections import defaultdict
import random
import re

import pytest

from llm_jax.config.schema import ConfigError
from llm_jax.corpus.dedup import EXCHANGES, Lines
from llm_jax.corpus.document import Document, Dropped
from llm_jax.corpus.exchange import run_in_memory

NOTICE = 'Sign in to your account to read more'


def documents(texts, kind='text'):
    return [Document(str(i), 's', '', text, kind) for i, text in enumerate(texts)]


def run(shards, **options):
    return [x for shard in run_in_memory(EXCHANGES['lines'](Lines(**options)), shards) for x in shard]


def test_a_line_of_many_documents_stays_in_the_first():
    own = [f'This is what only document number {i} says to its readers.' for i in range(6)]
    corpus = documents([f'{text}\n\n{NOTICE}\n\nThe end of number {i}.' for i, text in enumerate(own)])
    out = run([corpus[:2], corpus[2:]])
    assert out[0] == corpus[0]
    assert [x.text for x in out[1:]] == [f'{text}\n\nThe end of number {i}.' for i, text in enumerate(own)][1:]
    assert [x.text for x in run([corpus], keep='none')] == [
        f'{text}\n\nThe end of number {i}.' for i, text in enumerate(own)
    ]
    assert run([corpus[:5]]) == corpus[:5]


def test_case_spaces_and_punctuation_make_no_difference():
    wide = NOTICE.replace(' ', '  ')
    lines = [NOTICE, NOTICE.upper(), f'  {NOTICE}!', wide, f'“{NOTICE}”', f'- {NOTICE} -']
    corpus = documents([f'Own words of {i} here.\n{line}' for i, line in enumerate(lines)])
    assert [x.text for x in run([corpus], max_cut=1.0)][1:] == [f'Own words of {i} here.' for i in range(1, 6)]


def test_short_lines_and_code_stay():
    short = documents(['}\nimport os\nYes.\nEarly life and career.\n' + f'number {i}' for i in range(10)])
    assert run([short]) == short
    code = documents(['from a_long.module.name import something, other, third, fourth\n' * 2] * 10, kind='code')
    assert run([code]) == code
    assert any(isinstance(x, Dropped) for x in run([code], skip_kinds=()))


def test_the_same_line_within_one_document_is_not_counted():
    corpus = documents([f'{NOTICE}\n' * 10 + 'x', f'{NOTICE}\n' * 10 + 'y'])
    assert run([corpus]) == corpus


def test_what_is_mostly_repeated_goes():
    corpus = documents([f'{NOTICE}\nMore.'] * 7)
    out = run([corpus])
    assert out[0] == corpus[0]
    assert {(x.reason, x.detail) for x in out[1:]} == {('lines.mostly_repeated', '0.88 > 0.5')}


@pytest.mark.parametrize('keep', ['first', 'none'])
@pytest.mark.parametrize('shards', [1, 4])
def test_equals_counting(shards, keep):
    rng = random.Random(shards)
    pool = [' '.join(rng.choice('abcdefgh') for _ in range(rng.randrange(1, 9))) for _ in range(60)] + ['', ' ']
    corpus = documents(['\n'.join(rng.choice(pool) for _ in range(rng.randrange(9))) for _ in range(80)])
    having = defaultdict(list)
    for document in corpus:
        for line in dict.fromkeys(document.text.split('\n')):
            if len(line.split()) >= 4:
                having[line].append(document.id)
    size = -(-len(corpus) // shards)
    out = run([corpus[i : i + size] for i in range(0, len(corpus), size)],
              keep=keep, min_words=4, documents=3, max_cut=1.0)  # fmt: skip
    for document, got in zip(corpus, out, strict=True):
        cut = [k for k, ids in having.items() if len(ids) >= 3 and not (keep == 'first' and ids[0] == document.id)]
        expected = [line for line in document.text.split('\n') if line not in cut and line.strip()]
        assert [line for line in got.text.split('\n') if line.strip()] == expected
        assert not re.search(r'\n\s*\n\s*\n\s*\n', got.text) or re.search(r'\n\s*\n\s*\n', document.text)


@pytest.mark.parametrize('wrong', [{'documents': 1}, {'keep': 'last'}, {'max_cut': 50.0}])
def test_wrong_options(wrong):
    with pytest.raises(ConfigError, match=f'lines.{next(iter(wrong))} = '):
        EXCHANGES['lines'](Lines(**wrong))
