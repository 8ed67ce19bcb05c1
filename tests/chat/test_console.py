import io
import os
import signal

import pytest

from llm_jax.chat import ChatError
from llm_jax.chat.console import Console, Interrupts, Turn, read_turn


def read_all(lines):
    """The turns of lines, with the prompts before each."""
    prompts, left = [], list(lines)

    def read_line(prompt):
        prompts.append(prompt)
        return left.pop(0) if left else None

    turns = []
    while (turn := read_turn(read_line)) is not None:
        turns.append(turn)
    return turns, ''.join(prompts)


@pytest.mark.parametrize(
    ('lines', 'turns', 'prompts'),
    [
        (['a', '', '  ', ' b '], [Turn('a'), Turn(' b ')], '> > > > > '),
        (['a\\', 'b\\', '', 'c'], [Turn('a\nb\n'), Turn('c')], '> . . > > '),
        (['"""', 'a', '', '  b', '"""', 'c'], [Turn('a\n\n  b', True), Turn('c')], '> . . . . > > '),
        (['"""/help', 'me"""'], [Turn('/help\nme', True)], '> . > '),
        (['"""/help"""'], [Turn('/help', True)], '> > '),
        (['""""""', 'a'], [Turn('a')], '> > > '),
        (['"""a\\', '"""'], [Turn('a\\', True)], '> . > '),
    ],
    ids=range(7),
)
def test_lines_become_turns(lines, turns, prompts):
    assert read_all(lines) == (turns, prompts)


@pytest.mark.parametrize(('lines', 'problem'), [(['"""a', 'b'], 'no """ .*\'"""a\''), (['a\\'], 'backslash')])
def test_an_input_that_ends_within_a_turn(lines, problem):
    with pytest.raises(ChatError, match=f'{problem}.* not complete'):
        read_all(lines)


class Terminal(io.TextIOWrapper):
    def isatty(self):
        return True


def make(data=b'', kind=io.TextIOWrapper, encoding='utf-8'):
    streams = [kind(io.BytesIO(part), encoding=encoding, newline='\n') for part in (b'', b'')]
    console = Console(io.TextIOWrapper(io.BytesIO(data)), *streams)
    return console, lambda: [(stream.flush(), stream.buffer.getvalue().decode(encoding))[1] for stream in streams]


def test_a_pipe_gives_lines_and_takes_answers_as_they_are():
    console, shown = make('\ufeffé\r\n\nb'.encode())
    assert not console.is_interactive
    assert [console.read_turn(), console.read_turn(), console.read_turn()] == [Turn('é'), Turn('b'), None]
    for piece in ('🙂 ', 'a\x1b[2J', '\n', '\n  b', '\n\n '):
        console.write(piece)
    console.end_answer()
    console.write('c')
    console.end_answer()
    console.note('n')
    console.error('e')
    assert shown() == ['🙂 a\x1b[2J\n\n  b\nc\n', 'n\nerror: e\n']


def test_a_line_that_is_no_utf8_is_named():
    console, _ = make(b'a\n\xff\n')
    assert console.read_turn() == Turn('a')
    with pytest.raises(ChatError, match='line 2 of the input is no UTF-8'):
        console.read_turn()


def test_a_terminal_shows_what_it_would_obey(monkeypatch):
    monkeypatch.delenv('NO_COLOR', raising=False)
    console, shown = make(kind=Terminal)
    console.write('a\x1b[2J\tb\r')
    console.end_answer()
    console.note('c\x07')
    console.error('d\x9b')
    assert shown() == ['a\\x1b[2J\tb\n', '\x1b[2mc\\x07\x1b[0m\nerror: d\\x9b\n']
    monkeypatch.setenv('NO_COLOR', '1')
    console, shown = make(kind=Terminal)
    console.note('c')
    assert shown() == ['', 'c\n']


def test_an_encoding_that_lacks_a_letter():
    console, shown = make(encoding='latin-1')
    console.write('é🙂')
    assert shown()[0] == 'é\\U0001f642'


def test_ctrl_c_is_a_flag_but_where_lines_are_read():
    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        assert not interrupts.take()
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.take() and not interrupts.take()
        with pytest.raises(KeyboardInterrupt), interrupts.raised():
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.take()
    assert signal.getsignal(signal.SIGINT) == before
