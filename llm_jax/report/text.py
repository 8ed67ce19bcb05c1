"""Text of users and machines, made fit for a page, a chart or Markdown."""

import re

from llm_jax.config.printable import visible

_LONG_WORD = 18  # letters, which every column has room for


def keep_units(text: str) -> str:
    """A text whose numbers are not parted from their units, nor names from their versions, at the end of a line."""
    text = re.sub(r'(?<=\d) (?=[^\W\d_]|%)', '\N{NO-BREAK SPACE}', text)
    return re.sub(r'(?<=[^\W\d_]) (?=\d[\d.]*(,\s|$))', '\N{NO-BREAK SPACE}', text)


def split_words(text: str) -> list[str]:
    """Pieces of a text between which a line may end: long words, such as paths, are parted after their punctuation."""
    pieces = ['']
    for word in re.split(r'(?<=\s)', text):
        parts = [word] if len(word) <= _LONG_WORD else re.split(r'(?<=[/_.,:;=-])', word)
        first, *others = [part[i : i + _LONG_WORD] for part in parts for i in range(0, len(part), _LONG_WORD)] or ['']
        pieces[-1] += first
        pieces += others
    return pieces


def markdown_cell(text: str) -> str:
    """Text that stays in its table cell and means nothing to Markdown or HTML."""
    text = visible(str(text)).replace('\n', ' ')
    return re.sub(r'([\\`*_\[\]<>|~#&])', r'\\\1', text)


def markdown_fence(text: str) -> str:
    """A code block whose fence is longer than any run of backticks in the text."""
    longest = max((len(ticks) for ticks in re.findall('`+', text)), default=0)
    fence = '`' * max(3, longest + 1)
    return f'{fence}text\n{visible(text)}\n{fence}'
