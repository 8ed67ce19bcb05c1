import pytest

from llm_jax.corpus.document import Document, Dropped, Raw
from llm_jax.corpus.extract import EXTRACTORS, Extract
from llm_jax.corpus.extract.markdown import clean
from tests import awkward


def extract(text: str | bytes, kind='markdown', **known) -> Document | Dropped:
    return EXTRACTORS[kind](Extract())(Raw('m/1', 'm', 'README.md', text, kind, **known))


def test_front_matter():
    text = '---\ntitle: "The harbour"\ntags: [a]\n---\n\n# Boats\n'
    assert (extract(text).text, extract(text).title) == ('# Boats', 'The harbour')
    assert extract(text, title='Other').title == 'Other'
    assert extract('+++\ntitle = "T"\n+++\nText').title == 'T'
    assert extract('---\n\nA rule.\n\n---\n').text == '---\n\nA rule.\n\n---'
    assert extract('Text\n\n---\na: b\n---\n').text == 'Text\n\n---\na: b\n---'
    assert extract('---\na: b\n---\n').reason == 'extract.empty'


def test_comments_and_badges():
    text = (
        '# Boats [![build](https://github.com/a/b/workflows/ci.svg)](https://github.com/a/b)\n\n'
        '[![PyPI](https://img.shields.io/pypi/v/a.svg)](https://pypi.org) ![x](https://badge.fury.io/py/a)\n'
        '<a href="https://a.b"><img src="https://codecov.io/a.svg" alt="c"></a>\n\n<!-- toc\n-->\n\n'
        'Counts ![a boat](boat.png) fast, see [docs](https://docs.io/badges-guide).\n\n\n\n'
        '[![Build][ci-img]][ci] ![Doc][doc]\n\n* one\n  * two\n\n'
        '[ci-img]: https://travis-ci.org/a.svg\n[doc]: https://readthedocs.org/projects/a/badge\n[ci]: https://ci.org\n'
    )
    expected = (
        '# Boats\n\nCounts ![a boat](boat.png) fast, see [docs](https://docs.io/badges-guide).\n\n* one\n  * two\n\n'
        '[ci]: https://ci.org'
    )
    assert [line.rstrip() for line in clean(text).split('\n')] == expected.split('\n')


@pytest.mark.parametrize('fence', ['```', '~~~~'])
def test_code_is_not_touched(fence):
    code = f'{fence}md\n<!-- kept -->\n\n\n\n![x](https://img.shields.io/a)\n{fence}'
    assert clean(f'<!-- gone -->\n{code}\n') == code
    assert clean('Text\n\n    <!-- kept -->\n    code\n') == 'Text\n\n    <!-- kept -->\n    code'
    assert clean(f'{fence}\n<!-- never closed') == f'{fence}\n<!-- never closed'


def test_what_is_clean_stays():
    text = '# A\n\nText with  two spaces  \nand a break.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n\n\nEnd <b>x</b> &amp;'
    assert clean(text) == text
    for case in awkward.cases(300):
        assert clean(clean(case)) == clean(case)
        assert isinstance(extract(case), Document | Dropped)


def test_plain_text():
    assert extract(b'\xef\xbb\xbf\r\nna\xc3\xafve\r\n  text \r\n\r\n', kind='text').text == 'naïve\n  text '
    assert extract('na\xefve'.encode('latin-1') * 20, kind='text', charset='latin-1').text == 'naïve' * 20
    assert extract('\n \n', kind='text').reason == 'extract.empty'
    document = extract('a', kind='text', language='en', licence='CC0-1.0', title='T')
    assert (document.language, document.licence, document.title) == ('en', 'CC0-1.0', 'T')
