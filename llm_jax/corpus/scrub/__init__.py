"""Personal data and secrets out of a document: each becomes a placeholder that says what stood there.

A text is searched only where something cheap to find stands (an '@', a run of digits, the
first letters of a kind of token); exact rules decide there. What each of them takes and
leaves is written beside it: `contacts` (e-mail and IP addresses), `numbers` (telephones
and cards), `secrets` (keys, tokens, passwords).
"""

from collections.abc import Callable, Iterator
import dataclasses

from llm_jax.config.schema import ConfigError, field
from llm_jax.corpus.document import Document, Stage
from llm_jax.corpus.scrub.contacts import emails, ip_addresses
from llm_jax.corpus.scrub.numbers import cards, phones
from llm_jax.corpus.scrub.secrets import SETTINGS, secrets

# (text, whether it is code) -> (start, end) of each find, in order.
Finder = Callable[[str, bool], Iterator[tuple[int, int]]]

# Where two finds overlap, the one named first here stands: the password of a URL is not an e-mail's name.
FINDERS: dict[str, Finder] = {
    'secret': secrets,
    'email': emails,
    'card': cards,
    'ip': ip_addresses,
    'phone': phones,
}
PLACEHOLDERS = {
    'email': '<EMAIL>',
    'ip': '<IP_ADDRESS>',
    'phone': '<PHONE_NUMBER>',
    'card': '<CARD_NUMBER>',
    'secret': '<SECRET>',
}
# Kinds of documents that are code; the others are prose.
CODE = ('code', 'notebook')
_WHERE = ('all', 'prose', 'code', 'none')


@dataclasses.dataclass(frozen=True)
class Scrub:
    """What is scrubbed, and what stands in its place."""

    email: str = field('all', 'where e-mail addresses are scrubbed: all, prose, code, none')
    ip: str = field('all', 'where public IPv4 and IPv6 addresses are scrubbed: all, prose, code, none')
    phone: str = field('all', 'where telephone numbers are scrubbed: all, prose, code, none')
    card: str = field('all', 'where card numbers are scrubbed: all, prose, code, none')
    secret: str = field('all', 'where keys, tokens and passwords are scrubbed: all, prose, code, none')
    placeholders: dict = field(PLACEHOLDERS, 'what stands in the place of each: email, ip, phone, card, secret')


def make(options: Scrub) -> Stage:
    """The stage: a document with placeholders, and how many of each in its signals ('scrub.email').

    What was not found has no signal. Scrubbing a scrubbed document changes nothing.

    Raises:
      ConfigError: a value that is not one of all, prose, code, none; a placeholder that
        is missing, or of an unknown type, or would itself be scrubbed.
    """
    _check(options)
    chosen = {
        code: {name: find for name, find in FINDERS.items() if getattr(options, name) in ('all', _WHERE[1 + code])}
        for code in (False, True)
    }
    settings = chosen[True] | ({'secret': _secrets_of_settings} if 'secret' in chosen[True] else {})

    def scrub(document: Document) -> Document:
        code = document.kind in CODE
        finders = settings if code and document.language in SETTINGS else chosen[code]
        text, counts = document.text, {}
        # Again until nothing is found: a placeholder may uncover what stood glued to a find.
        while found := find_all(text, code, finders):
            pieces, end = [], 0
            for start, stop, name in found:
                pieces += (text[end:start], options.placeholders[name])
                end = stop
                counts[name] = counts.get(name, 0) + 1
            text = ''.join(pieces) + text[end:]
        if not counts:
            return document
        signals = {f'scrub.{name}': float(n) for name, n in counts.items()}
        return dataclasses.replace(document, text=text, signals={**document.signals, **signals})

    return scrub


def _secrets_of_settings(text: str, code: bool) -> Iterator[tuple[int, int]]:
    """What `secrets` finds where values need no quotation marks."""
    del code
    return secrets(text, False)


def find_all(text: str, code: bool, finders: dict[str, Finder] = FINDERS) -> list[tuple[int, int, str]]:
    """(start, end, type) of everything to scrub in a text, in order and without overlaps.

    Args:
      text: to look in.
      code: whether it is code; rules differ a little from those for prose.
      finders: by type; where finds overlap, that of the earlier type stands.
    """
    rank = {name: i for i, name in enumerate(finders)}
    found = [(start, rank[name], stop, name) for name, find in finders.items() for start, stop in find(text, code)]
    out: list[tuple[int, int, str]] = []
    for start, _, stop, name in sorted(found):
        if out and start < out[-1][1]:
            if rank[name] > rank[out[-1][2]]:
                continue
            out.pop()
        out.append((start, stop, name))
    return out


def _check(options: Scrub) -> None:
    for name in FINDERS:
        if getattr(options, name) not in _WHERE:
            raise ConfigError(f'scrub.{name} = {getattr(options, name)!r}: it must be one of {", ".join(_WHERE)}')
    if set(options.placeholders) != set(FINDERS):
        raise ConfigError(f'scrub.placeholders has {sorted(options.placeholders)}: it needs {", ".join(FINDERS)}')
    for name, placeholder in options.placeholders.items():
        if any(find_all(f' {placeholder} ', code) for code in (False, True)):
            raise ConfigError(f'scrub.placeholders.{name} = {placeholder!r} would be scrubbed itself; take another')
