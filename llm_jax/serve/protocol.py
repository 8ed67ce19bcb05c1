"""Requests of OpenAI's API: JSON, checked field by field, becomes a `Completion` or a `ChatCompletion`."""

from collections.abc import Callable, Mapping
import dataclasses
import json
import math
from typing import Any

from llm_jax.chat.messages import check_json
from llm_jax.config.parts import nearest
from llm_jax.config.schema import ConfigError
from llm_jax.generate.settings import MAX_BIAS, Sampler
from llm_jax.serve.errors import ApiError

_NAMED_TOOL = '{"type": "function", "function": {"name": ...}}'
MAX_CHOICES, MAX_STOPS, MAX_LOGPROBS = 16, 16, 20
# Fields that say nothing to one model on one server; they are read and have no effect.
_IGNORED = frozenset(['user', 'store', 'metadata', 'service_tier', 'safety_identifier', 'prompt_cache_key'])


@dataclasses.dataclass(frozen=True)
class Options:
    """What both kinds of requests say.

    Attributes:
      model: name that was asked for; '' is any.
      n: choices of each prompt.
      max_tokens: most new tokens; None: what the context has room for.
      sampler: draws the tokens.
      seed: None draws one.
      stop: strings that end a choice.
      stream: whether the answer comes in events.
      include_usage: whether a last event has the usage.
      logprobs: number of the likeliest tokens beside each; None reports no log-probabilities.
    """

    model: str
    n: int
    max_tokens: int | None
    sampler: Sampler
    seed: int | None
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    logprobs: int | None


@dataclasses.dataclass(frozen=True)
class Completion:
    """A request to /v1/completions; each prompt is text or token ids."""

    options: Options
    prompts: tuple[str | tuple[int, ...], ...]
    echo: bool


@dataclasses.dataclass(frozen=True)
class ToolChoice:
    """Which calls an answer may have.

    Attributes:
      is_required: whether it has to call.
      name: of the one tool that it calls; '' is any.
      is_parallel: whether it may have several calls.
    """

    is_required: bool = False
    name: str = ''
    is_parallel: bool = True


@dataclasses.dataclass(frozen=True)
class ChatCompletion:
    """A request to /v1/chat/completions.

    Attributes:
      options: as of completions.
      messages: not yet checked; `Chat.render` does.
      tools: schemas; None is none.
      tool_choice: which of them are called.
      schema: of the answer's JSON; None leaves it free.
      variables: for the template.
    """

    options: Options
    messages: list[Any]
    tools: list[Any] | None
    tool_choice: ToolChoice
    schema: Any
    variables: dict[str, Any]


class Fields:
    """The fields of a request, each taken once; those that are left are unknown.

    null is the same as absent.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = {name: value for name, value in values.items() if value is not None}
        self._known: set[str] = set(_IGNORED)

    def take(self, name: str, check: Callable[[Any, str], Any], default: Any = None) -> Any:
        """Returns a field as `check(value, name)` does, or the default."""
        self._known.add(name)
        return check(self._values.pop(name), name) if name in self._values else default

    def close(self) -> None:
        """Raises: ApiError: a field that nothing has taken."""
        for name in self._values:
            if name not in _IGNORED:
                raise ApiError(400, f'{name} is no field of this request{nearest(name, sorted(self._known))}', name)


def parse_body(body: bytes) -> dict[str, Any]:
    """Reads the JSON object of a request.

    Raises:
      ApiError: no JSON, no object, NaN, half a character, or nested too deep.
    """

    def refuse(name: str) -> None:
        raise ValueError(f'{name} is no number of JSON')

    try:
        values = json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        reason = 'it is nested too deep' if isinstance(error, RecursionError) else error
        raise ApiError(400, f'the body is not JSON: {reason}', code='invalid_json') from None
    if not isinstance(values, dict):
        raise ApiError(400, f'the body is a JSON {type(values).__name__}; it must be an object', code='invalid_json')
    try:
        return check_json(values, 'the body')
    except ConfigError as error:
        raise ApiError(400, str(error), code='invalid_json') from None


def parse_chat(values: Mapping[str, Any]) -> ChatCompletion:
    """Raises: ApiError: a field that is missing, unknown, of another type or out of its range."""
    fields = Fields(values)
    messages = fields.take('messages', _list)
    if messages is None:
        raise ApiError(400, 'messages is missing; give a list such as [{"role": "user", "content": "Hi"}]', 'messages')
    wants, top = fields.take('logprobs', _bool, False), fields.take('top_logprobs', _int(0, MAX_LOGPROBS))
    if top is not None and not wants:
        raise ApiError(400, 'top_logprobs needs logprobs = true', 'top_logprobs')
    old, new = fields.take('max_tokens', _int(1)), fields.take('max_completion_tokens', _int(1))
    tools, choice = _parse_tools(fields)
    request = ChatCompletion(
        _parse_options(fields, (top or 0) if wants else None, old if new is None else new),
        messages,
        tools,
        choice,
        fields.take('response_format', _response_schema),
        fields.take('chat_template_kwargs', _dict, {}),
    )
    fields.close()
    if choice.is_required and request.schema is not None:
        raise ApiError(
            400, 'an answer that has to call a tool has no other response_format; leave one out', 'tool_choice'
        )
    return request


def _parse_tools(fields: Fields) -> tuple[list[Any] | None, ToolChoice]:
    """Returns the tools that may be called, None where none may, and which of them are."""
    tools, choice = fields.take('tools', _list), fields.take('tool_choice', _any, 'auto')
    is_parallel = fields.take('parallel_tool_calls', _bool, True)
    if choice == 'none' or (choice == 'auto' and not tools):
        return None, ToolChoice()
    if choice == 'auto':
        return tools, ToolChoice(is_parallel=is_parallel)
    function = choice.get('function') if isinstance(choice, dict) and choice.get('type') == 'function' else None
    name = function.get('name') if isinstance(function, dict) else None
    if choice != 'required' and not (isinstance(name, str) and name):
        raise _refuse(choice, 'tool_choice', "'none', 'auto', 'required' or " + _NAMED_TOOL)
    if not tools:
        raise ApiError(400, 'tool_choice needs tools; give at least one', 'tools')
    return tools, ToolChoice(True, name or '', is_parallel and not name)


def parse_completion(values: Mapping[str, Any]) -> Completion:
    """Raises: ApiError: as `parse_chat`."""
    fields = Fields(values)
    prompts = fields.take('prompt', _prompts)
    if prompts is None:
        raise ApiError(400, "prompt is missing; give text, or a list of token ids ('' begins a document)", 'prompt')
    logprobs, echo = fields.take('logprobs', _int(0, MAX_LOGPROBS)), fields.take('echo', _bool, False)
    if echo and logprobs is not None:
        raise ApiError(400, 'echo does not go with logprobs, which are those of new tokens; leave one out', 'echo')
    best_of = fields.take('best_of', _int(1, MAX_CHOICES))
    options = _parse_options(fields, logprobs, fields.take('max_tokens', _int(1), 16))
    if best_of not in (None, options.n):
        raise ApiError(400, f'best_of = {best_of} must be n = {options.n}; ask for n and choose', 'best_of')
    fields.close()
    return Completion(options, prompts, echo)


def _parse_options(fields: Fields, logprobs: int | None, max_tokens: int | None) -> Options:
    number = lambda name, low, high, default: fields.take(name, _number(low, high), default)
    # Ranges are OpenAI's; `Sampler` checks those of the others.
    sampler = {
        'temperature': number('temperature', 0, 2, 1.0),
        'top_p': number('top_p', 0, 1, 1.0),
        'frequency_penalty': number('frequency_penalty', -2, 2, 0.0),
        'presence_penalty': number('presence_penalty', -2, 2, 0.0),
        'logit_bias': fields.take('logit_bias', _bias, {}),
        'top_k': fields.take('top_k', _int(0, 2**31 - 1), 0),
        'min_p': number('min_p', 0, 1, 0.0),
        'typical_p': number('typical_p', 0, 1, 1.0),
        'repetition_penalty': number('repetition_penalty', 0, 1e6, 1.0),
    }
    try:
        made = Sampler(**sampler)
    except ConfigError as error:
        raise ApiError(400, str(error), str(error).partition(' ')[0]) from None
    seed = fields.take('seed', _int(-(2**63), 2**64 - 1))
    stream, more = fields.take('stream', _bool, False), fields.take('stream_options', _dict)
    if more is not None and not stream:
        raise ApiError(400, 'stream_options needs stream = true', 'stream_options')
    parts = Fields(more or {})
    include_usage = parts.take('include_usage', _bool, False)
    parts.take('include_obfuscation', _bool)
    parts.close()
    return Options(
        fields.take('model', _text, ''), fields.take('n', _int(1, MAX_CHOICES), 1), max_tokens, made,
        None if seed is None else seed % 2**64, fields.take('stop', _stops, ()), stream, include_usage, logprobs,
    )  # fmt: skip


def _refuse(value: Any, name: str, need: str) -> ApiError:
    return ApiError(400, f'{name} = {_short(value)} must be {need}', name)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f'{text[:57]}...'


def _any(value: Any, name: str) -> Any:
    return value


def _typed(kind: type, need: str) -> Callable[[Any, str], Any]:
    def check(value: Any, name: str) -> Any:
        if not isinstance(value, kind):
            raise _refuse(value, name, need)
        return value

    return check


_bool, _text = _typed(bool, 'true or false'), _typed(str, 'text')
_list, _dict = _typed(list, 'a list'), _typed(dict, 'an object')


def _int(low: int, high: int = 2**31 - 1) -> Callable[[Any, str], int]:
    def check(value: Any, name: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _refuse(value, name, f'an integer from {low} to {high}')
        return value

    return check


def _number(low: float, high: float) -> Callable[[Any, str], float]:
    def check(value: Any, name: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise _refuse(value, name, f'a number from {low} to {high}')
        return float(value)

    return check


def _bias(value: Any, name: str) -> dict[int, float]:
    out = {}
    if len(_dict(value, name)) > MAX_BIAS:
        raise ApiError(400, f'{name} has {len(value)} ids; {MAX_BIAS} are the most', name)
    for key, bias in value.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise ApiError(400, f'{name} has the key {_short(key)}; keys are token ids, such as "42"', name)
        out[int(key)] = _number(-100, 100)(bias, f'{name}.{key}')
    return out


def _stops(value: Any, name: str) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else _list(value, name)
    if len(stops) > MAX_STOPS or not all(isinstance(stop, str) and stop for stop in stops):
        raise _refuse(value, name, f'a text, or a list of at most {MAX_STOPS} texts, none of them empty')
    return tuple(stops)


def _prompts(value: Any, name: str) -> tuple[str | tuple[int, ...], ...]:
    is_ids = lambda x: isinstance(x, list) and x and all(type(i) is int and 0 <= i < 2**31 for i in x)
    if isinstance(value, str) or is_ids(value):
        value = [value]
    if not isinstance(value, list) or not value or not all(isinstance(one, str) or is_ids(one) for one in value):
        raise _refuse(value, name, 'text, a list of token ids, or a list of such prompts')
    if len(value) > MAX_CHOICES:
        raise ApiError(400, f'{name} has {len(value)} prompts; {MAX_CHOICES} are the most of one request', name)
    return tuple(one if isinstance(one, str) else tuple(one) for one in value)


def _response_schema(value: Any, name: str) -> Any:
    """Returns the schema of the answer; None where it is text."""
    kind = _dict(value, name).get('type')
    if kind == 'text':
        return None
    if kind == 'json_object':
        return {'type': 'object'}
    if kind != 'json_schema':
        raise _refuse(kind, f'{name}.type', 'text, json_object or json_schema')
    inner = value.get('json_schema')
    if not isinstance(inner, dict) or not isinstance(inner.get('schema'), dict):
        raise ApiError(400, f'{name}.json_schema must be {{"name": ..., "schema": {{...}}}}', name)
    return inner['schema']


def finite(log_prob: float) -> float:
    """Returns a log-probability as JSON has it: OpenAI writes -9999 for a token that cannot come."""
    return log_prob if math.isfinite(log_prob) else -9999.0
