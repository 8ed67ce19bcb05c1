"""Values that cannot forge marks: names of special tokens in them are broken by a character that occurs nowhere.

A rendered conversation is cut at the names that are whole, which the template wrote, and the character is removed
from the texts between. Names are broken at every beginning that the template itself neither writes nor looks for, not
only where they are complete: templates join values, strip them, and cut pieces out of them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import json
import re
from typing import Any

from llm_jax.chat.messages import ROLES, ChatError

# Letters of scripts that no conversation uses: printable, without case, not white space, and JSON has them as they are.
_SPARE = tuple(map(chr, (*range(0x12000, 0x12390), *range(0x13000, 0x13430), *range(0x14400, 0x14647))))
# Keys of messages and of tools' schemas, which templates look up.
_KEYS = frozenset((
    'role', 'content', 'type', 'text', 'name', 'tool_calls', 'tool_call_id', 'id', 'function', 'arguments', 'index',
    'weight', 'reasoning_content', 'thinking', 'reasoning', 'description', 'parameters', 'properties', 'required',
    'items', 'enum', 'return', 'title', 'default', 'anyOf', 'oneOf', 'allOf', 'nullable', 'additionalProperties',
    'strict',
))  # fmt: skip
# Values of 'role' and 'type' that templates compare.
_PLAIN = frozenset((*ROLES, 'function', 'text', 'string', 'number', 'integer', 'boolean', 'array', 'object', 'null'))


def spare_characters(texts: Iterable[str]) -> Iterator[str]:
    """Yields characters that occur in none of the texts, nor do their escapes in JSON.

    Raises:
      ChatError: all are taken.
    """
    used, joined = set(), '\0'.join(texts)
    used.update(joined)
    for char in _SPARE:
        if char not in used and json.dumps(char)[2:6] not in joined.lower():
            yield char
    raise ChatError('the messages use every letter of three ancient scripts; shorten them')


def strings(value: Any) -> Iterator[str]:
    """Yields every text in a value of JSON's types, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield key
            yield from strings(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from strings(one)


class Guard:
    """Breaks the names of a tokenizer's special tokens in the values that a template is given."""

    def __init__(self, names: Sequence[str], literals: Sequence[str]):
        """Args:
        names: of the special tokens.
        literals: texts that the template writes or looks for.
        """
        self._name = whole = re.compile('|'.join(map(re.escape, sorted(names, key=len, reverse=True))) or '(?!)')
        # What the template looks for in values, as '</think>', must be found there: what begins it stays whole.
        rest = '\0'.join(whole.sub('\0', literal) for literal in literals)
        heads = {_shortest((name[:k] for k in range(1, len(name))), rest) for name in names} - {None}
        tails = {_shortest((name[-k:] for k in range(1, len(name))), rest) for name in names} - {None}
        self._heads, self._tails = _anywhere(heads), _anywhere(tails)
        self._whole = _anywhere(name for name in names if len(name) > 1)
        self._longest = max(map(len, names), default=0)
        self._ends = {name[:k] for name in names for k in range(1, len(name))}
        self._starts = {name[k:] for name in names for k in range(1, len(name))}
        self._inner = '\0'.join(name[1:] for name in names)
        # A template that writes a part of a name may complete it by a value.
        joined = '\0'.join(names)
        self._is_assembled = any(
            self._ends_in_name(literal) or (literal in joined and literal not in names)
            for literal in literals
            if literal
        )
        self.single = tuple(name for name in names if len(name) == 1)

    def _ends_in_name(self, text: str) -> bool:
        """Whether a text ends with the beginning of a name."""
        return any(text[-k:] in self._ends for k in range(1, min(self._longest, len(text)) + 1))

    def _begins_in_name(self, text: str) -> bool:
        """Whether a text begins with the end of a name, or is within one."""
        within = text in self._inner
        return within or any(text[:k] in self._starts for k in range(1, min(self._longest, len(text)) + 1))

    def holds_name(self, text: str) -> bool:
        """Whether a name is in a text."""
        return bool(self._name.search(text))

    def break_value(self, value: Any, char: str, single: Mapping[str, str], *, in_key: str = '') -> Any:
        """Copies a value with each name in its texts broken.

        Args:
          value: of JSON's types.
          char: that breaks, of `spare_characters`.
          single: name of one character -> what stands for it.
          in_key: the key that it is the value of.
        """
        if isinstance(value, str):
            is_plain = in_key in ('role', 'type') and value in _PLAIN
            return value if is_plain else self._break(value, char, single, is_key=False)
        if isinstance(value, Mapping):
            keys = {key: key if key in _KEYS else self._break(key, char, single, is_key=True) for key in value}
            return {keys[key]: self.break_value(one, char, single, in_key=key) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.break_value(one, char, single, in_key=in_key) for one in value]
        return value

    def _break(self, text: str, char: str, single: Mapping[str, str], *, is_key: bool) -> str:
        at = {match.start() + len(match[1]) for match in self._heads.finditer(text)}
        at |= {match.start() for match in self._tails.finditer(text)}
        at |= {match.start() + 1 for match in self._whole.finditer(text)}
        for stripped in (text, text.rstrip()):
            if self._ends_in_name(stripped):
                at.add(len(stripped))
        start = len(text) - len(text.lstrip())
        body = text.strip()
        if not is_key and self._is_assembled and body and self._begins_in_name(body):
            at.add(start)
        if at:
            cuts = [0, *sorted(at), len(text)]
            text = char.join(text[a:b] for a, b in zip(cuts, cuts[1:], strict=False))
        for name, stand_in in single.items():
            text = text.replace(name, stand_in)
        return text


def _shortest(candidates: Iterable[str], rest: str) -> str | None:
    return next((one for one in candidates if one not in rest), None)


def _anywhere(texts: Iterable[str]) -> re.Pattern[str]:
    """Finds texts wherever they begin, also within one another; group 1 is the shortest that begins there."""
    order = sorted(set(texts), key=len)
    return re.compile(f'(?=({"|".join(map(re.escape, order))}))' if order else '(?!)')
