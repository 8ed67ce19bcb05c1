"""Templates by themselves; that they equal Transformers' is proved in tests/parity."""

import datetime
import subprocess
import sys

from chats import NOW
import pytest

from llm_jax.chat import ChatError, Template
from llm_jax.chat.template import Inputs

HI = [{'role': 'user', 'content': 'hi'}]


def render(source, messages=HI, **variables):
    return Template(source).render(messages, Inputs(variables=variables, now=NOW))


@pytest.mark.parametrize(
    ('source', 'text'),
    [
        ('{% for m in messages %}\n{{ m.content }}\n{% endfor %}', 'hi\n'),
        ('    {% if true %}\nx\n    {% endif %}', 'x\n'),
        ("{{ '<é>\"' | tojson }}", '"<é>\\""'),
        ("{{ {'b': 1, 'a': [none, true]} | tojson(indent=1, sort_keys=true) }}",
         '{\n "a": [\n  null,\n  true\n ],\n "b": 1\n}'),
        ("{{ strftime_now('%d.%m.%Y') }}", '03.02.2026'),
        ('{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{% if i == 1 %}{% continue'
         ' %}{% endif %}{{ i }}{% endfor %}', '02'),
        ('{% set ns = namespace(a=1, self=2) %}{% set ns.a = 3 %}{{ ns.a }}{{ ns.self }}', '32'),
        ('a{% generation %}b{% endgeneration %}c', 'abc'),
        ("{{ bos_token }}{{ x if x is defined }}", ''),
        ('{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}', 'TrueTrueFalse'),
    ],
)  # fmt: skip
def test_rules_of_the_environment(source, text):
    assert render(source) == text


@pytest.mark.parametrize(
    ('source', 'message'),
    [
        ("{{ raise_exception('roles must alternate') }}",
         'the chat template refuses the conversation: roles must alternate'),
        ("{{ messages[0].content + 1 }}", 'the chat template fails on the conversation: TypeError: can only'),
        ("{{ messages[7].content }}", 'fails on the conversation: list object has no element 7'),
        ("{{ 1 // 0 }}", 'fails on the conversation: ZeroDivisionError'),
        ("{{ messages.append(1) }}", 'fails on the conversation: .*unsafe'),
        ("{{ ''.__class__.__mro__ }}", 'fails on the conversation: .*unsafe'),
        ("{% set ns = namespace(_x=1) %}", 'fails on the conversation: .*begin with "_"'),
        ("{% set ns = namespace() %}{% set ns.__x = 1 %}", 'fails on the conversation: .*begin with "_"'),
        ("{{ range(10**9) | list }}", 'fails on the conversation: OverflowError'),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", 'fails on the conversation: RecursionError'),
    ],
)  # fmt: skip
def test_what_goes_wrong_in_a_template_is_one_error(source, message):
    with pytest.raises(ChatError, match=message):
        render(source)


@pytest.mark.parametrize('source', ['{% if %}', '{{ a', '{% generation %}x', '{% unknown %}', '{{ x | nofilter }}'])
def test_no_jinja(source):
    with pytest.raises(ChatError, match=r'mine\.jinja, line 2: it is no Jinja template'):
        Template('\n' + source, 'mine.jinja')


def test_generation_blocks_are_found_where_they_are_buffered():
    source = (
        '{% macro turn(m) %}<{% generation %}{{ m.content }}{% endgeneration %}>{% endmacro %}'
        '{% set all %}{% for m in messages %}{{ turn(m) }}{% endfor %}{% endset %}-{{ all | upper }}'
    )
    one = Template(source)
    assert one.marks_generation and not Template('{% macro generation() %}{% endmacro %}').marks_generation
    assert one.render(HI, Inputs(), brackets=('⟦', '⟧')) == '-<⟦HI⟧>'
    assert one.render(HI, Inputs()) == '-<HI>'


def test_the_present_is_read_when_it_renders():
    before = datetime.datetime.now()
    text = Template("{{ strftime_now('%Y-%m-%d %H:%M:%S.%f') }}").render(HI, Inputs())
    assert before <= datetime.datetime.fromisoformat(text) <= datetime.datetime.now()


def test_values_of_variables_win_over_tokens_and_weights_are_not_shown():
    assert render('{{ bos_token }}', bos_token='<x>') == '<x>'
    messages = [{'role': 'assistant', 'content': 'a', 'weight': 0.5, 'reasoning': 'hm'}]
    shown = render('{{ messages[0] | tojson }}', messages)
    assert (
        shown == '{"thinking": "hm", "role": "assistant", "content": "a", "reasoning": "hm", "reasoning_content": "hm"}'
    )


def test_the_room_imports_no_jax():
    code = 'import sys, llm_jax.chat; sys.exit("jax" in sys.modules or "flax" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0
