"""Records of instruction data become messages, or say which field is wrong."""

import pytest

from llm_jax.chat import ChatError
from llm_jax.chat.records import read_record

PAIR = [{'role': 'user', 'content': 'Say hi.'}, {'role': 'assistant', 'content': 'hi'}]


@pytest.mark.parametrize(
    'record',
    [
        {'messages': PAIR},
        {'conversations': [{'from': 'human', 'value': 'Say hi.'}, {'from': 'gpt', 'value': 'hi'}]},
        {'instruction': 'Say hi.', 'input': '', 'output': 'hi'},
        {'instruction': 'Say hi.', 'context': '', 'response': 'hi', 'category': 'open'},
        {'prompt': 'Say hi.', 'completion': 'hi'},
        {'question': 'Say hi.', 'answer': 'hi'},
    ],
)
def test_forms_of_one_conversation(record):
    assert read_record(record, 'here') == (PAIR, None)


def test_input_system_and_weight():
    record = {'instruction': 'Add.', 'input': '1 2', 'output': '3', 'system': 'Be short.', 'weight': 0.5}
    messages, _ = read_record(record, 'here')
    assert messages == [
        {'role': 'system', 'content': 'Be short.'},
        {'role': 'user', 'content': 'Add.\n\n1 2'},
        {'role': 'assistant', 'content': '3', 'weight': 0.5},
    ]


def test_a_weight_of_its_own_holds():
    own = [PAIR[0], PAIR[1] | {'weight': 0.0}]
    assert read_record({'messages': own, 'weight': 2.0}, 'here')[0] == own


@pytest.mark.parametrize(
    ('record', 'message'),
    [
        ({'text': 'a story'}, "has the fields 'text'; a conversation has"),
        ({'messages': []}, "'messages' is no list of messages"),
        ({'prompt': 3, 'response': 'x'}, "'prompt' is int; make it text"),
        ({'messages': PAIR, 'tools': 'search'}, '"tools" is str'),
    ],
)
def test_what_is_no_conversation(record, message):
    with pytest.raises(ChatError, match=f'here.*{message}'):
        read_record(record, 'here')
