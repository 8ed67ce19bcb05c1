"""Spans of a rendered conversation that the assistant wrote, the mark that ends its turn included.

A template with `{% generation %}` says them itself. Of others they follow from what it renders: values of messages are
marked at their ends by characters that occur nowhere and are taken out again; a turn begins where the prompt for it
ends, and ends where the conversation that stops behind it does.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import os
import re
from typing import Any

from llm_jax.chat.messages import REASONING, ChatError
from llm_jax.chat.template import Inputs, Template
from llm_jax.tokenizer.special import Piece

Messages = Sequence[Mapping[str, Any]]
Split = Callable[[str], Sequence[Piece]]


@dataclasses.dataclass(frozen=True)
class Span:
    """Characters [start, end) of the rendered text, and the index of the message."""

    start: int
    end: int
    message: int


@dataclasses.dataclass(frozen=True)
class _Marked:
    """A rendered text, and where values of messages are in it: message -> first character, and one past the last."""

    text: str
    first: Mapping[int, int]
    last: Mapping[int, int]


class _Unclear(Exception):
    """Why the span of a message cannot be found."""


@dataclasses.dataclass(frozen=True)
class _Attempt:
    """Which values are marked: a template may compare one, strip it or cut it, and then shows another text.

    Attributes:
      fields: of messages and their calls.
      both: whether their beginnings are marked, too.
      empty: whether those are that are empty.
      near: whether only the message that is looked for and the one before it are marked.
    """

    fields: tuple[str, ...]
    both: bool = True
    empty: bool = False
    near: bool = False


_ALL = ('content', *REASONING, 'arguments', 'name')
_ORDER = (
    _Attempt(_ALL),
    _Attempt(_ALL[:-1]),
    _Attempt(_ALL[:-2], both=False),
    _Attempt(_ALL, empty=True),
    _Attempt(_ALL, near=True),
    _Attempt(_ALL[:-1], near=True),
    _Attempt(_ALL[:-2], both=False, near=True),
    _Attempt(('content',), near=True),
    _Attempt(('name',), near=True),
    _Attempt(_ALL, empty=True, near=True),
    _Attempt(('content',), both=False, empty=True, near=True),
)


class Finder:
    """Finds what the assistant wrote in one rendered conversation."""

    def __init__(
        self,
        template: Template,
        messages: Messages,
        inputs: Inputs,
        spare: Iterator[str],
        split: Split,
        *,
        is_open: bool = False,
        kept: Sequence[str] = (),
    ):
        """Args:
        template: that renders.
        messages: of the conversation.
        inputs: what else it reads.
        spare: characters that occur nowhere.
        split: cuts a text at the names of special tokens.
        is_open: whether a prompt for another message ends the conversation.
        kept: see `Template.render`.
        """
        self._is_open = is_open
        self._template, self._messages, self._inputs, self._split = template, messages, inputs, split
        self._brackets = next(spare), next(spare)
        self._marks = [(next(spare), next(spare)) for _ in messages]
        self._of_mark = {mark: (i, k) for i, pair in enumerate(self._marks) for k, mark in enumerate(pair)}
        self._any_mark = re.compile(f'[{"".join(self._of_mark)}]')
        self._kept = (*kept, *self._of_mark)
        self._attempts: dict[tuple[_Attempt, int], _Marked] = {}

    def find(self, text: str, wanted: Sequence[int]) -> list[Span]:
        """The spans of messages of the assistant.

        Args:
          text: the rendered conversation.
          wanted: indices of the messages.

        Raises:
          ChatError: one cannot be found.
        """
        if not self._template.marks_generation:
            return [self.find_by_rendering(text, i) for i in wanted]
        spans = self._find_generated(text) if wanted else []
        for i in wanted:
            if not any(span.message == i and span.start < span.end for span in spans):
                raise ChatError(
                    f'{self._template.name}: no {{% generation %}} block writes messages[{i}], which is trained on; '
                    'write one around it, or give the message weight 0'
                )
        return [span for span in spans if span.message in wanted]

    def _find_generated(self, text: str) -> list[Span]:
        """The spans that `{% generation %}` marks."""
        before, after = self._brackets
        rendered = self._template.render(
            self._messages, self._inputs, add_generation_prompt=self._is_open, kept=self._kept, brackets=self._brackets
        )
        clean, places = _take_out(rendered, re.compile(f'[{before}{after}]'))
        if clean != text:
            raise ChatError(
                f'{self._template.name} changes what is in its {{% generation %}} blocks; write them around it'
            )
        spans, depth, start = [], 0, 0
        for at, char in places:
            start = at if char == before and depth == 0 else start
            depth += 1 if char == before else -1
            if depth == 0:
                spans.append((start, at))
        owners = [i for i, message in enumerate(self._messages) if message['role'] == 'assistant']
        if len(spans) != len(owners):
            owners = [self._owner(text, owners, *span) for span in spans]
        owned = zip(spans, owners, strict=True)
        return [Span(start, end, owner) for (start, end), owner in owned if owner is not None]

    def _owner(self, text: str, candidates: Sequence[int], start: int, end: int) -> int | None:
        """The message of the assistant that has a value in a block; None for a block of the prompt alone."""
        inside = {i for i in candidates for at in self._ends_of(text, i) if start < at <= end}
        if len(inside) > 1:
            raise ChatError(
                f'{self._template.name}: a {{% generation %}} block holds several messages; write one around each'
            )
        return next(iter(inside), None)

    def _ends_of(self, text: str, i: int) -> set[int]:
        """Where values of a message end, as far as marking them changes nothing else."""
        marked = (self._attempt(attempt, i) for attempt in _ORDER)
        return {one.last[i] for one in marked if one.text == text and i in one.last}

    def find_by_rendering(self, text: str, i: int) -> Span:
        """The span of an assistant's message, whether or not the template has `{% generation %}`; see `find`."""
        reasons = []
        for attempt in _ORDER:
            try:
                return self._find(text, i, attempt)
            except _Unclear as error:
                reasons.append(str(error))
        raise ChatError(
            f'{self._template.name}: cannot tell which text of messages[{i}] the assistant wrote ({reasons[0]}); write '
            '{% generation %} and {% endgeneration %} around it in the template'
        )

    def _attempt(self, attempt: _Attempt, i: int) -> _Marked:
        """The whole conversation, marked to look for a message."""
        key = attempt, i if attempt.near else 0
        if key not in self._attempts:
            self._attempts[key] = self._mark(self._messages, attempt, i, add_generation_prompt=self._is_open)
        return self._attempts[key]

    def _find(self, text: str, i: int, attempt: _Attempt) -> Span:
        marked = self._attempt(attempt, i)
        if marked.text != text:
            raise _Unclear('the template changes its values')
        if i not in marked.last:
            raise _Unclear('the template does not write it')
        start = self._start(marked, i, attempt)
        end = self._end(marked, i, attempt, is_whole=i == len(self._messages) - 1 and not self._is_open)
        if not start <= marked.last[i] <= end:
            raise _Unclear('what it wrote ends before it begins')
        return Span(start, end, i)

    def _start(self, marked: _Marked, i: int, attempt: _Attempt) -> int:
        """One past the prompt that the message answers."""
        text, limit = marked.text, marked.first.get(i, marked.last[i])
        try:
            prompt = self._mark(self._messages[:i], attempt, i, add_generation_prompt=True)
        except ChatError as error:
            return self._start_by_header(text, limit, error)
        before = next((j for j in reversed(range(i)) if j in prompt.last and j in marked.last), None)
        at, tail = (0, prompt.text) if before is None else (marked.last[before], prompt.text[prompt.last[before] :])
        size = len(os.path.commonprefix([text[at:limit], tail]))
        if size < len(
            tail
        ):  # the template may end the prompt otherwise where an answer follows, as without its thoughts
            closed = self._mark(self._messages[:i], attempt, i)
            rest = closed.text if before is None else closed.text[closed.last.get(before, 0) :]
            if (
                size <= len(rest)
                or not tail.startswith(rest)
                or any(piece.start < at + size < piece.end for piece in self._split(text) if piece.id is not None)
            ):
                raise _Unclear('its beginning is not that of a prompt')
        return at + size

    def _start_by_header(self, text: str, limit: int, error: ChatError) -> int:
        """The same for a first message, before which the template renders nothing."""
        closed = self._template.render(self._messages, self._inputs)
        opened = self._template.render(self._messages, self._inputs, add_generation_prompt=True)
        header = opened.removeprefix(closed) if opened.startswith(closed) else ''
        at = text.rfind(header, 0, limit)
        if not header or at < 0:
            raise _Unclear(f'its prompt fails: {error}')
        return at + len(header)

    def _end(self, marked: _Marked, i: int, attempt: _Attempt, *, is_whole: bool) -> int:
        """One past the mark that ends the turn; or past the text that does, of a template without such marks."""
        text, at = marked.text, marked.last[i]
        if is_whole:
            tail = text[at:]
        else:
            try:
                turn = self._mark(self._messages[: i + 1], attempt, i)
            except ChatError as error:
                raise _Unclear(f'the conversation up to it fails: {error}') from error
            if i not in turn.last:
                raise _Unclear('the template does not write it where it is the last')
            tail = turn.text[turn.last[i] :]
        pieces = list(self._split(tail))
        while pieces and pieces[-1].id is None:
            pieces.pop()
        if not pieces:
            if not tail or not text.startswith(tail, at):
                raise _Unclear('nothing ends its turn')
            return at + len(tail)
        for piece in pieces:
            name = tail[piece.start : piece.end]
            if text.startswith(name, at):
                at += len(name)
                continue
            here = next(iter(self._split(text[at:])), None)
            if piece.id is None or here is None or here.id is None:
                raise _Unclear('its turn ends otherwise within the conversation')
            return at + here.end  # another mark than at the end of a conversation
        return at

    def _mark(self, messages: Messages, attempt: _Attempt, i: int, *, add_generation_prompt: bool = False) -> _Marked:
        """Renders messages with their values marked; `i` is the message that is looked for."""
        copies = [
            m if attempt.near and j not in (i - 1, i) else _with_marks(m, attempt, *self._marks[j])
            for j, m in enumerate(messages)
        ]
        rendered = self._template.render(
            copies, self._inputs, add_generation_prompt=add_generation_prompt, kept=self._kept
        )
        text, places = _take_out(rendered, self._any_mark)
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for at, char in places:
            j, is_end = self._of_mark[char]
            if is_end:
                last[j] = max(last.get(j, 0), at)
            else:
                first[j] = min(first.get(j, at), at)
        return _Marked(text, first, last)


def _take_out(text: str, chars: re.Pattern[str]) -> tuple[str, list[tuple[int, str]]]:
    """(text without these characters, where in that each of them was)."""
    kept, places, at, size = [], [], 0, 0
    for match in chars.finditer(text):
        kept.append(text[at : match.start()])
        size += match.start() - at
        places.append((size, match[0]))
        at = match.end()
    return ''.join([*kept, text[at:]]), places


def _with_marks(message: Mapping[str, Any], attempt: _Attempt, before: str, after: str) -> dict[str, Any]:
    """A copy of a message with marks at both ends of its values, inside their white space."""
    fields, before = attempt.fields, before if attempt.both else ''

    def mark(text: str) -> str:
        start, end = len(text) - len(text.lstrip()), len(text.rstrip())
        if start >= end:
            return text + before + after if attempt.empty else text
        return text[:start] + before + text[start:end] + after + text[end:]

    def mark_all(value: Any) -> Any:
        if isinstance(value, str):
            return mark(value)
        if isinstance(value, Mapping):
            return {key: mark_all(one) for key, one in value.items()}
        return [mark_all(one) for one in value] if isinstance(value, list) else value

    out = dict(message)
    for field in ('content', *REASONING):
        if field in fields and field in out:
            value = out[field]
            parts = [] if isinstance(value, str) else [part | {'text': mark(part['text'])} for part in value]
            out[field] = mark(value) if isinstance(value, str) else parts
    if 'tool_calls' in out:
        calls = []
        for call in out['tool_calls']:
            function = call.get('function', call)
            names = [name for name in ('name', 'arguments') if name in fields and name in function]
            changed = {name: mark_all(function[name]) for name in names}
            calls.append(call | {'function': function | changed} if 'function' in call else call | changed)
        out['tool_calls'] = calls
    return out
