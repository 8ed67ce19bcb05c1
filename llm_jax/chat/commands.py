"""Commands of the chat in the terminal: lines that begin with a slash."""

from collections.abc import Callable, Mapping
import dataclasses
import enum
import pathlib
import re
from typing import Any, Protocol

from llm_jax.chat import files
from llm_jax.chat.files import Conversation
from llm_jax.chat.messages import ChatError, text_of
from llm_jax.chat.session import Session
from llm_jax.config.parts import nearest

# '/etc/hosts is a file' is a message.
_COMMAND = re.compile(r'/([A-Za-z]+)(?:\s+(.*))?', re.DOTALL)


class Settings(Protocol):
    """What `/set` shows and changes; see `generate.respond.Responder`."""

    settings: Mapping[str, Any]

    def change(self, name: str, text: str) -> None: ...


class Then(enum.Enum):
    """What follows a command."""

    READ = 'read'  # the next line
    ANSWER = 'answer'  # the last message is answered
    END = 'end'


@dataclasses.dataclass
class State:
    """What commands read and change.

    Attributes:
      session: the history.
      settings: of the answers.
      say: shows a line to the user.
      tools: schemas that the answers may call; None is none.
      file: of the last /save or /load; None before.
      own_files: that /save may overwrite, resolved.
    """

    session: Session
    settings: Settings
    say: Callable[[str], None]
    tools: list[dict[str, Any]] | None = None
    file: pathlib.Path | None = None
    own_files: set[pathlib.Path] = dataclasses.field(default_factory=set)

    @property
    def conversation(self) -> Conversation:
        return Conversation(self.session.messages, self.tools)


def is_command(line: str) -> bool:
    """Tells whether a line is '/word', with anything behind it."""
    return bool(_COMMAND.fullmatch(line.strip()))


def run(line: str, state: State) -> Then:
    """Runs a command.

    Raises:
      ChatError: there is no such command, or what it is given cannot be used; nothing has changed then.
    """
    name, argument = _COMMAND.fullmatch(line.strip()).groups('')
    if name not in COMMANDS:
        raise ChatError(
            f'/{name} is no command{nearest(name, COMMANDS)} /help lists them; a message that begins with a slash '
            'goes between """ and """'
        )
    return COMMANDS[name].run(argument.strip(), state) or Then.READ


def _clear(argument: str, state: State) -> None:
    _refuse(argument, 'clear')
    state.session.clear()
    kept = ', but for the system message' if state.session.messages else ''
    state.say(f'the history is empty{kept}')


def _save(argument: str, state: State) -> None:
    file = _file(argument) if argument else state.file
    if file is None:
        raise ChatError('/save needs a file, as no conversation was saved or loaded yet; write /save FILE')
    if not state.session.messages:
        raise ChatError('there is nothing to save yet')
    if file.exists() and file.resolve() not in state.own_files:
        raise ChatError(f'{file} is there already, and not by /save of this conversation; name another file')
    files.write(file, state.conversation)
    state.file = file
    state.own_files.add(file.resolve())
    state.say(f'{len(state.session.messages)} messages are in {file}')


def _load(argument: str, state: State) -> None:
    if not argument:
        raise ChatError('/load needs a file; write /load FILE, or /load FILE 3 for its third conversation')
    file, number = _file(argument), None
    head, _, last = argument.rpartition(' ')
    if head and last.isdecimal() and not file.exists():
        file, number = _file(head), int(last)
    loaded = files.read(file, number)
    state.session.messages, state.tools = list(loaded.messages), loaded.tools
    if files.is_written(file, loaded):
        state.file = file
        state.own_files.add(file.resolve())
    waits = '; /regen answers the last one' if loaded.messages[-1]['role'] == 'user' else ''
    state.say(f'{len(loaded.messages)} messages of {file}{waits}')


def _system(argument: str, state: State) -> None:
    if argument:
        state.session.set_system('' if argument == '""' else argument)
    messages = state.session.messages
    is_set = bool(messages) and messages[0]['role'] in ('system', 'developer')
    state.say(f'system: {text_of(messages[0])}' if is_set else 'there is no system message')


def _regen(argument: str, state: State) -> Then:
    _refuse(argument, 'regen')
    messages = state.session.messages
    if not state.session.take_back() and not (messages and messages[-1]['role'] == 'user'):
        raise ChatError('there is no message to answer yet')
    return Then.ANSWER


def _set(argument: str, state: State) -> None:
    name, _, value = argument.partition(' ')
    if name and not value.strip():
        raise ChatError(f'/set {name} needs a value; write /set NAME VALUE, such as /set temperature 0.7')
    if name:
        state.settings.change(name, value.strip())
    settings = state.settings.settings
    shown = [name] if name else settings
    state.say(', '.join(f'{one} = {"none" if settings[one] is None else settings[one]}' for one in shown))


def _help(argument: str, state: State) -> None:
    _refuse(argument, 'help')
    width = max(len(f'/{name} {command.argument}') for name, command in COMMANDS.items())
    lines = [f'{f"/{name} {command.argument}":{width}}  {command.meaning}' for name, command in COMMANDS.items()]
    state.say('\n'.join([*lines, *_MORE_HELP]))


def _quit(argument: str, state: State) -> Then:
    _refuse(argument, 'quit')
    return Then.END


_MORE_HELP = (
    'A message of several lines has a backslash at the end of each line but the last, or """ before and after it.',
    'Ctrl-C stops an answer; what has come of it stays. Ctrl-D ends.',
)


@dataclasses.dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
      argument: what it is given, for /help.
      meaning: for /help.
      run: (argument, state) -> what follows; None is `Then.READ`.
    """

    argument: str
    meaning: str
    run: Callable[[str, State], Then | None]


COMMANDS = {
    'clear': Command('', 'forget the conversation; the system message stays', _clear),
    'save': Command('[FILE]', 'write the conversation to a file, which instruction tuning reads too', _save),
    'load': Command('FILE [N]', 'go on with a conversation of a file, the N-th of several', _load),
    'system': Command('[TEXT]', 'show or set the system message; "" removes it', _system),
    'regen': Command('', 'answer the last message anew', _regen),
    'set': Command('[NAME VALUE]', 'show the settings of answers, or change one, as in /set temperature 0.7', _set),
    'help': Command('', 'show this', _help),
    'quit': Command('', 'end', _quit),
}


def _refuse(argument: str, name: str) -> None:
    if argument:
        raise ChatError(f'/{name} takes nothing, but {argument!r} follows it')


def _file(argument: str) -> pathlib.Path:
    return pathlib.Path(argument).expanduser()
