"""RefinedWeb's line rules: the furniture of web pages that extraction has left in the text.

Penedo et al. 2023 (arXiv:2306.01116), appendix G.2: lines mainly of capitals, of numbers
alone, counters ('3 likes') and single words go; so do short lines that begin with 'sign in' or
have 'items in cart', and 'read more' at the end of short lines, where it is a sentence of its own. Where more
than 5% of the words went, the document does.
"""

from collections.abc import Callable
import dataclasses
import re

from llm_jax.config.schema import field
from llm_jax.corpus.document import Document, Dropped, Stage
from llm_jax.corpus.filter import rules, signals

_COUNTED = (
    'likes?|shares?|comments?|re-?tweets?|reposts?|quotes?|bookmarks?|up-?votes?|down-?votes?|downloads?|views?|'
    'followers?|following|subscribers?|replies|reply|posts?|votes?|reads?|claps?|ratings?|reviews?|answers?'
)
_COUNTER = re.compile(rf'\W*\d[\d.,]*\s?[kmb]?\s+(?:{_COUNTED})\W*', re.IGNORECASE)
_NUMERIC = re.compile(r'[\W_]*\d[\W\d_]*')
_BEGINS = re.compile(r'\W*(?:sign|log)[ -]?(?:in|up|out)\b', re.IGNORECASE)
_ENDS = re.compile(r'(?:^|(?<=[.!?…:"”»)]))\s*(?:(?:read|show|see|view|load) more|continue reading)\W*$', re.IGNORECASE)
_ANYWHERE = re.compile(r'\bitems? in (?:your |the )?(?:shopping )?(?:cart|bag|basket)\b', re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Options:
    kinds: tuple = field(rules.PROSE, 'kinds of document that are judged; others pass')
    max_upper: float = field(0.5, 'largest share of capitals among the characters of a line')
    short_line: int = field(10, 'words of a line up to which "sign in" and the like are looked for')
    max_removed: float = field(0.05, 'largest share of words that may go before the document does')


def make(options: Options) -> Stage:
    """The stage 'refinedweb', which takes lines out of a document or drops it.

    Reason and signal: `refinedweb.removed`, the share of words that went.
    """

    def stage(document: Document) -> Document | Dropped:
        if document.kind not in options.kinds:
            return document
        text = signals.view(document.text)
        lines = [corrected(line, options, text.split) if line else line for line in text.lines]
        changed = lines != text.lines
        left = sum(len(text.split(line)) for line in lines if line) if changed else len(text.words)
        removed = 1 - left / max(len(text.words), 1)
        document = rules.with_signals(document, 'refinedweb', {'removed': removed})
        if removed > options.max_removed:
            return Dropped(document, 'refinedweb.removed', f'{removed:.4g} > {options.max_removed:g}')
        kept = [line for line in lines if line is not None]
        return dataclasses.replace(document, text=rules.joined(kept)) if changed else document

    return stage


def corrected(line: str, options: Options, split: Callable[[str], list[str]] = str.split) -> str | None:
    """The line as it stays, or None; `split` tells its words."""
    words = split(line)
    if not words:
        return line
    if len(words) == 1 or mostly_upper(line, options.max_upper) or _NUMERIC.fullmatch(line) or _COUNTER.fullmatch(line):
        return None
    if len(words) > options.short_line:
        return line
    if _BEGINS.match(line) or _ANYWHERE.search(line):
        return None
    return _ENDS.sub('', line) or None


def mostly_upper(line: str, share: float) -> bool:
    """Whether more than this share of the line's characters are capitals."""
    return line != line.lower() and sum(map(str.isupper, line)) > share * len(line)
