import json
import re

import pytest

from llm_jax.chat import ChatError, Message, ToolCall, check, from_dict, parse_arguments

USER = {'role': 'user', 'content': 'Hi'}


def call(**function):
    return {
        'role': 'assistant',
        'tool_calls': [{'type': 'function', 'function': {'name': 'f', 'arguments': {}} | function}],
    }


@pytest.mark.parametrize(
    ('messages', 'message'),
    [
        ([], 'messages is empty'),
        ('Hi', "messages is 'Hi'; it must be a list"),
        (USER, "it must be a list"),
        (['Hi'], "messages[0] is 'Hi'; it must be like"),
        ([USER, {'content': 'Hi'}], 'messages[1].role = None is unknown'),
        ([{'role': 'usr', 'content': 'Hi'}], "messages[0].role = 'usr' is unknown; did you mean 'user'?"),
        ([{'role': 'human', 'content': 'Hi'}], "messages[0].role = 'human' is unknown; did you mean 'user'?"),
        ([{'role': ['user'], 'content': 'Hi'}], "messages[0].role = ['user'] is unknown"),
        ([USER, {'role': 'user', 'contents': 'Hi'}],
         "messages[1].contents is no field of a message; did you mean 'content'?"),
        ([{'role': 'user'}], 'messages[0].content is missing'),
        ([{'role': 'assistant'}], 'messages[0].content is missing'),
        ([{'role': 'assistant', 'content': None, 'tool_calls': []}], 'messages[0].content is missing'),
        ([{'role': 'user', 'content': 5}], 'messages[0].content = 5: it must be text, or a list'),
        ([{'role': 'user', 'content': 'a\ud800'}], "messages[0].content has the lone surrogate '\\ud800' at 1"),
        ([{'role': 'user', 'content': ['a']}], "messages[0].content[0] = 'a': a part is"),
        ([{'role': 'user', 'content': [{'type': 'image_url', 'image_url': 'x'}]}],
         "messages[0].content[0].type = 'image_url': models here read text alone"),
        ([{'role': 'user', 'content': [{'type': 'text', 'text': None}]}],
         'messages[0].content[0].text = None: it must be text'),
        ([{'role': 'user', 'content': [{'type': 'text', 'text': 'a', 'x': 1}]}],
         'messages[0].content[0].x is no field'),
        ([USER | {'name': ''}], 'messages[0].name is empty'),
        ([USER | {'name': 3}], 'messages[0].name = 3: it must be text'),
        ([USER | {'weight': 1}], "messages[0].weight: only the role 'assistant' has it, not 'user'"),
        ([USER | {'tool_calls': []}], "messages[0].tool_calls: only the role 'assistant' has it"),
        ([USER | {'tool_call_id': 'a'}], "messages[0].tool_call_id: only the role 'tool' has it"),
        ([USER | {'reasoning_content': 'a'}], "messages[0].reasoning_content: only the role 'assistant' has it"),
        *(([{'role': 'assistant', 'content': 'a', 'weight': weight}], 'messages[0].weight = ')
          for weight in (-1, float('nan'), float('inf'), '1', True)),
        ([{'role': 'assistant', 'tool_calls': 'f()'}], "messages[0].tool_calls = 'f()': it must be a list"),
        ([{'role': 'assistant', 'tool_calls': [3]}], 'messages[0].tool_calls[0] = 3: a call is'),
        ([{'role': 'assistant', 'tool_calls': [{'functoin': {}}]}],
         "messages[0].tool_calls[0].functoin is no field of a call"),
        ([call(name='')], 'messages[0].tool_calls[0].function.name is empty'),
        ([call(name=None)], 'messages[0].tool_calls[0].function.name = None: it must be text'),
        ([call(arguments=[1])], 'messages[0].tool_calls[0].function.arguments = [1]: it must be an object'),
        ([call(arguments={'x': float('nan')})], 'messages[0].tool_calls[0].function.arguments.x = nan: JSON has no'),
        ([call(arguments={'x': {1, 2}})], 'arguments.x = {1, 2}: set is no type of JSON'),
        ([call(arguments={3: 'x'})], 'arguments has the key 3; keys must be text'),
        ([call(arguments={'x': ['\udfff']})], 'arguments.x[0] has the lone surrogate'),
        ([call() | {'tool_calls': [{'type': 'web', 'function': {'name': 'f'}}]}], "tool_calls[0].type = 'web'"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_place(messages, message):
    with pytest.raises(ChatError, match=re.escape(message)) as error:
        check(messages)
    assert '\n' not in str(error.value)


def test_nesting_has_a_limit():
    deep = {}
    for _ in range(10_000):
        deep = {'a': deep}
    with pytest.raises(ChatError, match='is nested deeper than 64'):
        check([call(arguments=deep)])


def test_what_is_right_stays_as_it_is():
    given = [
        {'content': 'first content, then role', 'role': 'system'},
        USER | {'name': 'ann', 'tool_calls': None},
        {'role': 'assistant', 'content': None, 'tool_calls': [{'id': 'a', 'function': {'arguments': '{"x"',
         'name': 'f'}}]},
        {'role': 'tool', 'content': [{'type': 'text', 'text': ''}], 'tool_call_id': 'a', 'name': 'f'},
        {'role': 'assistant', 'content': '', 'weight': 0, 'thinking': 'hm'},
        {'role': 'developer', 'content': ''},
    ]  # fmt: skip
    out = check(given)
    assert out == [{name: value for name, value in one.items() if value is not None} for one in given]
    assert [list(one) for one in out][0] == ['content', 'role']
    assert out[2]['tool_calls'] is not given[2]['tool_calls']


def test_messages_and_mappings_are_one():
    messages = [
        Message('system', 'Be brief.'),
        Message('user', ({'type': 'text', 'text': 'a'},), name='ann'),
        Message('assistant', None, tool_calls=(ToolCall('f', {'x': 1}, 'id1'), ToolCall('g', '{"y"'))),
        Message('tool', 'r', name='f', tool_call_id='id1'),
        Message('assistant', 'b', reasoning='hm', weight=0.0),
        Message('assistant', 'c', weight=0.5),
    ]
    plain = check(messages)
    assert [from_dict(one) for one in plain] == messages
    json.dumps(plain)
    assert plain[4] == {'role': 'assistant', 'content': 'b', 'reasoning_content': 'hm', 'weight': 0.0}
    assert from_dict({'role': 'assistant', 'tool_calls': [{'name': 'f'}]}).tool_calls == (ToolCall('f', {}),)
    with pytest.raises(ChatError, match=r"line 3\.role = 'x'"):
        from_dict({'role': 'x'}, 'line 3')


def test_arguments_become_objects():
    given = [USER, call(arguments='{"x": [1]}'), call(arguments='{"x"'), call(arguments='[1]'),
     call(arguments={'x': 1}),
             {'role': 'assistant', 'tool_calls': [{'name': 'f', 'arguments': '{}'}]}]  # fmt: skip
    out = parse_arguments(given)
    assert [one['tool_calls'][0]['function']['arguments'] for one in out[1:5]] == [{'x': [1]}, '{"x"', '[1]', {'x': 1}]
    assert out[5]['tool_calls'] == [{'name': 'f', 'arguments': {}}] and out[0] == USER
    assert given[1]['tool_calls'][0]['function']['arguments'] == '{"x": [1]}'
