"""Records of instruction data, in the forms that data sets come in, become conversations."""

from collections.abc import Mapping
from typing import Any

from llm_jax.chat.messages import ChatError

# Names of the fields that hold a whole conversation: of OpenAI and Hugging Face, and of ShareGPT.
_LISTS = ('messages', 'conversations')
# (instruction, input, answer) of Alpaca and of Dolly.
_INSTRUCTIONS = (('instruction', 'input', 'output'), ('instruction', 'context', 'response'))
# (prompt, answer).
_PROMPTS = (('prompt', 'response'), ('prompt', 'completion'), ('question', 'answer'))
# Fields that are the prompt of a record whose answers have other names.
_ASKED = (('prompt',), ('question',), ('instruction', 'input'), ('instruction', 'context'), ('instruction',))
FORMS = (
    '"messages" or "conversations" (a list), "instruction" with "output" or "response", "prompt" with "response" or '
    '"completion", "question" with "answer"'
)


def read_record(record: Mapping[str, Any], where: str) -> tuple[list[dict[str, Any]], list[Any] | None]:
    """Returns (messages, tools or None) of a record of instruction data.

    Args:
      record: one of the forms that `FORMS` lists. Turns of ShareGPT, {'from': ..., 'value': ...}, become messages.
        "system" is a first message; "tools" are those that the answers may call; "weight" is that of every answer
        that has none of its own.
      where: the place of the record, for errors.

    Raises:
      ChatError: another form, or a field that is no text.
    """
    messages = _messages(record, where)
    if 'weight' in record:
        messages = [{'weight': record['weight']} | m if m.get('role') == 'assistant' else m for m in messages]
    if record.get('system'):
        messages = [{'role': 'system', 'content': _text(record, 'system', where)}, *messages]
    return messages, read_tools(record, where)


def read_tools(record: Mapping[str, Any], where: str) -> list[Any] | None:
    """Returns the schemas of the tools that a record names, or None; raises ChatError if they are no list."""
    tools = record.get('tools')
    if tools is not None and not isinstance(tools, list):
        raise ChatError(f'{where}: "tools" is {type(tools).__name__}; make it a list of schemas')
    return tools


def read_turns(turns: Any, where: str) -> list[dict[str, Any]]:
    """Returns the messages of a list of them, or of turns of ShareGPT; `where` is its place, for errors.

    Raises:
      ChatError: no such list, or an empty one.
    """
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, Mapping) for turn in turns):
        raise ChatError(f'{where} is no list of messages with at least one in it')
    return [_message(turn) for turn in turns]


def read_prompt(record: Mapping[str, Any], where: str) -> list[dict[str, Any]] | None:
    """Returns the messages that a record's answers are answers to, or None where it has no field for them.

    It is "prompt", text or messages, "question", or "instruction" with "input" or "context".

    Raises:
      ChatError: a field that is neither text nor messages.
    """
    if isinstance(record.get('prompt'), list):
        return read_turns(record['prompt'], f"{where}: 'prompt'")
    for name, *more in _ASKED:
        if name in record and all(other in record for other in more):
            return [{'role': 'user', 'content': _question(record, name, *more, where=where)}]
    return None


def _messages(record: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    for name in _LISTS:
        if name in record:
            return read_turns(record[name], f'{where}: {name!r}')
    for instruction, more, answer in _INSTRUCTIONS:
        if instruction in record and answer in record:
            return _pair(_question(record, instruction, more, where=where), _text(record, answer, where))
    for prompt, answer in _PROMPTS:
        if prompt in record and answer in record:
            return _pair(_text(record, prompt, where), _text(record, answer, where))
    raise ChatError(f'{where} has the fields {", ".join(map(repr, record))}; a conversation has {FORMS}')


def _message(turn: Mapping[str, Any]) -> dict[str, Any]:
    if 'from' not in turn or 'role' in turn:
        return dict(turn)
    names = {'from': 'role', 'value': 'content'}
    message = {names.get(name, name): value for name, value in turn.items()}
    return message | {'role': _SHAREGPT.get(message['role'], message['role'])}


# Speakers of ShareGPT -> roles.
_SHAREGPT = {'human': 'user', 'gpt': 'assistant', 'chatgpt': 'assistant', 'bing': 'assistant', 'bard': 'assistant'}


def _question(record: Mapping[str, Any], *names: str, where: str) -> str:
    """The texts of some fields, those that are empty left out."""
    return '\n\n'.join(_text(record, name, where) for name in names if record.get(name))


def _pair(question: str, answer: str) -> list[dict[str, Any]]:
    return [{'role': 'user', 'content': question}, {'role': 'assistant', 'content': answer}]


def _text(record: Mapping[str, Any], name: str, where: str) -> str:
    value = record[name]
    if not isinstance(value, str):
        raise ChatError(f'{where}: {name!r} is {type(value).__name__}; make it text')
    return value
