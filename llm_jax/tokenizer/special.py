"""Special tokens by name: rendered conversations are cut at them, and what is between is text."""

from collections.abc import Iterator, Mapping
import dataclasses
import re
from typing import Any

# The names under which tokenizer_config.json has tokens, and chat templates read them.
ROLES = tuple(f'{role}_token' for role in ('bos', 'eos', 'unk', 'sep', 'pad', 'cls', 'mask'))


@dataclasses.dataclass(frozen=True)
class Special:
    """A special token, and how its name is found in a text, as `tokenizers.AddedToken` says.

    Attributes:
      id: of the token.
      lstrip: whether white space before the name belongs to it, and so is no text.
      rstrip: the same of white space behind it.
      single_word: whether it is only found between other characters than letters, digits and '_'.
    """

    id: int
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


@dataclasses.dataclass(frozen=True)
class Piece:
    """A special token or a text between two, as `split` cuts.

    Attributes:
      start: index of its first character in the whole.
      end: one past its last character.
      id: of the special token; None for text.
    """

    start: int
    end: int
    id: int | None


def from_added_token(token: Mapping[str, Any]) -> Special:
    """The entry of `added_tokens` of a tokenizer.json."""
    return Special(token['id'], *(bool(token.get(flag)) for flag in ('lstrip', 'rstrip', 'single_word')))


class Splitter:
    """Cuts texts at the names of special tokens, of those that begin at one place at the longest."""

    def __init__(self, special: Mapping[str, Special]):
        self._special = dict(special)
        self._names = self._compile(special) if special else None

    @staticmethod
    def _compile(special: Mapping[str, Special]) -> re.Pattern[str]:
        def pattern(name: str) -> str:
            one = special[name]
            core = rf'(?<!\w){re.escape(name)}(?!\w)' if one.single_word else re.escape(name)
            return (r'\s*' if one.lstrip else '') + f'(?P<n{order.index(name)}>{core})' + (r'\s*' if one.rstrip else '')

        order = sorted(special, key=len, reverse=True)
        plain = [name for name in order if special[name] == Special(special[name].id)]
        if len(plain) == len(order):  # no groups: there may be thousands of names
            return re.compile('|'.join(map(re.escape, order)))
        return re.compile('|'.join(map(pattern, order)))

    def split(self, text: str) -> Iterator[Piece]:
        """Yields the pieces of a text in order; none is empty."""
        at = 0
        for match in self._names.finditer(text) if self._names else ():
            name = match[match.lastgroup] if match.lastgroup else match[0]
            if match.start() > at:
                yield Piece(at, match.start(), None)
            yield Piece(match.start(), match.end(), self._special[name].id)
            at = match.end()
        if at < len(text):
            yield Piece(at, len(text), None)


def names_of_roles(config: Mapping[str, Any]) -> dict[str, str]:
    """'bos_token' and the like -> name of the token, of a tokenizer_config.json; what templates call variables."""
    out = {}
    for role in ROLES:
        value = config.get(role)
        name = value.get('content') if isinstance(value, Mapping) else value
        if isinstance(name, str):
            out[role] = name
    return out
