import random

from chats import FUNCTIONS, SEARCH, sort, weather
import pytest

from llm_jax.chat import ChatError, ToolCall
from llm_jax.chat.tools import Parser, detect_form, parse_calls, schema, write_calls


def test_schema_of_a_function():
    parameters = schema(weather)['function']['parameters']
    assert parameters['properties'] == {
        'place': {'type': 'string', 'description': 'a town, and its country'},
        'days': {'type': 'integer', 'description': 'how many: at most 9'},
        'unit': {'type': 'string', 'enum': ['celsius', 'kelvin'], 'description': 'of temperatures'},
    }
    assert parameters['required'] == ['place']
    assert schema(weather)['function']['description'] == 'Forecasts the weather.\n\nWorks for towns.'
    assert schema(sort)['function']['parameters']['properties']['key'] == {
        'type': 'string', 'nullable': True, 'description': 'a name',
    }  # fmt: skip
    assert [schema(one)['function']['name'] for one in FUNCTIONS] == ['weather', 'sort', 'convert']


def undocumented(a: int):
    pass


def unhinted(a):
    """Does. Args: none."""


def undescribed(a: int):
    """Does.

    Args:
      b: another
    """


def odd(a: object):
    """Does.

    Args:
      a: anything
    """


def many(*a: int):
    """Does."""


@pytest.mark.parametrize(
    ('tool', 'message'),
    [
        (undocumented, r'tool \(undocumented\) has no docstring'),
        (unhinted, "the argument 'a' has no type hint"),
        (undescribed, "does not describe the argument 'a'"),
        (odd, r"argument 'a': no JSON schema is known for the type <class 'object'>"),
        (many, r'a model cannot fill \*a'),
        (3, 'tool is int; it must be a schema or a function'),
        ({'type': 'function'}, 'tool has no name'),
        ({'name': 'f', 'parameters': {'x': float('inf')}}, r'tool\.parameters\.x = inf'),
    ],
)
def test_a_tool_that_cannot_be_used(tool, message):
    with pytest.raises(ChatError, match=message):
        schema(tool)


def test_a_schema_stays_as_it_is():
    assert schema(SEARCH) == SEARCH and schema({'name': 'f'}) == {'name': 'f'}


CALLS = [
    ToolCall('search', '{"query": "</tool_call> \\" <tool_call> é", "deep": {"a": [1, {}]}}'),
    ToolCall('clock', '{}'),
]


@pytest.mark.parametrize('form', ['hermes', 'llama3'])
@pytest.mark.parametrize('content', ['', 'Let me see. 1 < 2 <tool', ' {x} '])
@pytest.mark.parametrize('count', [0, 1, 2])
def test_calls_both_ways(form, content, count):
    """However the text is cut into pieces; llama3's calls are all of an answer."""
    if form == 'llama3' and content and count:
        return
    calls = tuple(CALLS[:count])
    text = content + ('\n' if content and calls else '') + (write_calls(calls, form) if calls else '')
    rng = random.Random(0)
    for _ in range(30):
        cuts = sorted(rng.sample(range(len(text) + 1), min(len(text), rng.randrange(8))))
        parser = Parser(form)
        events = [parser.push(text[a:b]) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)] + [
            parser.close()
        ]
        assert sum((event.calls for event in events), ()) == calls
        assert ''.join(event.text for event in events) == (content.rstrip() if calls else content)


def test_text_comes_as_soon_as_it_can_be_no_call():
    parser = Parser('hermes')
    assert [parser.push(piece).text for piece in ('a', ' ', 'b <', 'tool', 'x ', '<tool_call>{')] == [
        'a', '', ' b', '', ' <toolx', ''
    ]  # fmt: skip
    got = parser.push('"name": "f", "arguments": {"x": 1}}</tool_call>')
    assert got.calls == (ToolCall('f', '{"x": 1}'),) and got.text == ''
    parser = Parser('llama3')
    assert parser.push('{').text == '' and parser.push('% if %}').text == '{% if %}' and parser.push('x').text == 'x'


@pytest.mark.parametrize(
    ('form', 'text', 'content', 'names'),
    [
        ('hermes', 'a<tool_call>no json</tool_call>b', 'a<tool_call>no json</tool_call>b', ''),
        ('hermes', '<tool_call>{"name": 3}</tool_call>', '<tool_call>{"name": 3}</tool_call>', ''),
        ('hermes', '<tool_call>{"name": "f", "arguments": {', '<tool_call>{"name": "f", "arguments": {', ''),
        ('hermes', '<tool_call>bad</tool_call>\n<tool_call>{"name": "f"}</tool_call>', '<tool_call>bad</tool_call>',
         'f'),
        ('hermes', '<tool_call>{"name": "f"}</tool_call>\n\n<tool_call>{"name": "g"}</tool_call>\n', '', 'fg'),
        ('hermes', '<tool_call>{"name": "f"}</tool_call>\nand text', 'and text', 'f'),
        ('hermes', 'only text \n', 'only text \n', ''),
        ('llama3', '<|python_tag|>{"name": "f", "parameters": {"a": "}"}}', '', 'f'),
        ('llama3', '{"name": "f", "parameters": {}}; {"name": "g", "arguments": {}}\n{"name": "h"}', '', 'fgh'),
        ('llama3', '{"a": 1}', '{"a": 1}', ''),
        ('llama3', '{"name": "f", "para', '{"name": "f", "para', ''),
        ('llama3', ' \n', ' \n', ''),
        ('llama3', '{"name": "f"} and text', 'and text', 'f'),
        ('', '<tool_call>{"name": "f"}</tool_call>', '<tool_call>{"name": "f"}</tool_call>', ''),
    ],
)  # fmt: skip
def test_what_is_no_call_is_text(form, text, content, names):
    whole = parse_calls(text, form)
    assert (whole.text.strip() if names else whole.text, ''.join(c.name for c in whole.calls)) == (content, names)
    parser = Parser(form)
    events = [parser.push(char) for char in text] + [parser.close()]
    assert ''.join(event.text for event in events) == whole.text
    assert sum((event.calls for event in events), ()) == whole.calls


def test_ids_and_forms():
    ids = iter('xy')
    got = parse_calls(write_calls(CALLS, 'hermes'), 'hermes', make_id=lambda: next(ids))
    assert [call.id for call in got.calls] == ['x', 'y']
    with pytest.raises(ChatError, match="form 'xml', which is unknown"):
        Parser('xml')
    sources = '<tool_call>{"arguments": 1}', '"parameters": ', '<tool_call><function=f>', 'x'
    assert [detect_form(source) for source in sources] == ['hermes', 'llama3', '', '']
