"""Conversations in files: JSON and JSON lines, as instruction tuning reads them."""

from collections.abc import Sequence
import dataclasses
import json
import os
import pathlib
from typing import Any

from llm_jax.chat.messages import ChatError, check, parse_arguments
from llm_jax.chat.records import read_record


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Messages, and the schemas of the tools that their answers may call.

    Attributes:
      messages: checked, as `messages.check` has them.
      tools: None is none.
    """

    messages: Sequence[dict[str, Any]]
    tools: Sequence[dict[str, Any]] | None = None

    def to_text(self) -> str:
        """Writes one line of JSON, a record of instruction data."""
        record = {'messages': list(self.messages)} | ({'tools': list(self.tools)} if self.tools else {})
        return json.dumps(record, ensure_ascii=False) + '\n'


def read(file: pathlib.Path, number: int | None = None) -> Conversation:
    """Reads a conversation: what `write` wrote, a list of messages, or a record of instruction data (`read_record`).

    Args:
      file: of JSON or JSON lines.
      number: which of its conversations, from 1 on; None: the only one.

    Raises:
      ChatError: no such file or conversation, or a mistake in it, with its line.
    """
    records = _records(file)
    if number is None and len(records) > 1:
        raise ChatError(f'{file} has {len(records)} conversations; say which: {file} {len(records)} is the last')
    number = 1 if number is None else number
    if not 1 <= number <= len(records):
        raise ChatError(f'{file} has no conversation {number}; there are {len(records)}')
    where, record = records[number - 1]
    messages, tools = read_record({'messages': record} if isinstance(record, list) else record, where)
    try:
        return Conversation(parse_arguments(check(messages)), tools)
    except ChatError as error:
        raise ChatError(f'{where}: {error}') from error


def write(file: pathlib.Path, conversation: Conversation) -> None:
    """Writes a conversation whole, or leaves the file as it was.

    Raises:
      ChatError: the file cannot be written.
    """
    partial = file.with_name(f'{file.name}.{os.getpid()}.partial')
    try:
        partial.write_text(conversation.to_text(), encoding='utf-8')
        partial.replace(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ChatError(f'{file} cannot be written: {error.strerror or error}') from error


def is_written(file: pathlib.Path, conversation: Conversation) -> bool:
    """Tells whether a file has this conversation and nothing else, as `write` leaves it."""
    return _text(file) == conversation.to_text()


def _text(file: pathlib.Path) -> str:
    try:
        return file.read_text(encoding='utf-8')
    except UnicodeDecodeError as error:
        raise ChatError(f'{file} is no UTF-8 text: {error}') from error
    except OSError as error:
        raise ChatError(f'{file} cannot be read: {error.strerror or error}') from error


def _records(file: pathlib.Path) -> list[tuple[str, Any]]:
    """Returns (place, record) of each conversation in a file."""
    text = _text(file)
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):  # not one value: lines of them, whose mistakes are told below
        lines = [(f'{file}, line {i}', line) for i, line in enumerate(text.split('\n'), 1) if line.strip()]
        records = [(where, _parse(line, where)) for where, line in lines]
    else:
        is_list = isinstance(whole, list) and whole and not _is_message(whole[0])
        records = [(f'{file}, record {i}', one) for i, one in enumerate(whole, 1)] if is_list else [(str(file), whole)]
    if not records:
        raise ChatError(f'{file} is empty; a conversation is {{"messages": [{{"role": "user", "content": "Hi"}}]}}')
    for where, record in records:
        if not isinstance(record, dict | list):
            raise ChatError(f'{where} is a JSON {type(record).__name__}; a conversation is an object or a list')
    return records


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and bool(value.keys() & {'role', 'from'})


def _parse(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ChatError(f'{where} is not JSON: {error}') from error
