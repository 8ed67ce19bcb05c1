"""Records of preference data become pairs of conversations, in which the answer alone is trained on."""

import pytest

from llm_jax.chat import ChatError
from llm_jax.chat.comparisons import read_comparison, read_dialogue, read_judged
from llm_jax.data import files

ASK = {'role': 'user', 'content': 'Say hi.'}
HI, GO = ({'role': 'assistant', 'content': text} for text in ('hi', 'go'))


@pytest.mark.parametrize(
    'record',
    [
        {'prompt': 'Say hi.', 'chosen': 'hi', 'rejected': 'go'},
        {'prompt': [ASK], 'chosen': [HI], 'rejected': [GO]},
        {'prompt': 'Say hi.', 'chosen': [ASK, HI], 'rejected': [ASK, GO]},
        {'chosen': [ASK, HI], 'rejected': [ASK, GO]},
        {'instruction': 'Say hi.', 'input': '', 'output': 'hello', 'chosen': 'hi', 'rejected': 'go'},
        {'chosen': '\n\nHuman: Say hi.\n\nAssistant: hi', 'rejected': '\n\nHuman: Say hi.\n\nAssistant: go'},
    ],
)
def test_forms_of_one_pair(record):
    pair = read_comparison(record, 'here')
    assert (pair.chosen, pair.rejected, pair.tools, pair.margin) == ([ASK, HI], [ASK, GO], None, 0.0)
    assert pair.share_prompt


def test_only_the_last_answer_is_trained_on():
    dialogue = '\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d'
    pair = read_comparison({'chosen': dialogue, 'rejected': dialogue + ' e', 'margin': 0.5}, 'here')
    assert [m.get('weight') for m in pair.chosen] == [None, 0.0, None, None]
    assert pair.rejected[-1]['content'] == 'd e'
    assert pair.margin == 0.5
    other = read_comparison({'chosen': dialogue, 'rejected': dialogue.replace(': a', ': x')}, 'here')
    assert not other.share_prompt


def test_an_unpaired_answer():
    messages, _, desirable = read_judged({'messages': [ASK, GO, ASK, HI], 'label': False}, 'here')
    assert not desirable
    assert [m.get('weight') for m in messages] == [None, 0.0, None, None]


@pytest.mark.parametrize(
    ('record', 'message'),
    [
        ({'prompt': 'a', 'chosen': 'b'}, "has the fields 'prompt', 'chosen'; a pair has"),
        ({'chosen': 'b', 'rejected': 'c'}, "'b' is no dialogue"),
        ({'prompt': 'a', 'chosen': 'b', 'rejected': 'c', 'margin': 'much'}, '"margin" = \'much\' is str'),
        ({'chosen': [ASK, HI], 'rejected': [ASK]}, "'rejected' ends with the role 'user'"),
        ({'prompt': 'a', 'chosen': [], 'rejected': 'c'}, "'chosen' is no list of messages"),
    ],
)
def test_what_is_no_pair(record, message):
    with pytest.raises(ChatError, match=f'here.*{message}'):
        read_comparison(record, 'here')


def test_what_has_no_label():
    with pytest.raises(ChatError, match='"label" = \'good\''):
        read_judged({'prompt': 'a', 'completion': 'b', 'label': 'good'}, 'here')


def test_a_dialogue_begins_with_a_turn():
    assert read_dialogue('\n\nHuman: a\nb\n\nAssistant:', 'here')[-1] == {'role': 'assistant', 'content': ''}
    with pytest.raises(ChatError, match='is no dialogue'):
        read_dialogue('Once upon\n\nHuman: a', 'here')


def test_dialogues_of_people(shared_data):
    """HH-RLHF: in two of the first 1,812 test pairs one answer is two turns; the prompt is what comes before both."""
    file = shared_data / 'preference/hh_harmless_base_test_part1.jsonl.gz'
    pairs = [read_comparison(record, 'here') for record in files.read_json_lines(str(file), 'hh')]
    assert len(pairs) == 1812
    assert all(pair.share_prompt for pair in pairs)
    assert sum(len(pair.chosen) != len(pair.rejected) for pair in pairs) == 2
    assert {message['role'] for pair in pairs for message in pair.chosen} == {'user', 'assistant'}
