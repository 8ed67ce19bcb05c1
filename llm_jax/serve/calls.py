"""Calls of tools that a request asks for: rules that the answer keeps to, and where it ends."""

from collections.abc import Mapping, Sequence
from typing import Any

from llm_jax.chat.tools import Parser, around_calls, call_schema
from llm_jax.config.schema import ConfigError
from llm_jax.generate.constrain import Grammar, Grammars
from llm_jax.generate.stops import StopText
from llm_jax.serve.errors import ApiError
from llm_jax.serve.protocol import ToolChoice
from llm_jax.tokenizer import StreamDecoder


def compile_calls(
    grammars: Grammars, tools: Sequence[Mapping[str, Any]], choice: ToolChoice, form: str
) -> Grammar | None:
    """Returns what an answer that has to call keeps to; None where it is free.

    Args:
      grammars: of the tokenizer.
      tools: schemas, which a template has taken.
      choice: what is to be called.
      form: in which the model writes calls.

    Raises:
      ApiError: no form is known, no such tool, or parameters that cannot be enforced.
    """
    if not choice.is_required:
        return None
    if not form:
        raise ApiError(400, "tool_choice needs a chat template whose form of calls is known; use 'auto'", 'tool_choice')
    named = {one.get('function', one)['name']: one for one in tools}
    if choice.name and choice.name not in named:
        raise ApiError(400, f'tool_choice names {choice.name!r}; tools are {", ".join(named)}', 'tool_choice')
    wanted = {name: one for name, one in named.items() if choice.name in ('', name)}
    before, after, between = around_calls(form)
    try:
        schemas = {f'the tool {name!r}': call_schema(one, form) for name, one in wanted.items()}
        return grammars.json_between(schemas, before, after, between if choice.is_parallel else '')
    except ConfigError as error:
        raise ApiError(400, str(error), 'tools') from None


class OneCall(StopText):
    """A `StopText` that ends the row after its first call of a tool."""

    def __init__(self, decoder: StreamDecoder, stops: Sequence[str], form: str) -> None:
        """Args:
        decoder: as of `StopText`.
        stops: as of `StopText`.
        form: in which the model writes calls.
        """
        super().__init__(decoder, stops)
        self._parser = Parser(form)

    def push(self, token: int) -> bool:
        before = len(self._ready)
        is_over = super().push(token)
        return bool(self._parser.push(self._ready[before:]).calls) or is_over
