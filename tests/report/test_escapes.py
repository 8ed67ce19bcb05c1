"""Text of users on pages and in Markdown."""

import pytest

from llm_jax.report.page import render
from llm_jax.report.tables import PHONE, Table
from llm_jax.report.text import keep_units, markdown_cell, markdown_fence, split_words


@pytest.mark.parametrize(
    ('text', 'kept'),
    [
        ('17.4 GiB of 74.5 GiB', '17.4~GiB of 74.5~GiB'),
        ('63.9 % above', '63.9~% above'),
        ('jax 0.12.0, numpy 2.5', 'jax~0.12.0, numpy~2.5'),
        ('1.00 GiB for 8,192 tokens', '1.00~GiB for 8,192~tokens'),
    ],
)
def test_numbers_stay_with_their_units(text, kept):
    assert keep_units(text) == kept.replace('~', '\N{NO-BREAK SPACE}')


def test_markdown():
    assert markdown_cell('a|b\n<c> *d*') == '\\|'.join(['a', 'b \\<c\\> \\*d\\*'])
    assert markdown_fence('x ``` y').splitlines()[0] == '````text'


def test_a_table_that_is_too_wide_for_a_phone_becomes_lists():
    narrow = Table('', ('source', 'rows'), [('stdlib', '9,675')])
    wide = Table('', ('width', *'abcde'), [('standard 64', *5 * ('1,234.5 GiB',))])
    assert narrow.width < PHONE < wide.width and wide.stacks and not narrow.stacks
    long = Table('', ('name', 'n'), [('so many words that a line cannot hold them all, as in a sentence', '1')])
    assert not long.stacks  # words may go to the next line


def test_a_command_breaks_between_its_words():
    page = render(
        'study.html.jinja', name='x', title='y', sentence='z', charts=[], table=Table('', ('a',), []),
        command="./tools/run train 'my file.py' --config.model.d_model=64",
    )  # fmt: skip
    assert '<span class="word">--config.model.d_model=64</span>' in page
    assert '.word { display: inline-block' in page


def test_long_words_have_places_to_break_and_short_ones_none():
    assert split_words('5 GiB, as before') == ['5 GiB, as before'] and split_words('') == ['']
    path = 'in some/very/long/directory/of_a_file.jsonl and abcdefghijklmnopqrstuvwxyz'
    pieces = split_words(path)
    assert ''.join(pieces) == path and pieces[0] == 'in some/' and pieces[-1] == 'stuvwxyz'
    assert max(map(len, ' '.join(pieces).split())) <= 18
