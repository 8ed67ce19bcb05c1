"""Chat templates: Jinja as Hugging Face's `apply_chat_template` runs it, byte for byte."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import contextvars
import dataclasses
import datetime
import functools
import json
import re
from typing import Any

import jinja2
from jinja2 import ext, nodes, sandbox

from llm_jax.chat.messages import REASONING, ChatError


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a template reads besides the messages.

    Attributes:
      tools: schemas, as `tools.schema` makes them; None is none.
      documents: of retrieval; None is none.
      variables: further ones, such as enable_thinking=False; tokens (bos_token, ...) among them.
      now: the date and time of `strftime_now`.
    """

    tools: Sequence[Mapping[str, Any]] | None = None
    documents: Sequence[Mapping[str, Any]] | None = None
    variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    now: datetime.datetime = dataclasses.field(default_factory=datetime.datetime.now)


# The characters that stand for something else while a template runs: `tojson` must not escape them.
_kept: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar('kept', default=())
# What `{% generation %}` writes around its text; None: nothing.
_brackets: contextvars.ContextVar[tuple[str, str] | None] = contextvars.ContextVar('brackets', default=None)


class Template:
    """A compiled template.

    Attributes:
      source: Jinja.
      name: for errors.
      marks_generation: whether it says by `{% generation %}` what the assistant wrote.
      literals: the texts in it that it may write or look for.
    """

    def __init__(self, source: str, name: str = 'the chat template'):
        """Compiles.

        Raises:
          ChatError: the source is no Jinja.
        """
        self.source, self.name = source, name
        try:
            tree = _environment().parse(source)
            self._template = _environment().from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            line = f', line {error.lineno}' if getattr(error, 'lineno', None) else ''
            raise ChatError(f'{name}{line}: it is no Jinja template: {error}; correct it') from error
        self.marks_generation = any(
            isinstance(call.call, nodes.Call)
            and isinstance(call.call.node, nodes.ExtensionAttribute)
            and call.call.node.name == '_write_generation'
            for call in tree.find_all(nodes.CallBlock)
        )
        constants = {one.value for one in tree.find_all(nodes.Const) if isinstance(one.value, str)}
        self.literals = tuple(constants | {one.data for one in tree.find_all(nodes.TemplateData)})

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        inputs: Inputs,
        *,
        add_generation_prompt: bool = False,
        kept: Sequence[str] = (),
        brackets: tuple[str, str] | None = None,
    ) -> str:
        """Renders a conversation.

        Args:
          messages: checked ones.
          inputs: what else it reads.
          add_generation_prompt: whether to end with what begins an assistant's message.
          kept: characters that `tojson` leaves as they are, also with ensure_ascii.
          brackets: what to write before and after each `{% generation %}` block.

        Raises:
          ChatError: the template refuses the conversation, or fails on it.
        """
        variables = {
            'messages': [_with_reasoning(message) for message in messages],
            'tools': inputs.tools,
            'documents': inputs.documents,
            'add_generation_prompt': add_generation_prompt,
            'strftime_now': inputs.now.strftime,
        }
        with _set(_kept, tuple(kept)), _set(_brackets, brackets), self._explained():
            return self._template.render(**variables | dict(inputs.variables))

    def render_open(
        self, messages: Sequence[Mapping[str, Any]], inputs: Inputs, field: str, tag: str, kept: Sequence[str] = ()
    ) -> str:
        """Renders a conversation up to the end of a field of its last message, which a model is to continue.

        Args:
          messages: checked ones.
          inputs: what else it reads.
          field: of the last message: 'content', or one of its thoughts.
          tag: a character that occurs nowhere.
          kept: as of `render`.

        Raises:
          ChatError: there is nothing to continue, or the template does not write the field.
        """
        last, where = dict(messages[-1]), f'messages[{len(messages) - 1}].{field}'
        if last.get(field) is None:
            raise ChatError(
                f'{where} is missing, so there is nothing to continue; give a text that the answer begins with'
            )
        if isinstance(last[field], str):
            names = REASONING if field in REASONING else (field,)
            text = last[field]
            last |= {name: text + tag + ' ' for name in names if last.get(name) == text}
        else:
            parts = [dict(part) for part in last[field]]
            if not parts:
                raise ChatError(f'{where} has no text to continue; give a text that the answer begins with')
            parts[-1]['text'] += tag + ' '
            last[field] = parts
        text = self.render([*messages[:-1], last], inputs, kept=(*kept, tag))
        at = text.rfind(tag)
        if at < 0:
            raise ChatError(
                f'{self.name} does not write {where}, so it cannot be continued; end with a message of a user'
            )
        # The space behind the tag is gone where a template strips the field, and then so is white space before it.
        return text[:at] if text[at + 1 : at + 2] == ' ' else text[:at].rstrip()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except _Refused as error:
            raise ChatError(f'{self.name} refuses the conversation: {error}') from error
        except jinja2.TemplateError as error:
            raise ChatError(f'{self.name} fails on the conversation: {error}') from error
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise ChatError(f'{self.name} fails on the conversation: {type(error).__name__}: {error}') from error


class _Refused(jinja2.TemplateError):
    """What `raise_exception` of a template raises."""


@contextlib.contextmanager
def _set(variable: contextvars.ContextVar, value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


class _Generation(ext.Extension):
    """`{% generation %}...{% endgeneration %}`: what the assistant wrote."""

    tags = {'generation'}

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
        return nodes.CallBlock(self.call_method('_write_generation'), [], [], body).set_lineno(line)

    def _write_generation(self, caller: Any) -> str:
        before, after = _brackets.get() or ('', '')
        return f'{before}{caller()}{after}'


@functools.cache
def _environment() -> sandbox.ImmutableSandboxedEnvironment:
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols]
    )
    environment.filters['tojson'] = _to_json
    environment.globals |= {'raise_exception': _refuse, 'dict': _Dict(), 'namespace': _Namespace}
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    if ensure_ascii:
        for char in _kept.get():
            text = text.replace(json.dumps(char)[1:-1], char)
    return text


def _refuse(message: str) -> None:
    raise _Refused(message)


class _Dict:
    """`dict` in a template: makes mappings, and offers nothing else of the class."""

    def __call__(self, *args: Any, **values: Any) -> dict:
        return dict(*args, **values)

    def fromkeys(self, *args: Any) -> dict:
        return dict.fromkeys(*args)


class _Namespace(jinja2.utils.Namespace):
    """`namespace` in a template; names that begin with '_' are refused."""

    def __init__(*args: Any, **values: Any):  # so that a value may be called 'self'
        self, given = args[0], dict(*args[1:], **values)
        for name in given:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith('_'):
        raise jinja2.exceptions.SecurityError(f'a namespace has no attribute {name!r}: names cannot begin with "_"')


def _with_reasoning(message: Mapping[str, Any]) -> dict[str, Any]:
    """A copy whose thoughts have each of the names that templates read them by."""
    thoughts = next((message[name] for name in REASONING if message.get(name) is not None), None)
    message = {name: value for name, value in message.items() if name != 'weight'}
    return message if thoughts is None else {'thinking': thoughts, **message, 'reasoning_content': thoughts}


def content_reads_parts(template: Template, inputs: Inputs) -> bool:
    """Whether a template writes content that is a list of parts as their text, rather than as a list."""
    probe = 'probe of parts'
    parts = [{'role': 'user', 'content': [{'type': 'text', 'text': probe}]}]
    try:
        return template.render(parts, inputs) == template.render([{'role': 'user', 'content': probe}], inputs)
    except ChatError:
        return False


def uses(template: Template, pattern: str) -> bool:
    """Whether a regex matches within a literal of the template."""
    return any(re.search(pattern, literal) for literal in template.literals)
