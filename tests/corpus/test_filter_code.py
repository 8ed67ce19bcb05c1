"""Rules for programs, and how much of them is comments."""

import argparse
import ast
import base64
import io
import json
import pathlib
import random
import tokenize

import pytest

from llm_jax.corpus.document import Document, Dropped
from llm_jax.corpus.filter import code, comments

PROGRAM = '\n'.join(f'def function_{i}(x):\n    # Adds {i}.\n    return x + {i}\n' for i in range(10))


def reason(text: str, language: str = 'python', kind: str = 'code', **options) -> str:
    out = code.make(code.Options(**options))(Document('a', 's', 'w', text, kind, language))
    return out.reason if isinstance(out, Dropped) else ''


def data(count: int) -> str:
    """Random bytes in base64, as long as the file."""
    return base64.b64encode(random.Random(0).randbytes(count)).decode()


LINES_OF_DATA = '\n'.join(data(1000)[i : i + 76] for i in range(0, 1300, 76))
HTML = '<html><head><script>var x = "a > b"; </script></head><body><p>{}</p>{}</body></html>'


@pytest.mark.parametrize(
    ('text', 'language', 'expected'),
    [
        (PROGRAM, 'python', ''),
        (PROGRAM, 'Python', ''),
        (PROGRAM, 'unheard-of', ''),
        (f'{PROGRAM}\nx = [{"1234, " * 167}]', 'python', 'longest_line'),
        ('\n'.join(f'name_{i} = {"some_name + " * 9} 1' for i in range(30)), 'python', 'mean_line'),
        ('\n'.join('(' * i + ')' * i for i in range(30)), 'python', 'alphanumeric'),
        (f'<?xml version="1.0"?>\n{PROGRAM}', 'xml', 'xml'),
        (f'<?xml version="1.0"?>\n{PROGRAM}', 'xslt', ''),
        (f'{" " * 100}<?xml version="1.0"?>\n{PROGRAM}', 'xml', ''),
        (HTML.format('\n'.join(f'some words of line {i}' for i in range(9)), ''), 'html', ''),
        (HTML.format('too few words', ''), 'html', 'visible_characters'),
        (HTML.format('words ' * 20, '<div class="a"></div>\n' * 40), 'html', 'visible'),
        (f'{PROGRAM}\nx = """\n{LINES_OF_DATA}\n"""', 'python', 'encoded_run'),
        ('\n'.join(f'x{i} = "{data(60 * 9)[i * 70 : i * 70 + 70]}"\ny{i} = 3' for i in range(9)), 'python', 'encoded'),
        ('x = [\n' + '    0x12, 0xfe, 0x00, 0x99, 0x12, 0xfe, 0x00, 0x99,\n' * 40 + ']', 'c', 'encoded_run'),
        ('x = 1\n' + '    call_of_a_function(argument)\n' * 30, 'python', 'repeated_lines'),
        ('\n'.join(f'# Comment {i}.' for i in range(9)) + '\nx = 1\n', 'python', 'comments'),
        ('\n'.join(f'variable_{i} = {i} * other + {i}' for i in range(100)), 'python', 'explained'),
        ('\n'.join(f'variable_{i} = {i} * other + {i}' for i in range(50)), 'python', ''),
        ('"""' + '\n'.join(f'Documentation of {i}.' for i in range(30)) + '"""\nx = 1\n', 'python', ''),
        ('// ' + '/' * 78 + '\n' + PROGRAM, 'c', ''),
    ],
)  # fmt: skip
def test_rules(text, language, expected):
    assert reason(text, language) == (expected and f'code.{expected}')


def test_stage():
    assert reason('x' * 2000, kind='text') == ''
    assert reason('# A comment.\n' * 9 + 'x = 1\n', max_comments=0.95, max_repeated_lines=1.0) == ''
    assert reason('', 'python') == 'code.alphanumeric'
    out = code.make(code.Options())(Document('a', 's', 'w', PROGRAM, 'notebook', 'python'))
    assert out.signals['code.longest_line'] == 18 and 0.1 < out.signals['code.comments'] < 0.4


@pytest.mark.parametrize(
    ('text', 'language', 'expected'),
    [
        ('int x; // 456789\n', 'c', '// 456789'),
        ('char *s = "// no"; /* yes\n * more */ int c = \'"\'; // z', 'c', '/* yes\n * more */// z'),
        ('s = "# no"  # yes', 'python', '# yes'),
        ("s = 'it\\'s # no' # yes", 'ruby', '# yes'),
        ("-- yes\nselect '-- no' /* yes */", 'sql', '-- yes/* yes */'),
        ('--[[ long\n comment ]] x = 1 -- y', 'lua', '--[[ long\n comment ]]-- y'),
        ("it's 5% or % yes", 'tex', '% or % yes'),
        ('a { color: "/* no */" } /* yes */', 'css', '/* yes */'),
        ('/* never closed', 'java', '/* never closed'),
        ('fn f() {} // é😀', 'rust', '// é😀'),
    ],
)
def test_comments(text, language, expected):
    assert comments.shares(text, language) == (len(expected) / len(text), 0)


@pytest.mark.parametrize('language', ['json', 'markdown', 'html', 'unheard-of', ''])
def test_languages_without_comments(language):
    assert comments.shares('# x', language) is None


@pytest.mark.parametrize('module', [argparse, ast, json, pathlib, tokenize, random])
def test_python_against_its_own_tokenizer(module):
    text = pathlib.Path(module.__file__).read_text(encoding='utf-8')
    tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    commented = sum(len(t.string) for t in tokens if t.type == tokenize.COMMENT)
    documented = sum(
        len(t.string)
        for before, t in zip([tokens[0]._replace(type=tokenize.NL), *tokens], tokens, strict=False)
        if t.type == tokenize.STRING
        and t.string.lstrip('rRuU')[:3] in ('"""', "'''")
        and before.type in (tokenize.INDENT, tokenize.NEWLINE, tokenize.NL, tokenize.COMMENT, tokenize.DEDENT)
    )
    found = comments.shares(text, 'python')
    assert found[0] == pytest.approx(commented / len(text), abs=1e-9)
    assert found[1] == pytest.approx(documented / len(text), abs=0.002)


def test_the_standard_library_stays():
    files = sorted(pathlib.Path(argparse.__file__).parent.glob('*.py'))[:150]
    dropped = [file.name for file in files if reason(file.read_text(encoding='utf-8'))]
    assert len(dropped) < 0.06 * len(files), dropped
