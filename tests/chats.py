"""Conversations and chat templates that are tried on each other, and the tokenizers for them."""

import datetime
import enum
import json
import pathlib
from typing import Any, Literal

import tokenizers

from llm_jax.chat.formats import FORMATS
from llm_jax.tokenizer import JsonTokenizer
from llm_jax.tokenizer.tokenizer_json import byte_alphabet

NOW = datetime.datetime(2026, 2, 3, 4, 5, 6)
SEARCH = {
    'type': 'function',
    'function': {
        'name': 'search',
        'description': 'Finds pages <quickly> & "well": é',
        'parameters': {
            'type': 'object',
            'properties': {
                'query': {'type': 'string', 'description': 'words'},
                'count': {'type': 'integer', 'description': 'most pages', 'default': 3},
                'tags': {'type': 'array', 'items': {'type': 'string'}, 'description': 'labels'},
            },
            'required': ['query'],
        },
    },
}
CLOCK = {'type': 'function', 'function': {'name': 'clock', 'description': 'Tells the time', 'parameters': {
    'type': 'object', 'properties': {'zone': {'type': 'string', 'enum': ['UTC', 'CET'],
     'description': 'a zone'}}}}}  # fmt: skip


def call(name: str, arguments: Any, **more: Any) -> dict[str, Any]:
    return {'type': 'function', 'function': {'name': name, 'arguments': arguments}} | more


USER = {'role': 'user', 'content': 'What is 6*7?'}
ANSWER = {'role': 'assistant', 'content': 'It is 42.'}
SYSTEM = {'role': 'system', 'content': 'Be brief.'}
# name -> (messages, what else is given)
CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    'one turn': ([USER, ANSWER], {}),
    'a question': ([SYSTEM, USER], {'add_generation_prompt': True}),
    'two turns, system': (
        [SYSTEM, USER, ANSWER, {'role': 'user', 'content': 'And 6+7?'}, {'role': 'assistant', 'content': '13'}], {},
    ),
    'white space': ([{'role': 'user', 'content': '  a\n\n b\t'}, {'role': 'assistant', 'content': '\n c \n'}], {}),
    'letters': (
        [{'role': 'user', 'content': 'naïve <b>&amp;</b> "quotes" \\ \'x\' 中文 🙂\u2028'},
         {'role': 'assistant', 'content': '{"a": [1]}'}],
        {},
    ),
    'a tool': (
        [SYSTEM, USER,
         {'role': 'assistant', 'content': '', 'tool_calls': [call('search', {'query': '<é>', 'count': 2})]},
         {'role': 'tool', 'name': 'search', 'content': '[1, "x"]'}, ANSWER],
        {'tools': [SEARCH]},
    ),
    'two calls': (
        [USER, {'role': 'assistant', 'content': 'Let me see.', 'tool_calls': [
            call('search', {'query': 'a', 'tags': ['x', 'y']}, id='abcdefgh1'), call('clock', {}, id='abcdefgh2')]},
         {'role': 'tool', 'name': 'search', 'content': 'a page', 'tool_call_id': 'abcdefgh1'},
         {'role': 'tool', 'name': 'clock', 'content': '12:00', 'tool_call_id': 'abcdefgh2'}, ANSWER,
         {'role': 'user', 'content': 'Thanks'}, {'role': 'assistant', 'content': 'Welcome'}],
        {'tools': [SEARCH, CLOCK]},
    ),
    'thoughts': (
        [USER, {'role': 'assistant', 'content': '42', 'reasoning_content': 'six times seven'},
         {'role': 'user', 'content': 'Sure?'}, {'role': 'assistant', 'content': 'Yes', 'reasoning_content': 'it is'}],
        {},
    ),
    'thoughts in the text': (
        [USER, {'role': 'assistant', 'content': '<think>\nhm\n</think>\n\n42'}, {'role': 'user', 'content': 'Sure?'},
         {'role': 'assistant', 'content': '<think>\nyes\n</think>\n\nYes'}],
        {'add_generation_prompt': False},
    ),
    'without thinking': (
        [USER, ANSWER, {'role': 'user', 'content': 'Again'}], {'add_generation_prompt': True, 'enable_thinking': False},
    ),
    'developer and date': ([{'role': 'developer', 'content': 'Rhyme.'}, USER, ANSWER], {'date_string': '3 Feb 2026'}),
    'four turns': (
        [{'role': role, 'content': f'{role} says {i}'} for i in range(4) for role in ('user', 'assistant')], {},
    ),
}  # fmt: skip

_IM = ('<|im_start|>', '<|im_end|>')
_ROLES = ('<|system|>', '<|user|>', '<|assistant|>', '<|tool|>', '<|developer|>', '<|end|>')
# Templates of the kinds that models come with, in our own words: name of a file in chat_templates -> special tokens.
_MARKS: dict[str, tuple[str, ...]] = {
    'lines': ('<|x|>',),
    'chatml_in_a_line': _IM,
    # A date, tools in the user's message, a string filter, roles renamed.
    'headers': ('<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>', '<|python_tag|>'),
    # Thoughts only after the last question; tools' results within a user's turn; a namespace set from behind.
    'thinker': _IM,
    # The system message within the first of the user, roles that must alternate, parts.
    'alternating': ('<start_of_turn>', '<end_of_turn>'),
    # Channels; thoughts that are dropped; other marks at the very end; a macro that calls itself.
    'channels': ('<|start|>', '<|message|>', '<|end|>', '<|channel|>', '<|call|>', '<|return|>'),
    'made_of_roles': _ROLES,
    # No prompt of its own for an answer; the system message in marks that are text.
    'instructions': ('<|x|>',),
    # The system message before the last question; calls as a list, with ids of nine characters.
    'late_system': (
        '[INST]', '[/INST]', '[TOOL_CALLS]', '[TOOL_RESULTS]', '[/TOOL_RESULTS]', '[AVAILABLE_TOOLS]',
        '[/AVAILABLE_TOOLS]',
    ),
    # Marks that are not ASCII; several in a row end a turn with calls.
    'wide_marks': (
        '<｜User｜>', '<｜Assistant｜>', '<｜calls▁begin｜>', '<｜calls▁end｜>', '<｜call▁begin｜>', '<｜call▁end｜>',
        '<｜output▁begin｜>', '<｜output▁end｜>',
    ),
    # Blocks that trim_blocks and lstrip_blocks change, comments, raw text, a call block.
    'white_space': ('<|x|>',),
    # tojson in all its forms; filters and tests on values.
    'json': ('<|x|>',),
    # Loops with else, break, cycle, previtem.
    'loops': ('<|a|>', '<|b|>', '<|c|>'),
    # The assistant's text is marked, within a loop and a condition.
    'generation': _ROLES,
    # Documents, names of speakers, an end of text only behind the last answer.
    'documents': ('<|doc|>', '<|role|>', '<|text|>', '<|turn|>'),
}  # fmt: skip
_DIRECTORY = pathlib.Path(__file__).parent / 'chat_templates'
# name -> (Jinja, special tokens)
TEMPLATES = {name: (one.source, one.marks or ('<|x|>',)) for name, one in FORMATS.items()} | {
    name: ((_DIRECTORY / f'{name}.jinja').read_bytes().decode(), marks) for name, marks in _MARKS.items()
}


def byte_tokenizer(special: list[str], plain: tuple[str, ...] = (), **config: Any) -> JsonTokenizer:
    """A token for each byte, then the special ones, then added ones that are text; roles as of"
    " tokenizer_config.json."""
    vocab = byte_alphabet()
    model = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    model.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in special])
    model.add_tokens([tokenizers.AddedToken(name, special=False, normalized=False) for name in plain])
    bos = model.token_to_id(config.get('bos_token') or special[0])
    eos = [model.token_to_id(config['eos_token'])] if config.get('eos_token') else []
    return JsonTokenizer(json.dumps(json.loads(model.to_str())), bos_id=bos, eos_ids=eos, config=config)


def show(tokenizer: JsonTokenizer, ids: list[int]) -> str:
    """The text of tokens, with special ones by name between ⟨ and ⟩."""
    names = {i: name for name, i in tokenizer.special.items()}
    data = b''.join(f'⟨{names[i]}⟩'.encode() if i in names else tokenizer.decode_token(i) for i in ids)
    return data.decode(errors='replace')


class Unit(enum.Enum):
    CELSIUS = 'celsius'
    KELVIN = 'kelvin'


def weather(place: str, days: int = 3, unit: Unit = Unit.CELSIUS) -> str:
    """Forecasts the weather.

    Works for towns.

    Args:
      place: a town, and
        its country
      days: how many: at most 9
      unit: of temperatures

    Returns:
      a text.
    """


def sort(values: list[float], order: Literal['up', 'down'], key: str | None = None, more: dict[str, int] | None = None):
    """
    Sorts numbers.

    Args:
        values: to sort
        order: which way
        key: a name
        more: counts by name
    """


def convert(value: int | str, pair: tuple[int, str], anything: Any, flags: list, exact: bool = True) -> int:
    """Converts a value.

    Args:
        value: a number or text
        pair: two values
        anything: whatever there is
        flags: of any type
        exact: whether to round
    """


FUNCTIONS = (weather, sort, convert)
