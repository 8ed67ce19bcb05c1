import dataclasses
import io
import json
import os
import pathlib
import pty
import re
import select
import signal
import subprocess
import sys
import time

from chats import byte_tokenizer
import pytest
import talker

from llm_jax import chat
from llm_jax.chat.console import Console, Turn
from llm_jax.chat.formats import FORMATS
from llm_jax.chat.terminal import Terminal, describe
from llm_jax.config.schema import ConfigError

ROOT = pathlib.Path(__file__).parents[2]
OWN = chat.open_chat(byte_tokenizer(['<s>', *FORMATS['llm_jax'].marks], bos_token='<s>'), 'llm_jax')


@dataclasses.dataclass
class FakeAnswer:
    """Gives pieces; a callable among them is called, and may raise."""

    pieces: list
    n_prompt: int
    n_reused: int = 3
    n_tokens: int = 7
    first_seconds: float = 0.25
    speed: float = 31.4
    is_cut: bool = False
    is_stopped: bool = False

    def __iter__(self):
        for piece in self.pieces:
            if self.is_stopped:
                return
            yield piece if isinstance(piece, str) else piece()

    def stop(self):
        self.is_stopped = True


class FakeResponder:
    """Answers from a list, and remembers the prompts."""

    settings, reserve = {'temperature': 0.8}, 10

    def __init__(self, *answers, context=200):
        self.answers, self.context, self.prompts = list(answers), context, []

    def change(self, name, text):
        raise ConfigError(f'{name} = {text} must not be')

    def answer(self, prompt):
        self.prompts.append(prompt)
        return FakeAnswer(self.answers.pop(0), len(prompt))


class FakeConsole:
    """Turns from a list, of which exceptions are raised; keeps all that is shown."""

    def __init__(self, *turns, is_interactive=True):
        self.turns, self.is_interactive = list(turns), is_interactive
        self.out, self.notes, self.errors = '', [], []

    def read_turn(self):
        turn = self.turns.pop(0) if self.turns else None
        if isinstance(turn, type):
            raise turn
        return Turn(turn) if isinstance(turn, str) else turn

    def write(self, text):
        self.out += text

    def end_answer(self):
        self.out += '|'

    def note(self, text):
        self.notes.append(text)

    def error(self, text):
        self.errors.append(text)


def converse(turns, answers, *, chat=OWN, context=200, system='', is_interactive=True):
    console, responder = FakeConsole(*turns, is_interactive=is_interactive), FakeResponder(*answers, context=context)
    Terminal(chat, responder, console, system).run()
    return console, responder


def prompt_of(*contents, system='', **options):
    messages = [{'role': ('user', 'assistant')[i % 2], 'content': text} for i, text in enumerate(contents)]
    first = [{'role': 'system', 'content': system}] if system else []
    return OWN.render([*first, *messages], add_generation_prompt=True, **options).ids


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    return 'er'


def fail():
    raise ConfigError('the logits are not finite')


def test_answers_come_after_all_that_was_said():
    console, responder = converse(['a', Turn('/help', is_quoted=True)], [['He', '', 'llo'], ['b']], system='S')
    assert responder.prompts == [prompt_of('a', system='S'), prompt_of('a', 'Hello', '/help', system='S')]
    assert console.out == 'Hello|b|' and not console.errors
    n = len(responder.prompts[0])
    assert console.notes[0] == (
        f'[7 tokens, 31.4 tokens/s, the first after 0.25 s, 3 of {n} tokens of the prompt were there]'
    )


def test_a_pipe_has_answers_alone_on_standard_output():
    out, notes = io.StringIO(), io.StringIO()
    lines = io.TextIOWrapper(io.BytesIO(b'a\n/system S\n"""b\n\nc"""\n/quit\nd\n'))
    responder = FakeResponder([' x ', '\n'], ['y'])
    Terminal(OWN, responder, Console(lines, out, notes)).run()
    assert out.getvalue() == ' x\ny\n'
    assert responder.prompts[1] == prompt_of('a', ' x \n', 'b\n\nc', system='S')


def test_ctrl_c_stops_an_answer_and_keeps_what_came():
    before = signal.getsignal(signal.SIGINT)
    console, responder = converse(['a', 'b'], [['Hello th', interrupt, 'never'], ['c']])
    assert console.out == 'Hello ther|c|' and console.notes[0].endswith('stopped]') and not console.errors
    assert responder.prompts[1] == prompt_of('a', 'Hello ther', 'b')
    assert signal.getsignal(signal.SIGINT) == before


def test_ctrl_c_twice_at_the_prompt_ends():
    console, _ = converse([KeyboardInterrupt, 'a', KeyboardInterrupt, '/set', KeyboardInterrupt], [['x']])
    assert console.out == 'x|' and sum('Ctrl-C again ends' in note for note in console.notes) == 3
    with pytest.raises(KeyboardInterrupt):
        converse([KeyboardInterrupt, KeyboardInterrupt, 'a'], [])
    with pytest.raises(KeyboardInterrupt):
        converse([KeyboardInterrupt, 'a'], [], is_interactive=False)


@pytest.mark.parametrize(
    ('turn', 'answer', 'problem'),
    [
        ('long ' * 50, [], 'the last turn has 254 tokens .* a context of 200 tokens leaves 199'),
        ('x', ['part', fail], 'the logits are not finite'),
        ('/regen', ['part', fail], 'the logits are not finite'),
        ('/nothing', [], '/nothing is no command'),
        ('/set temperature -1', [], 'temperature = -1 must not be'),
        ('\ud800', [], 'lone surrogate'),
    ],
    ids=range(6),
)
def test_a_turn_that_fails_is_taken_back(turn, answer, problem):
    answers = [['b'], *([answer] if answer else []), ['d']]
    console, responder = converse(['a', turn, 'c'], answers)
    assert len(console.errors) == 1 and re.search(problem, console.errors[0])
    assert responder.prompts[-1] == prompt_of('a', 'b', 'c')
    with pytest.raises(ConfigError, match=problem):
        converse(['a', turn, 'c'], answers, is_interactive=False)


def test_a_full_context_is_told_once():
    turns = ['0' * 60, '1' * 60, '2' * 60, '3' * 60, '/clear', 'a', *['4' * 60] * 4]
    console, responder = converse(turns, [['x']] * 9, system='S')
    told = ['is full' in note for note in console.notes if not note.startswith('[')]
    assert told == [True, False, True]  # a full context, the command, and the next one
    assert responder.prompts[3] == prompt_of('2' * 60, 'x', '3' * 60, system='S')
    assert all(len(prompt) <= 190 for prompt in responder.prompts)


def test_regen_answers_the_same_prompt():
    console, responder = converse(['a', '/regen', 'b'], [['x'], ['y'], ['z']])
    assert responder.prompts == [prompt_of('a'), prompt_of('a'), prompt_of('a', 'y', 'b')]
    assert console.out == 'x|y|z|'


def test_tools_of_a_conversation_that_is_loaded(tmp_path):
    tools = [{'type': 'function', 'function': {'name': 'f', 'description': 'd', 'parameters': {'type': 'object'}}}]
    messages = [{'role': 'user', 'content': 'a'}]
    (tmp_path / 'talk').write_text(json.dumps({'messages': messages, 'tools': tools}))
    _, responder = converse([f'/load {tmp_path / "talk"}', '/regen'], [['x']], context=1000)
    assert responder.prompts == [prompt_of('a', tools=tools)]


def test_a_plain_transcript_is_without_the_space_between_speaker_and_text():
    plain, note = chat.open_any_chat(byte_tokenizer(['<s>'], bos_token='<s>'))
    assert note.startswith('has no chat template') and plain.stop_texts
    console, responder = converse(['a', 'b'], [[' ', ' x', ' y', '\n\n'], ['z']], chat=plain)
    assert console.out == 'x y\n\n|z|'
    text = 'User: a\n\nAssistant: x y\n\nUser: b\n\nAssistant:'
    assert responder.prompts[1] == [plain.tokenizer.bos_id, *plain.tokenizer.encode(text)]


def test_a_template_that_is_there_or_asked_for_is_taken():
    marked = byte_tokenizer(['<s>', *FORMATS['llm_jax'].marks], bos_token='<s>')
    assert chat.open_any_chat(marked.with_chat_templates({'default': FORMATS['llm_jax'].source}))[1] == ''
    assert chat.open_any_chat(marked, 'llm_jax')[0].tool_form == 'hermes'
    with pytest.raises(chat.ChatError, match='chatml'):
        chat.open_any_chat(marked, 'chatlm')


@pytest.mark.parametrize(
    ('changes', 'stopped', 'ending'),
    [({}, True, ', stopped]'), ({'is_cut': True}, False, 'cut: no room for more (max_new_tokens, or the context)]')],
    ids=['stopped', 'cut'],
)
def test_why_an_answer_ended(changes, stopped, ending):
    answer = FakeAnswer([], 5, speed=0.0, **changes)
    assert describe(answer, stopped).startswith('[7 tokens, the first after') and describe(answer, stopped).endswith(
        ending
    )


# --- The command, with a model -------------------------------------------------------------------


@pytest.fixture(scope='module')
def run_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp('talk') / 'small'
    talker.save_run(directory)
    return directory


def command(run_dir, *arguments):
    return [sys.executable, str(ROOT / 'tools/chat.py'), str(run_dir), *arguments]


def test_a_conversation_is_piped(run_dir):
    lines = b'/set max_new_tokens 9\nHi\n/clear\n/set seed 0\nHi\n/nothing\nHi\n'
    done = subprocess.run(command(run_dir, '--temperature', '2', '--top_k', '0'), input=lines, capture_output=True)
    half = len(done.stdout) // 2
    assert half > 1 and done.stdout == 2 * done.stdout[:half]  # a conversation repeats
    assert done.stderr.count(b'[9 tokens') == 2
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(b'error: /nothing is no command')


class Typed:
    """A program on a terminal of its own."""

    def __init__(self, command):
        self.shown = ''
        self._fd, self._tty = pty.openpty()
        # The first terminal that a session opens is its own, which Ctrl-C reaches it through.
        opened = ['sh', '-c', 'exec "$@" <>"$0" >&0 2>&0', os.ttyname(self._tty), *command]
        environment = os.environ | {'TERM': 'dumb', 'NO_COLOR': '1'}
        self._program = subprocess.Popen(opened, env=environment, start_new_session=True)

    def wait_for(self, pattern, seconds=600.0):
        """Reads until a pattern is shown after what was waited for before; returns the text up to its end."""
        end = time.monotonic() + seconds
        while (found := re.search(pattern, self.shown, re.DOTALL)) is None:
            assert time.monotonic() < end, f'{pattern!r} does not come: {self.shown!r}'
            if select.select([self._fd], [], [], 1.0)[0]:
                self.shown += os.read(self._fd, 4096).decode(errors='replace')
        before, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return before

    def type(self, text):
        os.write(self._fd, text.encode())

    def end(self):
        """Returns the exit status."""
        try:
            return self._program.wait(60)
        finally:
            self._program.kill()
            os.close(self._fd)
            os.close(self._tty)


def test_ctrl_c_on_a_terminal_stops_an_answer_and_keeps_the_conversation(run_dir, tmp_path):
    typed = Typed(command(run_dir, '--temperature', '0'))
    typed.wait_for('/help lists commands.*> ')
    typed.type('Hi 🙂\n')
    for _ in range(9):  # an answer may be over before Ctrl-C comes
        typed.wait_for('\n[^\r\n]')  # its beginning
        typed.type('\x03')
        if 'stopped]' in typed.wait_for(r'\[\d+ tokens[^\]]*\]\s*> '):
            break
        typed.type('/regen\n')
    else:
        raise AssertionError('no answer was stopped')
    typed.type(f'/save {tmp_path / "talk"}\n')
    typed.wait_for('2 messages are in .*> ')
    typed.type('\x03')
    typed.wait_for('Ctrl-C again ends.*> ')
    typed.type('\x04')
    assert typed.end() == 0
    user, assistant = json.loads((tmp_path / 'talk').read_text())['messages']
    assert user['content'] == 'Hi 🙂' and assistant['content']
