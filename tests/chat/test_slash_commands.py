import json

from chats import byte_tokenizer
import pytest

from llm_jax import chat
from llm_jax.chat import commands
from llm_jax.chat.commands import Then
from llm_jax.chat.formats import FORMATS
from llm_jax.config.schema import ConfigError

ONE = chat.open_chat(byte_tokenizer(['<s>', *FORMATS['llm_jax'].marks], bos_token='<s>'), 'llm_jax')
TALK = [
    {'role': 'system', 'content': 'Be brief.'},
    {'role': 'user', 'content': 'a'},
    {'role': 'assistant', 'content': 'b'},
]


class Settings:
    def __init__(self):
        self.settings = {'temperature': 0.8, 'max_new_tokens': None}

    def change(self, name, text):
        if name not in self.settings:
            raise ConfigError(f'{name} is no setting')
        self.settings[name] = float(text)


@pytest.fixture
def state():
    said = []
    state = commands.State(chat.Session(ONE, 100, TALK), Settings(), said.append)
    state.said = said
    return state


@pytest.mark.parametrize(
    ('line', 'expected'),
    [
        ('/help', True), (' /save a b ', True), ('/system a\nb', True), ('/unknown', True),
        ('/etc/hosts is a file', False), ('/', False), ('/ help', False), ('a /help', False), ('/12', False),
    ],
)  # fmt: skip
def test_what_is_a_command(line, expected):
    assert commands.is_command(line) == expected


def test_clear_keeps_the_system_message(state):
    assert commands.run('/clear', state) == Then.READ
    assert state.session.messages == TALK[:1] and state.said == ['the history is empty, but for the system message']


def test_system_is_shown_set_and_removed(state):
    for line in ('/system', '/system Rhyme.\nAlways.', '/system ""', '/system'):
        assert commands.run(line, state) == Then.READ
    assert state.said == ['system: Be brief.', 'system: Rhyme.\nAlways.', *['there is no system message'] * 2]
    assert state.session.messages == TALK[1:]


def test_regen_takes_the_answer_back(state):
    assert commands.run('/regen', state) == Then.ANSWER
    assert state.session.messages == TALK[:2]
    assert commands.run('/regen', state) == Then.ANSWER  # a message that has no answer yet
    state.session.messages = TALK[:1]
    with pytest.raises(chat.ChatError, match='no message to answer'):
        commands.run('/regen', state)


def test_set_shows_and_changes(state):
    for line in ('/set', '/set temperature 0.5', '/set'):
        commands.run(line, state)
    assert state.said == [
        'temperature = 0.8, max_new_tokens = none', 'temperature = 0.5', 'temperature = 0.5, max_new_tokens = none',
    ]  # fmt: skip
    with pytest.raises(chat.ChatError, match='/set temperature needs a value'):
        commands.run('/set temperature', state)
    with pytest.raises(ConfigError, match='heat is no setting'):
        commands.run('/set heat 1', state)


def test_save_writes_over_its_own_file_alone(state, tmp_path):
    own, other = tmp_path / 'my talk.jsonl', tmp_path / 'other'
    other.write_text('mine')
    with pytest.raises(chat.ChatError, match='write /save FILE'):
        commands.run('/save', state)
    with pytest.raises(chat.ChatError, match='other is there already'):
        commands.run(f'/save {other}', state)
    assert other.read_text() == 'mine' and state.file is None
    commands.run(f'/save {own}', state)
    assert state.said == [f'3 messages are in {own}']
    state.session.add({'role': 'user', 'content': 'c'})
    commands.run('/save', state)
    assert len(json.loads(own.read_text())['messages']) == 4
    state.session.messages = []
    with pytest.raises(chat.ChatError, match='nothing to save'):
        commands.run('/save', state)


def test_load_goes_on_with_what_save_wrote(state, tmp_path):
    file = tmp_path / 'talk 1'
    state.tools = [{'type': 'function', 'function': {'name': 'f'}}]
    commands.run(f'/save {file}', state)
    fresh = commands.State(chat.Session(ONE, 100), Settings(), state.said.append)
    commands.run(f'/load {file}', fresh)
    assert fresh.session.messages == TALK and fresh.tools == state.tools
    fresh.session.add({'role': 'user', 'content': 'c'})
    commands.run('/save', fresh)
    assert len(json.loads(file.read_text())['messages']) == 4
    commands.run(f'/load {file}', state)
    assert state.said[-1] == f'4 messages of {file}; /regen answers the last one'


def test_load_takes_one_of_many_and_leaves_their_file_alone(state, tmp_path):
    file = tmp_path / 'data.jsonl'
    file.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n')
    commands.run(f'/load {file} 2', state)
    assert [m['content'] for m in state.session.messages] == ['c', 'd'] and state.tools is None
    with pytest.raises(chat.ChatError, match='write /save FILE'):
        commands.run('/save', state)
    with pytest.raises(chat.ChatError, match='is there already'):
        commands.run(f'/save {file}', state)
    before = state.session.messages
    for line, problem in ((f'/load {file}', 'has 2 conv'), ('/load', 'needs a file'), ('/load no/such 1', 'cannot be')):
        with pytest.raises(chat.ChatError, match=problem):
            commands.run(line, state)
    assert state.session.messages is before


def test_help_names_every_command_and_quit_ends(state):
    assert commands.run('/help', state) == Then.READ
    assert all(f'\n/{name} ' in f'\n{state.said[0]}' for name in commands.COMMANDS)
    assert commands.run('/quit', state) == Then.END


def test_mistakes(state):
    with pytest.raises(chat.ChatError, match="/sav is no command; did you mean 'save'"):
        commands.run('/sav x', state)
    for name in ('clear', 'regen', 'help', 'quit'):
        with pytest.raises(chat.ChatError, match=f"/{name} takes nothing, but 'x' follows"):
            commands.run(f'/{name} x', state)
