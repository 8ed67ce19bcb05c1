"""Tools that a model may call: their schemas, and calls in the text that models write."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import enum
import inspect
import json
import re
import types
import typing
from typing import Any

from llm_jax.chat.messages import ChatError, ToolCall, check_json, check_text

# --- Schemas ---------------------------------------------------------------------------

_TYPES = {
    int: 'integer', float: 'number', str: 'string', bool: 'boolean', list: 'array', tuple: 'array', dict: 'object',
}  # fmt: skip
_SCALARS = {int: 'integer', float: 'number', str: 'string', bool: 'boolean', type(None): 'null'}
_SECTION = re.compile(r'^[ \t]*(Args|Arguments|Returns|Raises|Yields):[ \t]*$', re.MULTILINE)


def schema(tool: Mapping[str, Any] | Callable, where: str = 'tool') -> dict[str, Any]:
    """The schema of a tool, as OpenAI's API and chat templates have it.

    Args:
      tool: a schema, which is checked; or a function with type hints and a docstring that describes it, and each of its
        arguments in a section "Args:".
      where: for errors.

    Raises:
      ChatError: a schema without a name, or a function that lacks a hint or a description.
    """
    if callable(tool):
        return _of_function(tool, where)
    if not isinstance(tool, Mapping):
        raise ChatError(f'{where} is {type(tool).__name__}; it must be a schema or a function')
    plain = check_json(tool, where)
    function = plain.get('function', plain)
    if not isinstance(function, Mapping) or not function.get('name'):
        raise ChatError(
            f'{where} has no name; write {{"type": "function", "function": {{"name": ..., "parameters": ...}}}}'
        )
    check_text(function['name'], f'{where}.name')
    return plain


def _of_function(function: Callable, where: str) -> dict[str, Any]:
    name = getattr(function, '__name__', type(function).__name__)
    where = f'{where} ({name})'
    doc = inspect.getdoc(function) or ''
    if not doc.strip():
        raise ChatError(f'{where} has no docstring; describe what the function does, and its arguments under "Args:"')
    described = _argument_texts(doc)
    hints = typing.get_type_hints(function)
    properties: dict[str, Any] = {}
    required = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ChatError(f'{where}: a model cannot fill {parameter}; name each argument')
        if parameter.name not in hints:
            raise ChatError(f'{where}: the argument {parameter.name!r} has no type hint; add one')
        if parameter.name not in described:
            raise ChatError(
                f'{where}: the docstring does not describe the argument {parameter.name!r}; add it to "Args:"'
            )
        if parameter.default is parameter.empty:
            required.append(parameter.name)
        one = _of_type(hints[parameter.name], f'{where}, argument {parameter.name!r}')
        properties[parameter.name] = one | {'description': described[parameter.name]}
    parameters = {'type': 'object', 'properties': properties} | ({'required': required} if required else {})
    description = _SECTION.split(doc)[0].strip()
    return {'type': 'function', 'function': {'name': name, 'description': description, 'parameters': parameters}}


def _of_type(hint: Any, where: str) -> dict[str, Any]:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return {}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _of_values([member.value for member in hint], where)
    if origin is typing.Literal:
        return _of_values(list(args), where)
    if origin in (typing.Union, types.UnionType):
        kinds = [_of_type(one, where) for one in args if one is not type(None)]
        if len(kinds) == 1:
            out = kinds[0]
        elif all(kind.keys() == {'type'} for kind in kinds):
            out = {'type': sorted({kind['type'] for kind in kinds})}
        else:
            out = {'anyOf': kinds}
        return out | ({'nullable': True} if type(None) in args else {})
    if origin is list:
        return {'type': 'array', 'items': _of_type(args[0], where)}
    if origin is tuple and Ellipsis not in args:
        return {'type': 'array', 'prefixItems': [_of_type(one, where) for one in args]}
    if origin is dict:
        return {'type': 'object', 'additionalProperties': _of_type(args[1], where)}
    if hint in _TYPES:
        return {'type': _TYPES[hint]}
    raise ChatError(
        f'{where}: no JSON schema is known for the type {hint!r}; take int, float, str, bool, Literal, an Enum, or '
        'lists, dicts and unions of these, or write the schema instead of the function'
    )


def _of_values(values: list[Any], where: str) -> dict[str, Any]:
    if not values or any(type(value) not in _SCALARS for value in values):
        raise ChatError(f'{where}: the choices {values!r} are not numbers, texts, true, false or null')
    kinds = list(dict.fromkeys(_SCALARS[type(value)] for value in values))
    return {'type': kinds[0] if len(kinds) == 1 else kinds, 'enum': values}


def _argument_texts(doc: str) -> dict[str, str]:
    """Name -> description of each argument in the section "Args:" of a docstring."""
    parts = _SECTION.split(doc)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    body = inspect.cleandoc(sections.get('Args', sections.get('Arguments', '')).lstrip('\n'))
    out: dict[str, str] = {}
    name = ''
    for line in body.split('\n'):
        match = re.match(r'\*{0,2}(\w+)\s*(\([^)]*\))?:\s*(.*)', line)
        if match and not line[:1].isspace():
            name = match[1]
            out[name] = match[3].strip()
        elif name and line.strip():
            out[name] = f'{out[name]} {line.strip()}'.strip()
    return out


# --- Calls in text ---------------------------------------------------------------------

_OPEN, _CLOSE = '<tool_call>', '</tool_call>'
_PYTHON_TAG = '<|python_tag|>'
FORMS = ('hermes', 'llama3')
# Names of the arguments in a call.
_ARGUMENTS = {'hermes': 'arguments', 'llama3': 'parameters'}


def detect_form(source: str) -> str:
    """The form in which a model of this chat template writes calls; '' if it is none of `FORMS`."""
    if _OPEN in source and '"arguments"' in source:  # others write arguments as XML
        return 'hermes'
    return 'llama3' if _PYTHON_TAG in source or '"parameters": ' in source else ''


def call_schema(tool: Mapping[str, Any], form: str) -> dict[str, Any]:
    """The JSON schema of a call of a tool, as a model writes it in a form of `FORMS`; see `around_calls`.

    Args:
      tool: a schema, as `schema` returns it.
      form: one of `FORMS`.
    """
    function = tool.get('function', tool)
    parameters = dict(function.get('parameters') or {'type': 'object', 'additionalProperties': False})
    # References are looked up from the root.
    shared = {key: parameters.pop(key) for key in ('$defs', 'definitions') if key in parameters}
    properties = {'name': {'const': function['name']}, _ARGUMENTS[form]: parameters}
    required = {'required': list(properties), 'additionalProperties': False}
    return {'type': 'object', 'properties': properties} | required | shared


def around_calls(form: str) -> tuple[str, str, str]:
    """The texts before, after and between calls in a form of `FORMS`."""
    return (f'{_OPEN}\n', f'\n{_CLOSE}', '\n') if form == 'hermes' else ('', '', '; ')


def write_calls(calls: Sequence[ToolCall], form: str) -> str:
    """The text of calls, as a model writes it.

    Args:
      calls: at least one.
      form: 'hermes', <tool_call>{"name": ..., "arguments": ...}</tool_call>; or
        'llama3', {"name": ..., "parameters": ...}.
    """
    before, after, between = around_calls(form)
    texts = []
    for call in calls:
        arguments = (
            call.arguments if isinstance(call.arguments, str) else json.dumps(call.arguments, ensure_ascii=False)
        )
        name = json.dumps(call.name, ensure_ascii=False)
        texts.append(f'{before}{{"name": {name}, "{_ARGUMENTS[form]}": {arguments}}}{after}')
    return between.join(texts)


@dataclasses.dataclass(frozen=True)
class Parsed:
    """What a piece of an answer added: text for its content, and calls that are complete."""

    text: str = ''
    calls: tuple[ToolCall, ...] = ()


class Parser:
    """Calls in an answer, as its text comes; text that may yet be a call is held back, and nothing is lost.

    What looks like a call and is none is content. White space beside calls is dropped.
    """

    def __init__(self, form: str, make_id: Callable[[], str] = lambda: ''):
        """Args:
          form: one of `FORMS`; '' parses nothing.
          make_id: gives each call its id.

        Raises:
          ChatError: an unknown form.
        """
        if form not in ('', *FORMS):
            raise ChatError(f'tools are written in the form {form!r}, which is unknown; known are {", ".join(FORMS)}')
        self._step = {'': self._step_text, 'hermes': self._step_hermes, 'llama3': self._step_llama3}[form]
        self._make_id = make_id
        self._held = ''
        self._called = self._is_behind_call = False

    def push(self, text: str) -> Parsed:
        """Takes the next piece of the answer."""
        self._held += text
        return self._collect(is_end=False)

    def close(self) -> Parsed:
        """Ends the answer: what was held back comes out."""
        return self._collect(is_end=True)

    def _collect(self, *, is_end: bool) -> Parsed:
        texts, calls = [], []
        while (event := self._step(is_end)) is not None:
            if isinstance(event, str):
                texts.append(event)
            else:
                calls += event
                self._called = self._is_behind_call = True
        return Parsed(''.join(texts), tuple(calls))

    def _take(self, count: int) -> str | None:
        """The first characters that are held; None if that is none."""
        taken, self._held = self._held[:count], self._held[count:]
        return taken or None

    def _step_text(self, is_end: bool) -> str | None:
        return self._take(len(self._held))

    def _step_hermes(self, is_end: bool) -> str | list[ToolCall] | None:
        held = self._held
        at = held.find(_OPEN)
        if at < 0:
            safe = len(held) if is_end else len(held) - _overlap(held, _OPEN)
            return self._take_content(held[:safe], is_end=is_end)
        if held[:at].strip():
            self._held = held[len(held[:at].rstrip()) :]
            return self._content(held[:at].rstrip())
        for close in re.finditer(re.escape(_CLOSE), held[at:]):
            body = held[at + len(_OPEN) : at + close.start()]
            call = self._call(body)
            if call is not None:
                self._held = held[at + close.end() :]
                return [call]
            if not _ends_in_string(body):
                return self._take(at + close.end())
        return self._take(len(held)) if is_end else None

    def _take_content(self, safe: str, *, is_end: bool) -> str | None:
        """Content without the white space at its end, which goes if a call follows."""
        body = safe if is_end else safe.rstrip()
        if is_end and self._called and not body.strip():
            self._held = ''
            return None
        self._held = self._held[len(body) :]
        return self._content(body) if body else None

    def _content(self, text: str) -> str:
        text, self._is_behind_call = text.lstrip() if self._is_behind_call else text, False
        return text

    def _step_llama3(self, is_end: bool) -> str | list[ToolCall] | None:
        held = self._held
        body = held.lstrip(' \t\r\n;' if self._called else None)
        tag = body.startswith(_PYTHON_TAG)
        start = body[len(_PYTHON_TAG) :].lstrip() if tag else body
        if self._plain or not is_end and not start:
            if self._plain:
                return self._take(len(held))
            return None
        if not start:
            self._held = ''
            return None if self._called else held or None
        if not is_end and _PYTHON_TAG.startswith(body):
            return None
        if not re.match(r'\{\s*("|$)', start):
            return self._all_text()
        try:
            _, end = json.JSONDecoder().raw_decode(start)
        except (ValueError, RecursionError):
            return self._all_text() if is_end else None
        call = self._call(start[:end])
        if call is None:
            return self._all_text()
        self._held = start[end:]
        return [call]

    _plain = False

    def _all_text(self) -> str | None:
        """The rest of the answer is text."""
        self._plain = True
        return self._take(len(self._held))

    def _call(self, text: str) -> ToolCall | None:
        """The call that a JSON object is; None if it is none."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, dict) or not isinstance(value.get('name'), str) or not value['name']:
            return None
        arguments = value.get('arguments', value.get('parameters', {}))
        if isinstance(arguments, dict):
            arguments = json.dumps(arguments, ensure_ascii=False)
        return ToolCall(value['name'], arguments, self._make_id()) if isinstance(arguments, str) else None


def parse_calls(text: str, form: str, make_id: Callable[[], str] = lambda: '') -> Parsed:
    """Content and calls of a whole answer; see `Parser`."""
    parser = Parser(form, make_id)
    first, rest = parser.push(text), parser.close()
    return Parsed(first.text + rest.text, first.calls + rest.calls)


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of a text that begins a mark."""
    return next((k for k in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:k])), 0)


def _ends_in_string(text: str) -> bool:
    """Whether JSON that ends here ends within a text of it."""
    return len(re.findall(r'"', re.sub(r'\\.', '', text, flags=re.DOTALL))) % 2 == 1
