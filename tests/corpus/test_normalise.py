"""The normal form of text: what changes, what must not, and that a second run changes nothing."""

import gzip
import json
import random
import unicodedata

import awkward
import pytest

from llm_jax.corpus import normalise
from llm_jax.corpus.document import Document, Dropped


def document(text: str, kind: str = 'text', title: str = '') -> Document:
    return Document(id='a', source='s', where='w', text=text, kind=kind, title=title)


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('Itâ€™s', 'It’s'),
        ('â€œHello,â€ he said. â€œBye!â€', '“Hello,” he said. “Bye!”'),
        ('wait â€” no â€“ yesâ€¦', 'wait — no – yes…'),
        ('SÃ£o Paulo, cafÃ©, PaweÅ\x82', 'São Paulo, café, Paweł'),
        ('Ã¢â‚¬â„¢', '’'),  # twice
        ('â\x80\x94 Functions', '— Functions'),
        ('ðŸ˜€ WireGuardÂ® â†’', '😀 WireGuard® →'),
        ('Ð¿Ñ€Ð¸Ð²ÐµÑ‚', 'привет'),
        ('Guffey\x92s \x93Review\x94\x85', 'Guffey’s “Review”…'),
    ],
)
def test_mojibake_is_repaired(text, expected):
    assert normalise.prose(text) == expected


@pytest.mark.parametrize(
    'text',
    [
        'naïve café', '‘café’” he said', '«“été”»', 'BEYONCÉ” sang', 'CAFÉ®', 'VOILÀ»', 'É™', 'AMANHÃ” e', 'SÃO PAULO',
        '„LÅ“', 'Ångström', 'he typed "Ã¤" in', '¡Hola! ¿Qué?', '5 € für Öl', 'x² ½ ﬁ ①', 'Český Å',
        '中文，日本語　とか',
        'می‌خواهم', '👩‍👩‍👧‍👦', 'नमस्ते', 'ភាសា\u200bខ្មែរ', 'שלום\u200f (x)', 'â',
    ],
)  # fmt: skip
def test_right_text_stays(text):
    assert normalise.prose(text) == unicodedata.normalize('NFC', text)


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('a\r\nb\rc\x0cd\u2028e', 'a\nb\nc\nd\ne'),
        ('\ufeffa\u200bb\x00c\x07\x7f\u2060d\ufffe', 'abcd'),
        ('\x1b[31mred\x1b[0m', 'red'),
        ('exam\xadple, ex\xad\nample', 'example, example'),
        ('a\u200e b\u202ac', 'a bc'),
        ('a\xa0b\u2003c\u3000d', 'a b c\u3000d'),
        ('a  b\t\tc   ', 'a b c'),
        ('\n\n  a\n\n\n\n\nb\n\n', '  a\n\nb'),
        (' - a  b\n  - c', ' - a b\n  - c'),
        ('def f():\n    x  = 1\n\ty  = 2', 'def f():\n    x  = 1\n\ty  = 2'),
        ('a  b\n```\nx  =  1\n\n\n\ny\n```\nc  d', 'a b\n```\nx  =  1\n\n\n\ny\n```\nc d'),
        ('e\u0301 e\u200b\u0301', 'é é'),
        ('\ud83d\ude00 \ud83d', '😀 \ufffd'),
        ('', ''), (' \n\t\n', ''),
    ],
)  # fmt: skip
def test_white_space_and_junk(text, expected):
    assert normalise.prose(text) == expected


def test_blank_lines_are_an_option():
    assert normalise.prose('a\n\n\n\nb', normalise.Options(max_blank_lines=2)) == 'a\n\n\nb'
    assert normalise.prose('Itâ€™s', normalise.Options(mojibake=False)) == 'Itâ€™s'


def test_a_second_run_changes_nothing():
    rng = random.Random(1)
    parts = [
        'Ã',
        '©',
        '\xad',
        'â',
        '€',
        '™',
        '\u200b',
        '\n',
        ' ',
        '\t',
        '```',
        '\r',
        'e',
        '\u0301',
        '\xa0',
        '\x85',
        '-',
        'x',
    ]
    mixtures = [''.join(rng.choice(parts) for _ in range(rng.randrange(30))) for _ in range(20_000)]
    for text in awkward.cases() + mixtures:
        once = normalise.prose(text)
        assert normalise.prose(once) == once
        assert unicodedata.is_normalized('NFC', once)
        once.encode()
        assert normalise.code(normalise.code(text)) == normalise.code(text)


def test_code_keeps_all_but_newlines_marks_and_nuls():
    text = '\ufeffx  =  "Itâ€™s e\u0301"\r\n\t\ty\x0c = 1   \r\n\n\n\n\0'
    assert normalise.code(text) == 'x  =  "Itâ€™s e\u0301"\n\t\ty\x0c = 1   \n\n\n\n'
    for text in awkward.TEXTS:
        text = text.replace('\r\n', '\n')
        assert normalise.code(text) == text


def test_stage():
    stage = normalise.make(normalise.Options())
    assert stage(document('a  b', title='T\n  Itâ€™s')) == document('a b', title='T It’s')
    same = document('a b', title='T')
    assert stage(same) is same
    assert stage(document('a  b', kind='code')).text == 'a  b'
    dropped = stage(document(' \u200b\n'))
    assert isinstance(dropped, Dropped) and dropped.reason == 'normalise.empty'


def test_stories_are_repaired_and_nothing_else_changes(shared_data):
    repaired = 0
    for name in ('train', 'valid'):
        with gzip.open(shared_data / f'tinystories/{name}.jsonl.gz', 'rt', encoding='utf-8') as file:
            for line in file:
                text = json.loads(line)['text']
                out = normalise.repaired(text)
                repaired += out != text
                if 'â' not in text:
                    assert out == text
                assert 'â' not in out and '€' not in out
    assert repaired >= 60


@pytest.mark.parametrize('name', ['udhr_articles_1_20', 'zhwiki_sample', 'kowiki_sample'])
def test_right_text_of_all_scripts_is_not_repaired(shared_data, name):
    with gzip.open(shared_data / f'multilingual/{name}.jsonl.gz', 'rt', encoding='utf-8') as file:
        for line in file:
            text = json.loads(line)['text']
            assert normalise.repaired(text) == text
            letters = lambda s: [c for c in unicodedata.normalize('NFC', s) if c.isalnum()]
            assert letters(normalise.prose(text)) == letters(text.replace('\u200b', ''))
