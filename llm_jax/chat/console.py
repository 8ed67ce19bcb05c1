"""Lines in, answers out: a terminal with editing and history, or a pipe."""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import os
import signal
import sys
import types
from typing import TextIO

from llm_jax.chat.messages import ChatError
from llm_jax.config.printable import visible

_FENCE = '"""'
_PROMPT, _MORE = '> ', '. '


@dataclasses.dataclass(frozen=True)
class Turn:
    """What the user entered.

    Attributes:
      text: of one line or several.
      is_quoted: whether it stood between fences, so that it is no command.
    """

    text: str
    is_quoted: bool = False


def read_turn(read_line: Callable[[str], str | None]) -> Turn | None:
    """Reads lines until they are a turn; None at the end of the input.

    A line that ends with a backslash goes on in the next one. A turn that begins with three quotes goes on until a line
    that ends with them. Lines of white space alone are passed over.

    Args:
      read_line: gives the next line without its end, after showing a prompt; None at the end.

    Raises:
      ChatError: the input ends before the turn does.
    """
    while (line := read_line(_PROMPT)) is not None:
        opened = line.strip()
        if opened.startswith(_FENCE):
            lines = [opened.removeprefix(_FENCE)]
            while not lines[-1].rstrip().endswith(_FENCE):
                lines.append(_next(read_line, f'no {_FENCE} ends the text that begins with {opened!r}'))
            lines[-1] = lines[-1].rstrip().removesuffix(_FENCE)
            text = '\n'.join(lines).removeprefix('\n').removesuffix('\n')
            if text.strip():
                return Turn(text, is_quoted=True)
        elif opened:
            lines = [line]
            while lines[-1].endswith('\\'):
                lines[-1] = lines[-1][:-1]
                lines.append(_next(read_line, f'no line follows {line!r}, which ends with a backslash'))
            return Turn('\n'.join(lines))
    return None


def _next(read_line: Callable[[str], str | None], problem: str) -> str:
    line = read_line(_MORE)
    if line is None:
        raise ChatError(f'{problem}; the message is not complete')
    return line


class Interrupts:
    """Ctrl-C as a flag, so that it comes between two steps of an answer and never within one.

    Only while a line is read it is a KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self._is_set = False

    def __enter__(self) -> 'Interrupts':
        self._before = signal.signal(signal.SIGINT, self._set)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _set(self, number: int, frame: types.FrameType | None) -> None:
        self._is_set = True

    def take(self) -> bool:
        """Returns whether Ctrl-C came since the last call."""
        was_set, self._is_set = self._is_set, False
        return was_set

    @contextlib.contextmanager
    def raised(self) -> Iterator[None]:
        """Makes Ctrl-C a KeyboardInterrupt, and forgets one that came before."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            yield
        finally:
            self._is_set = False
            signal.signal(signal.SIGINT, self._set)


class Console:
    """Reads lines and shows answers: these alone on standard output, all else on standard error.

    Attributes:
      is_interactive: whether lines are typed rather than piped.
    """

    def __init__(self, stdin: TextIO | None = None, stdout: TextIO | None = None, stderr: TextIO | None = None) -> None:
        self._stdin, self._stdout, self._stderr = stdin or sys.stdin, stdout or sys.stdout, stderr or sys.stderr
        self.is_interactive = self._stdin.isatty()
        self._is_shown = self._stdout.isatty()
        self._dims = self._stderr.isatty() and not os.environ.get('NO_COLOR')
        self._n_lines, self._held = 0, ''
        if self.is_interactive:
            _edit_lines()

    def read_turn(self) -> Turn | None:
        """Returns what the user enters next; None at the end of the input.

        Raises:
          ChatError: a line that is no UTF-8, or an input that ends within a turn.
          KeyboardInterrupt: Ctrl-C.
        """
        return read_turn(self._type_line if self.is_interactive else self._read_line)

    def _type_line(self, prompt: str) -> str | None:
        if not self._is_shown:  # `input` would write the prompt to standard output
            print(prompt, end='', file=self._stderr, flush=True)
        try:
            return input(prompt if self._is_shown else '')
        except EOFError:
            print(file=self._stderr)
            return None
        except UnicodeDecodeError as error:
            raise ChatError(f'the line is no UTF-8 text: {error}') from error

    def _read_line(self, prompt: str) -> str | None:
        data = self._stdin.buffer.readline()
        self._n_lines += 1
        try:
            return data.decode('utf-8-sig' if self._n_lines == 1 else 'utf-8').rstrip('\r\n') if data else None
        except UnicodeDecodeError as error:
            raise ChatError(f'line {self._n_lines} of the input is no UTF-8 text: {error}') from error

    def write(self, text: str) -> None:
        """Shows more of an answer. White space at its end waits for what follows."""
        text = self._held + text
        body = text.rstrip()
        self._held = text[len(body) :]
        if body:
            self._print(body)

    def end_answer(self) -> None:
        """Ends the answer with its line."""
        self._held = ''
        self._print('\n')

    def _print(self, text: str) -> None:
        shown = visible(text) if self._is_shown else text
        encoding = self._stdout.encoding or 'utf-8'
        self._stdout.write(shown.encode(encoding, 'backslashreplace').decode(encoding))
        self._stdout.flush()

    def note(self, text: str) -> None:
        """Shows what is no answer, dim where that can be."""
        text = visible(text)
        print(f'\x1b[2m{text}\x1b[0m' if self._dims else text, file=self._stderr, flush=True)

    def error(self, text: str) -> None:
        """Shows a mistake that ends nothing."""
        print(f'error: {visible(text)}', file=self._stderr, flush=True)


def _edit_lines() -> None:
    """Gives `input` editing and history. Pythons that are built without readline edit as the system does."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  importing it is all; in a pipe it may write to standard output
