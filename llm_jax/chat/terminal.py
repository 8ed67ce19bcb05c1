"""The chat in the terminal: what is typed or piped becomes messages, and answers appear as they come."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from llm_jax.chat import commands
from llm_jax.chat.commands import Then
from llm_jax.chat.console import Console, Interrupts, Turn
from llm_jax.chat.render import Chat
from llm_jax.chat.session import Session
from llm_jax.config.schema import ConfigError


class Answer(Protocol):
    """An answer under way; see `generate.respond.Answer`."""

    n_prompt: int
    n_reused: int
    n_tokens: int
    first_seconds: float
    speed: float
    is_cut: bool

    def __iter__(self) -> Iterator[str]: ...

    def stop(self) -> None: ...


class Responder(commands.Settings, Protocol):
    """Answers prompts; see `generate.respond.Responder`."""

    context: int
    reserve: int

    def answer(self, prompt: Sequence[int]) -> Answer: ...


class Terminal:
    """A conversation with a model, from the first line to the last.

    What goes wrong in a turn takes the turn back: on a terminal it is told, in a pipe it ends the conversation.
    """

    def __init__(self, chat: Chat, responder: Responder, console: Console, system: str = '') -> None:
        """Args:
        chat: renders.
        responder: answers.
        console: shows.
        system: the system message; '' is none.

        Raises:
          ChatError: a system message that is no text.
        """
        self._responder, self._console = responder, console
        self._session = Session(chat, responder.context)
        self._state = commands.State(self._session, responder, console.note)
        if system:
            self._session.set_system(system)
        # A plain transcript parts a speaker from the text, and turns from each other, by white space.
        self._strips = bool(chat.stop_texts)
        self._has_told_of_dropped = False

    def run(self) -> None:
        """Converses until the input ends.

        Raises:
          ConfigError: a turn of a pipe that cannot be answered.
          KeyboardInterrupt: Ctrl-C in a pipe, or twice at the prompt.
        """
        if not self._console.is_interactive:
            while (turn := self._console.read_turn()) is not None and self._take(turn, None):
                pass
            return
        with Interrupts() as interrupts:
            was_interrupted = False
            while True:
                try:
                    with interrupts.raised():
                        turn = self._console.read_turn()
                    was_interrupted = False
                    if turn is None or not self._take(turn, interrupts):
                        return
                except KeyboardInterrupt:
                    if was_interrupted:
                        raise
                    was_interrupted = True
                    self._console.note('\nCtrl-C again ends, and so does Ctrl-D')
                except ConfigError as error:
                    self._console.error(str(error))

    def _take(self, turn: Turn, interrupts: Interrupts | None) -> bool:
        """Does what a turn says; False ends. What fails leaves the history as it was."""
        before = self._session.messages
        try:
            if not turn.is_quoted and commands.is_command(turn.text):
                then = commands.run(turn.text, self._state)
            else:
                self._session.add({'role': 'user', 'content': turn.text})
                then = Then.ANSWER
            if then == Then.ANSWER:
                self._answer(interrupts)
        except ConfigError:
            self._session.messages = before
            raise
        return then != Then.END

    def _answer(self, interrupts: Interrupts | None) -> None:
        """Answers the last message."""
        options: dict[str, Any] = {'tools': self._state.tools} if self._state.tools else {}
        prompt = self._session.prompt(self._responder.reserve, **options)
        self._tell_of_dropped()
        answer = self._responder.answer(prompt.ids)
        text, is_stopped = '', False
        for piece in answer:
            shown = piece.lstrip() if self._strips and not text else piece
            text += shown
            self._console.write(shown)
            if interrupts and interrupts.take():
                answer.stop()
                is_stopped = True
        self._console.end_answer()
        self._session.add({'role': 'assistant', 'content': text.rstrip() if self._strips else text})
        self._console.note(describe(answer, is_stopped))

    def _tell_of_dropped(self) -> None:
        """Says once that the context is full, until it is no more."""
        if self._session.dropped and not self._has_told_of_dropped:
            context = self._session.context
            self._console.note(
                f'the context of {context} tokens is full: the oldest turns are left out; the system message stays'
            )
        self._has_told_of_dropped = bool(self._session.dropped)


def describe(answer: Answer, is_stopped: bool = False) -> str:
    """Returns the line below an answer: how much it is, how fast it came, and why it ended if not by itself."""
    parts = [f'{answer.n_tokens} tokens']
    if answer.speed:
        parts.append(f'{answer.speed:.1f} tokens/s')
    parts.append(f'the first after {answer.first_seconds:.2f} s')
    parts.append(f'{answer.n_reused} of {answer.n_prompt} tokens of the prompt were there')
    if is_stopped:
        parts.append('stopped')
    elif answer.is_cut:
        parts.append('cut: no room for more (max_new_tokens, or the context)')
    return f'[{", ".join(parts)}]'
