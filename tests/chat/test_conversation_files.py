import json

import pytest

from llm_jax.chat import ChatError
from llm_jax.chat.files import Conversation, is_written, read, write
from llm_jax.chat.records import read_record

MESSAGES = [
    {'role': 'system', 'content': 'Be brief.'},
    {'role': 'user', 'content': 'naïve\u2028 "x" \n 🙂'},
    {'role': 'assistant', 'content': '', 'tool_calls': [{'function': {'name': 'f', 'arguments': {'a': 1}}}]},
    {'role': 'tool', 'content': '1'},
]
TOOLS = [{'type': 'function', 'function': {'name': 'f', 'parameters': {'type': 'object'}}}]


@pytest.fixture
def put(tmp_path):
    def write_text(text):
        file = tmp_path / 'talk.jsonl'
        file.write_text(text, encoding='utf-8')
        return file

    return write_text


@pytest.mark.parametrize('tools', [None, TOOLS], ids=['no tools', 'tools'])
def test_what_is_written_is_read_and_is_one_line_of_instruction_data(tmp_path, tools):
    file, given = tmp_path / 'talk', Conversation(MESSAGES, tools)
    write(file, given)
    assert read(file) == given and is_written(file, given)
    (line,) = file.read_text(encoding='utf-8').split('\n')[:-1]
    assert read_record(json.loads(line), '') == (MESSAGES, tools)
    write(file, Conversation(MESSAGES[:2]))
    assert read(file) == Conversation(MESSAGES[:2]) and not is_written(file, given)
    assert list(tmp_path.iterdir()) == [file]


def test_forms_of_others(put):
    hi = [{'role': 'user', 'content': 'Hi'}]
    answered = [*hi, {'role': 'assistant', 'content': 'Hello'}]
    assert read(put(json.dumps(hi, indent=2))).messages == hi
    assert read(put('{"conversations": [{"from": "human", "value": "Hi"}]}')).messages == hi
    assert read(put('[{"from": "human", "value": "Hi"}]')).messages == hi
    assert read(put('{"prompt": "Hi",\n "completion": "Hello"}')).messages == answered
    two = '{"question": "Hi", "answer": "Hello"}\n\n{"messages": [{"role": "user", "content": "Hi"}]}\n'
    assert read(put(two), 1).messages == answered and read(put(two), 2).messages == hi
    assert read(put(json.dumps([{'messages': answered}, {'messages': hi}])), 2).messages == hi
    calls = [{'function': {'name': 'f', 'arguments': '{"a": 1}'}}]
    text = json.dumps({'messages': [{'role': 'assistant', 'tool_calls': calls}]})
    assert read(put(text)).messages[0]['tool_calls'][0]['function']['arguments'] == {'a': 1}


@pytest.mark.parametrize(
    ('text', 'number', 'problem'),
    [
        ('', None, 'is empty'),
        ('{"messages": []}', None, 'no list of messages'),
        ('{"a": 1}\n{"b": 1}', None, 'has 2 conversations; say which'),
        ('{"a": 1}\n{"b": 1}', 3, 'no conversation 3; there are 2'),
        ('{"a": 1}\n{"b": 1}', 2, "line 2 has the fields 'b'"),
        ('{"messages": [{"role": "user"}]}', None, r'messages\[0\]\.content is missing'),
        ('{"a": 1}\n{"b": ', 1, 'line 2 is not JSON'),
        ('3', None, 'is a JSON int'),
        ('[' * 100_000, None, 'line 1 is not JSON'),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', None, 'lone surrogate'),
    ],
    ids=range(10),
)
def test_a_mistake_names_the_file(put, text, number, problem):
    with pytest.raises(ChatError, match=f'talk.jsonl.*{problem}'):
        read(put(text), number)


def test_files_that_cannot_be_used(tmp_path):
    with pytest.raises(ChatError, match='none cannot be read: No such file'):
        read(tmp_path / 'none')
    (tmp_path / 'bytes').write_bytes(b'\xff')
    with pytest.raises(ChatError, match='bytes is no UTF-8'):
        read(tmp_path / 'bytes')
    with pytest.raises(ChatError, match='x cannot be written: No such file'):
        write(tmp_path / 'none/x', Conversation(MESSAGES))
