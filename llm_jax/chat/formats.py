"""Named chat templates: how conversations are written for models that come without one."""

from collections.abc import Container
import dataclasses

from etils import epath

from llm_jax.chat.messages import ChatError

# Shared by the templates below. `{%-` and `-%}` take the white space of the template away, never that of a value.
_MACROS = """
{%- macro text(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for part in content or [] -%}
            {{- part.text -}}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- macro call_json(call, arguments_name) -%}
    {%- set function = call.function if call.function is defined else call -%}
    {{- '{"name": ' + function.name | tojson + ', "' + arguments_name + '": ' -}}
    {{- function.arguments if function.arguments is string else (function.arguments or {}) | tojson -}}
    {{- '}' -}}
{%- endmacro -%}
"""
_HERMES = """
{%- macro thoughts(message) -%}
    {%- if message.reasoning_content -%}
        {{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' -}}
    {%- endif -%}
{%- endmacro -%}
{%- macro calls(message) -%}
    {%- for call in message.tool_calls or [] -%}
        {{- '\\n' if not loop.first or message.content -}}
        {{- '<tool_call>\\n' + call_json(call, 'arguments') + '\\n</tool_call>' -}}
    {%- endfor -%}
{%- endmacro -%}
{%- macro describe(tools) -%}
    {{- 'You can call these functions:\\n<tools>\\n' -}}
    {%- for tool in tools -%}
        {{- tool | tojson + '\\n' -}}
    {%- endfor -%}
    {{- '</tools>\\nTo call one, write its name and its arguments:\\n<tool_call>\\n' -}}
    {{- '{"name": "...", "arguments": {...}}\\n</tool_call>' -}}
{%- endmacro -%}
{%- macro system_text() -%}
    {%- set given = text(messages[0].content) if messages[0].role in ('system', 'developer') else '' -%}
    {{- given + ('\\n\\n' if given and tools else '') + (describe(tools) if tools else '') -}}
{%- endmacro -%}
"""
# The messages after a leading system message, which is written with the tools.
_REST = """
{%- set rest = messages[1:] if messages[0].role in ('system', 'developer') else messages -%}
"""

_CHATML = (
    _MACROS
    + _HERMES
    + """
{{- bos_token if bos_token is defined else '' -}}
"""
    + _REST
    + """
{%- if system_text() -%}
    {{- '<|im_start|>system\\n' + system_text() + '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in rest -%}
    {%- if message.role == 'assistant' -%}
        {{- '<|im_start|>assistant\\n' -}}
        {%- generation -%}
            {{- thoughts(message) + text(message.content) + calls(message) + '<|im_end|>' -}}
        {%- endgeneration -%}
        {{- '\\n' -}}
    {%- elif message.role == 'tool' -%}
        {{- '<|im_start|>user\\n<tool_response>\\n' + text(message.content) + '\\n</tool_response><|im_end|>\\n' -}}
    {%- else -%}
        {{- '<|im_start|>' + message.role + '\\n' + text(message.content) + '<|im_end|>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{{- '<|im_start|>assistant\\n' if add_generation_prompt else '' -}}
"""
)

_LLAMA3 = (
    _MACROS
    + _REST
    + """
{{- bos_token if bos_token is defined else '' -}}
{%- macro header(role) -%}
    {{- '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' -}}
{%- endmacro -%}
{%- set given = text(messages[0].content) | trim if messages[0].role in ('system', 'developer') else '' -%}
{%- if given or tools -%}
    {{- header('system') + given -}}
    {%- if tools -%}
        {{- ('\\n\\n' if given else '') + 'You can call these functions. To call one, answer with JSON alone: ' -}}
        {{- '{"name": "...", "parameters": {...}}' -}}
        {%- for tool in tools -%}
            {{- '\\n\\n' + tool | tojson(indent=4) -}}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|eot_id|>' -}}
{%- endif -%}
{%- for message in rest -%}
    {%- if message.role == 'assistant' -%}
        {{- header('assistant') -}}
        {%- generation -%}
            {{- text(message.content) | trim -}}
            {%- for call in message.tool_calls or [] -%}
                {{- ('; ' if not loop.first else '\\n' if message.content else '') + call_json(call, 'parameters') -}}
            {%- endfor -%}
            {{- '<|eot_id|>' -}}
        {%- endgeneration -%}
    {%- else -%}
        {{- header('ipython' if message.role == 'tool' else message.role) + text(message.content) | trim -}}
        {{- '<|eot_id|>' -}}
    {%- endif -%}
{%- endfor -%}
{{- header('assistant') if add_generation_prompt else '' -}}
"""
)

_GEMMA = (
    _MACROS
    + _HERMES
    + """
{{- bos_token if bos_token is defined else '' -}}
"""
    + _REST
    + """
{%- for message in rest -%}
    {%- if message.role == 'assistant' -%}
        {{- '<start_of_turn>model\\n' -}}
        {%- generation -%}
            {{- text(message.content) | trim + calls(message) + '<end_of_turn>' -}}
        {%- endgeneration -%}
        {{- '\\n' -}}
    {%- else -%}
        {{- '<start_of_turn>user\\n' -}}
        {{- system_text() + '\\n\\n' if loop.first and system_text() else '' -}}
        {%- if message.role == 'tool' -%}
            {{- '<tool_response>\\n' + text(message.content) + '\\n</tool_response>' -}}
        {%- else -%}
            {{- text(message.content) | trim -}}
        {%- endif -%}
        {{- '<end_of_turn>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{{- '<start_of_turn>model\\n' if add_generation_prompt else '' -}}
"""
)

# A turn of the assistant ends with a blank line, as the other turns do: base models know no other mark.
_PLAIN = (
    _MACROS
    + """
{{- bos_token if bos_token is defined else '' -}}
{%- for message in messages -%}
    {%- if message.tool_calls -%}
        {{- raise_exception('a plain transcript has no tool calls; take another chat.template') -}}
    {%- endif -%}
    {%- if message.role == 'assistant' -%}
        {{- 'Assistant:' -}}
        {%- generation -%}
            {{- ' ' + text(message.content) | trim + '\\n\\n' -}}
        {%- endgeneration -%}
    {%- else -%}
        {{- (message.role | capitalize) + ': ' + text(message.content) | trim + '\\n\\n' -}}
    {%- endif -%}
{%- endfor -%}
{{- 'Assistant:' if add_generation_prompt else '' -}}
"""
)

_OWN = (
    _MACROS
    + _HERMES
    + """
{{- bos_token if bos_token is defined else '' -}}
"""
    + _REST
    + """
{{- '<|system|>' + system_text() + '<|end|>' if system_text() else '' -}}
{%- for message in rest -%}
    {%- if message.role == 'assistant' -%}
        {{- '<|assistant|>' -}}
        {%- generation -%}
            {{- thoughts(message) + text(message.content) + calls(message) + '<|end|>' -}}
        {%- endgeneration -%}
    {%- else -%}
        {{- '<|' + ('system' if message.role == 'developer' else message.role) + '|>' + text(message.content) -}}
        {{- '<|end|>' -}}
    {%- endif -%}
{%- endfor -%}
{{- '<|assistant|>' if add_generation_prompt else '' -}}
"""
)


@dataclasses.dataclass(frozen=True)
class Format:
    """A named template.

    Attributes:
      source: Jinja.
      marks: special tokens that it writes, which a new tokenizer gets.
      stop_texts: that end an answer of a model whose turns end with no mark.
      tool_form: in which it writes calls of tools: a name in `tools.FORMS`; '' if it has none.
    """

    source: str
    marks: tuple[str, ...] = ()
    stop_texts: tuple[str, ...] = ()
    tool_form: str = ''

    def lacking(self, special: Container[str]) -> list[str]:
        """The marks that are not among these special tokens."""
        return [mark for mark in self.marks if mark not in special]


FORMATS = {
    'chatml': Format(_CHATML, ('<|im_start|>', '<|im_end|>'), tool_form='hermes'),
    'llama3': Format(_LLAMA3, ('<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>'), tool_form='llama3'),
    'gemma': Format(_GEMMA, ('<start_of_turn>', '<end_of_turn>'), tool_form='hermes'),
    'plain': Format(_PLAIN, stop_texts=tuple(f'\n\n{role}:' for role in ('User', 'System', 'Developer', 'Tool'))),
    'llm_jax': Format(
        _OWN, ('<|system|>', '<|user|>', '<|assistant|>', '<|tool|>', '<|end|>'), tool_form='hermes'
    ),
}  # fmt: skip


def source_of(template: str) -> str:
    """The Jinja source of a format, or of a file.

    Raises:
      ChatError: there is no such file, or it is no UTF-8 text.
    """
    if template in FORMATS:
        return FORMATS[template].source
    file = epath.Path(template)
    try:
        return file.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ChatError(f'chat.template = {template!r} is no UTF-8 text: {error}; name a file of Jinja') from error
    except OSError as error:
        raise ChatError(
            f'chat.template = {template!r}: there is no such file ({error.strerror or error}), and no format of that '
            f'name; formats are {", ".join(FORMATS)}'
        ) from error
