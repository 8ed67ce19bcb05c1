"""Messages of a conversation: their form, and its checks.

A message is a mapping as in OpenAI's API and Hugging Face's templates, `{'role': ..., 'content': ...}`, or a `Message`.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import math
from typing import Any

from llm_jax.config.parts import nearest
from llm_jax.config.schema import ConfigError

ROLES = ('system', 'user', 'assistant', 'tool', 'developer')
# Names that other formats have for these.
_OTHER_ROLES = {
    'human': 'user', 'gpt': 'assistant', 'bot': 'assistant', 'model': 'assistant', 'ai': 'assistant',
    'chatgpt': 'assistant', 'function': 'tool', 'ipython': 'tool', 'observation': 'tool', 'prompter': 'user',
}  # fmt: skip
# Fields of thoughts, as models write them before an answer; templates know one or another.
REASONING = ('reasoning_content', 'thinking', 'reasoning')
_FIELDS = ('role', 'content', 'name', 'tool_calls', 'tool_call_id', 'weight', *REASONING)
_MAX_DEPTH = 64


class ChatError(ConfigError):
    """A conversation, a template or a tool that cannot be used; the message says what and how to fix it."""


@dataclasses.dataclass(frozen=True)
class ToolCall:
    """A call of a tool, as an assistant's message has it.

    Attributes:
      name: of the function.
      arguments: name -> value; or the text of that JSON object, which need not be valid if a model wrote it.
      id: by which the tool's message names the call; '' is none.
    """

    name: str
    arguments: Mapping[str, Any] | str
    id: str = ''

    def to_dict(self) -> dict[str, Any]:
        """The form of OpenAI's API."""
        call = {'type': 'function', 'function': {'name': self.name, 'arguments': self.arguments}}
        return {'id': self.id} | call if self.id else call


@dataclasses.dataclass(frozen=True)
class Message:
    """One message.

    Attributes:
      role: one of `ROLES`.
      content: text, or text parts `{'type': 'text', 'text': ...}`; None only where there are tool calls.
      name: of the speaker, or of the tool that answers; '' is none.
      tool_calls: of an assistant.
      tool_call_id: of a tool: the call that it answers; '' is none.
      reasoning: an assistant's thoughts before the content; '' is none.
      weight: of an assistant's tokens in the training loss; 0 trains on none of them.
    """

    role: str
    content: str | Sequence[Mapping[str, Any]] | None = None
    name: str = ''
    tool_calls: Sequence[ToolCall] = ()
    tool_call_id: str = ''
    reasoning: str = ''
    weight: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """The mapping that templates read; fields that are empty are left out, but for the content."""
        out: dict[str, Any] = {'role': self.role}
        if self.content is not None:
            out['content'] = self.content if isinstance(self.content, str) else [dict(part) for part in self.content]
        optional = {
            'name': self.name,
            'reasoning_content': self.reasoning,
            'tool_calls': [call.to_dict() for call in self.tool_calls],
            'tool_call_id': self.tool_call_id,
            'weight': self.weight if self.weight != 1 else None,
        }
        return (
            out
            | {name: value for name, value in optional.items() if value}
            | ({'weight': self.weight} if self.weight != 1 else {})
        )


def from_dict(message: Mapping[str, Any], where: str = 'message') -> Message:
    """A `Message` of a mapping; content parts stay parts.

    Raises:
      ChatError: as `check`, naming `where`.
    """
    plain = _check_message(message, where)
    calls = []
    for call in plain.get('tool_calls', ()):
        function = call.get('function', call)
        calls.append(ToolCall(function['name'], function.get('arguments', {}), call.get('id', '')))
    reasoning = next((plain[name] for name in REASONING if name in plain), '')
    content = plain.get('content')
    return Message(
        plain['role'],
        tuple(content) if isinstance(content, list) else content,
        plain.get('name', ''),
        tuple(calls),
        plain.get('tool_call_id', ''),
        reasoning,
        plain.get('weight', 1.0),
    )


def check(messages: Sequence[Mapping[str, Any] | Message]) -> list[dict[str, Any]]:
    """Checks a conversation and copies it.

    Returns:
      plain mappings with the fields in the order they were given, without those that are None.

    Raises:
      ChatError: the first mistake: 'messages[3].content = 5: ...', with the fix.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise ChatError(
            f'messages is {_short(messages)}; it must be a list such as [{{"role": "user", "content": "Hi"}}]'
        )
    if not messages:
        raise ChatError('messages is empty; give at least one, such as {"role": "user", "content": "Hi"}')
    return [_check_message(message, f'messages[{i}]') for i, message in enumerate(messages)]


def parse_arguments(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Copies checked messages with the arguments of tool calls as objects, where they are the JSON text of one.

    OpenAI's clients send text; most templates write `arguments | tojson` and so want the object.
    """

    def parsed(call: Mapping[str, Any]) -> dict[str, Any]:
        if 'function' in call:
            return dict(call) | {'function': parsed(call['function'])}
        try:
            value = json.loads(call['arguments'])
        except (KeyError, TypeError, ValueError, RecursionError):  # none, an object already, or no JSON: stays as it is
            return dict(call)
        return dict(call) | ({'arguments': value} if isinstance(value, dict) else {})

    return [
        dict(message) | ({'tool_calls': [parsed(c) for c in message['tool_calls']]} if 'tool_calls' in message else {})
        for message in messages
    ]


def text_of(message: Mapping[str, Any]) -> str:
    """The content of a checked message as one text; '' if it has none."""
    content = message.get('content') or ''
    return content if isinstance(content, str) else ''.join(part['text'] for part in content)


def check_json(value: Any, where: str, depth: int = 0) -> Any:
    """Copies a value of JSON's types.

    Raises:
      ChatError: naming `where`: another type, NaN, a lone surrogate, or nesting deeper than 64.
    """
    if depth > _MAX_DEPTH:
        raise ChatError(f'{where} is nested deeper than {_MAX_DEPTH}; flatten it')
    if isinstance(value, str):
        return check_text(value, where)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ChatError(f'{where} = {value!r}: JSON has no such number; use null or a text')
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ChatError(f'{where} has the key {key!r}; keys must be text')
            check_text(key, f'a key of {where}')
        return {key: check_json(one, f'{where}.{key}', depth + 1) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [check_json(one, f'{where}[{i}]', depth + 1) for i, one in enumerate(value)]
    raise ChatError(f'{where} = {_short(value)}: {type(value).__name__} is no type of JSON')


def check_text(value: Any, where: str) -> str:
    """A text that has UTF-8.

    Raises:
      ChatError: naming `where`: no text, or one with a lone surrogate.
    """
    if not isinstance(value, str):
        raise ChatError(f'{where} = {_short(value)}: it must be text, not {type(value).__name__}')
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ChatError(
            f'{where} has the lone surrogate {value[error.start]!r} at {error.start}, half a character; remove it'
        ) from error
    return str(value)


def _check_message(message: Any, where: str) -> dict[str, Any]:
    if isinstance(message, Message):
        message = message.to_dict()
    if not isinstance(message, Mapping):
        raise ChatError(f'{where} is {_short(message)}; it must be like {{"role": "user", "content": "Hi"}}')
    given = {name: value for name, value in message.items() if value is not None}
    role = given.get('role')
    if role not in ROLES if isinstance(role, str) else True:
        hint = f'; did you mean {_OTHER_ROLES[role]!r}?' if role in (*_OTHER_ROLES,) else nearest(str(role), ROLES)
        raise ChatError(f'{where}.role = {role!r} is unknown{hint} Roles are {", ".join(ROLES)}')
    for name in given:
        if name not in _FIELDS:
            raise ChatError(
                f'{where}.{name} is no field of a message{nearest(name, _FIELDS)} It has {", ".join(_FIELDS)}'
            )
        only = {'tool_calls': 'assistant', 'tool_call_id': 'tool', 'weight': 'assistant'} | dict.fromkeys(
            REASONING, 'assistant'
        )
        if role != only.get(name, role):
            raise ChatError(f'{where}.{name}: only the role {only[name]!r} has it, not {role!r}; remove it')
    checks = {'content': _check_content, 'tool_calls': _check_calls, 'weight': _check_weight}
    out = {name: checks.get(name, check_text)(value, f'{where}.{name}') for name, value in given.items()}
    if 'name' in out and not out['name']:
        raise ChatError(f'{where}.name is empty; leave it out, or give a name')
    if 'content' not in out and not (role == 'assistant' and (out.get('tool_calls') or set(REASONING) & set(out))):
        raise ChatError(f'{where}.content is missing; only an assistant that calls tools may have none')
    return out


def _check_content(value: Any, where: str) -> str | list[dict[str, Any]]:
    if isinstance(value, str):
        return check_text(value, where)
    if not isinstance(value, list | tuple):
        raise ChatError(f'{where} = {_short(value)}: it must be text, or a list of {{"type": "text", "text": ...}}')
    parts = []
    for i, part in enumerate(value):
        at = f'{where}[{i}]'
        if not isinstance(part, Mapping) or 'type' not in part:
            raise ChatError(f'{at} = {_short(part)}: a part is {{"type": "text", "text": ...}}')
        if part['type'] != 'text':
            raise ChatError(f'{at}.type = {part["type"]!r}: models here read text alone; leave the part out')
        if unknown := sorted(map(str, set(part) - {'type', 'text'})):
            raise ChatError(f'{at}.{unknown[0]} is no field of a text part; it has type and text')
        parts.append(dict(part) | {'text': check_text(part.get('text'), f'{at}.text')})
    return parts


def _check_calls(value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list | tuple):
        raise ChatError(f'{where} = {_short(value)}: it must be a list of calls')
    return [_check_call(call, f'{where}[{i}]') for i, call in enumerate(value)]


def _check_call(call: Any, where: str) -> dict[str, Any]:
    if isinstance(call, ToolCall):
        call = call.to_dict()
    if not isinstance(call, Mapping):
        raise ChatError(f'{where} = {_short(call)}: a call is {{"function": {{"name": ..., "arguments": {{...}}}}}}')
    out = {name: value for name, value in call.items() if value is not None}
    is_flat = 'function' not in out
    known = ('id', 'type', 'index', *(('name', 'arguments') if is_flat else ('function',)))
    for name in out:
        if name not in known:
            raise ChatError(
                f'{where}.{name} is no field of a call{nearest(str(name), known)} It has {", ".join(known)}'
            )
    if out.get('type', 'function') != 'function':
        raise ChatError(f"{where}.type = {out['type']!r}: the only type is 'function'")
    if 'id' in out:
        check_text(out['id'], f'{where}.id')
    function, at = (out, where) if is_flat else (out['function'], f'{where}.function')
    if not isinstance(function, Mapping):
        raise ChatError(f'{at} = {_short(function)}: it must be {{"name": ..., "arguments": {{...}}}}')
    if not check_text(function.get('name'), f'{at}.name'):
        raise ChatError(f'{at}.name is empty; name the function')
    function = dict(function)
    if isinstance(arguments := function.get('arguments', {}), str):
        check_text(arguments, f'{at}.arguments')
    elif isinstance(arguments, Mapping):
        function |= {'arguments': check_json(arguments, f'{at}.arguments')}
    else:
        raise ChatError(f'{at}.arguments = {_short(arguments)}: it must be an object, or its JSON as text')
    return function if is_flat else out | {'function': function}


def _check_weight(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
        raise ChatError(f'{where} = {_short(value)}: it must be a number of at least 0; 0 trains on none of its tokens')
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f'{text[:57]}...'
