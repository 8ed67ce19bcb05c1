"""The language of texts: paragraphs of many languages, pages in two, and what is no language."""

import gzip
import json
import random

import pytest

from llm_jax.config.schema import ConfigError
from llm_jax.corpus.document import Document, Dropped
from llm_jax.corpus.filter import language

# Translations in the script and variety that most people write, by their name in the UDHR collection.
TRANSLATIONS = (
    'arb ben bul cat ces cmn_hans cmn_hant dan deu_1996 ell_monotonic eng est fin fra heb hin hun ind ita jpn kor lav '
    'lit nld nob pes_1 pol por_BR por_PT ron_2006 rus slk slv spa srp_cyrl swe tam tel tha tur ukr vie'
)
CODES = {'nb': 'no'}  # as the model names them


@pytest.fixture(scope='module')
def detect():
    return language.load()


@pytest.fixture(scope='module')
def stage():
    return language.make(language.Options())


@pytest.fixture(scope='module')
def udhr(shared_data):
    with gzip.open(shared_data / 'multilingual/udhr_articles_1_20.jsonl.gz', 'rt', encoding='utf-8') as file:
        records = {record['file']: record for record in map(json.loads, file)}
    return {name: records[name] for name in TRANSLATIONS.split()}


def document(text: str, kind: str = 'text', code: str = '') -> Document:
    return Document(id='a', source='s', where='w', text=text, kind=kind, language=code)


def code_of(record: dict) -> str:
    code = record['bcp47'].partition('-')[0]
    return CODES.get(code, code)


def test_paragraphs(udhr, detect):
    right, total = {}, {}
    for name, record in udhr.items():
        for paragraph in filter(str.strip, record['text'].split('\n')):
            found, _, _ = language.identify(detect, paragraph, language.Options())
            right[name] = right.get(name, 0) + (found == code_of(record))
            total[name] = total.get(name, 0) + 1
    assert len(total) >= 40
    assert sum(right.values()) / sum(total.values()) >= 0.985
    assert min(right[name] / total[name] for name in total) >= 0.85


def test_whole_texts(udhr, stage):
    for record in udhr.values():
        out = stage(document(record['text']))
        if record['bcp47'] == 'en':
            assert out.language == 'en' and out.signals['language.score'] > 0.9
        else:
            assert out.reason == 'language.other' and out.document.language == code_of(record)


def test_page_in_two_languages(udhr, stage):
    english, french = (udhr[name]['text'] for name in ('eng', 'fra'))
    out = stage(document(english + '\n' + french))
    assert isinstance(out, Dropped) and out.reason in ('language.score', 'language.mixed', 'language.other')
    mostly = english * 3 + french[:300]
    assert stage(document(mostly)).language == 'en'
    options = language.Options(min_score=0.0, max_other=0.3)
    out = language.make(options)(document(english[:3000] + '\n' + french[:2500]))
    assert out.reason == 'language.mixed' and out.detail.endswith('> 0.3')


def test_other_options(udhr):
    french = udhr['fra']['text']
    assert language.make(language.Options(keep=('en', 'fr')))(document(french)).language == 'fr'
    assert language.make(language.Options(keep=()))(document(french)).language == 'fr'
    assert language.make(language.Options(kinds=('html',)))(document(french, code='xx')).language == 'xx'


@pytest.mark.parametrize('text', ['', '   \n', '12345 67,8', '?!… --- \u200b', '\0\0', '\ud800'])
def test_no_language(stage, text):
    out = stage(document(text))
    assert isinstance(out, Dropped) and out.document.language == 'und'


def test_code_keeps_its_language(stage):
    program = document('for i in range(3):\n    pass\n', kind='code', code='python')
    assert stage(program) is program


def test_capitals_are_read(detect):
    text = 'ALL HUMAN BEINGS ARE BORN FREE AND EQUAL IN DIGNITY AND RIGHTS AND SHOULD ACT AS BROTHERS.'
    found, score, _ = language.identify(detect, text, language.Options())
    assert found == 'en' and score > 0.7


@pytest.mark.parametrize(
    ('candidates', 'text', 'expected'),
    [
        ([('ja', 0.7), ('zh', 0.3)], '人人有权享有国籍。', [('zh', 1.0)]),
        ([('zh', 0.6), ('ja', 0.4)], 'すべての人は国籍をもつ権利を有する。', [('ja', 1.0)]),
        (
            [('mk', 0.5), ('ru', 0.25), ('sr', 0.25)],
            'Свако има право на држављанство, и то ће бити тако.',
            [('sr', 1.0)],
        ),
        ([('no', 0.8), ('da', 0.2)], 'Der er noget, vi skal tale om efter mødet.', [('da', 1.0)]),
        ([('no', 0.96), ('da', 0.04)], 'Der er noget, vi skal tale om.', [('no', 0.96), ('da', 0.04)]),  # certain
        ([('pt', 0.5), ('es', 0.4)], 'xyz', [('pt', 0.5), ('es', 0.4)]),
        ([('pt', 0.5), ('es', 0.4)], 'El niño y os um', [('pt', 0.5), ('es', 0.4)]),  # both are ruled out
    ],
)
def test_what_a_language_does_not_have_settles_it(candidates, text, expected):
    found = language.settled(candidates, text)
    assert [(code, pytest.approx(p)) for code, p in found] == expected


def test_one_foreign_name_settles_nothing():
    text = 'Das ist ein langer Satz über einen Mann. ' * 8 + 'Er heißt Peña.'
    assert not language.ruled_out('pt', text.lower(), text.lower().split())


def test_pieces_are_spread_over_the_text():
    text = ''.join(random.Random(0).choices('abcdefg hij\n', k=10_000))
    found = language.pieces(text, 5, 200)
    assert len(found) == 5 and all(len(piece) == 200 and '\n' not in piece for piece in found)
    assert found[0] == text[:200].replace('\n', ' ') and found[-1] == text[-200:].replace('\n', ' ')
    assert language.pieces('short', 5, 200) == ['short']
    assert len(language.pieces('a' * 650, 5, 200)) == 3
    assert language.pieces('1' * 5000 + 'a' * 200, 5, 200) == ['a' * 200]


def test_errors(tmp_path):
    with pytest.raises(ConfigError, match='language.model'):
        language.load(str(tmp_path / 'none.bin'))
    (tmp_path / 'bad.bin').write_bytes(b'no model')
    with pytest.raises(ConfigError, match='bad.bin'):
        language.load(str(tmp_path / 'bad.bin'))
