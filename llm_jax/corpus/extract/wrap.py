"""Hard-wrapped prose to one line per paragraph; verse, tables, lists and headings keep their lines."""

import re

import numpy as np

# A line was broken because the next word did not fit: what it and that word would have come to, as a
# share of the width. Old files were wrapped by hand, hence less than 1.
_FULL = 0.85
# Share of the lines (but the last) of a paragraph that have to be full.
_MOST = 0.75
# Verse begins each line with a capital; prose seldom does three times in a row.
_CAPITALS = 0.75
# Between the columns of a table; the second also stands in prose that was justified by spaces.
_WIDE_GAP, _GAP = re.compile(r'\S {5,}\S'), re.compile(r'\S {3,}\S')
_MARKED = re.compile(r'\s*(?:[-*+•|>]\s|[|+=_*]{3,}|-{5,})')
_CAPITAL = re.compile(r'["\'“‘_(\[]*[A-ZÀ-ÖØ-Þ]')
_HYPHENATED = re.compile(r'[^\W\d_]-$')


def unwrap(text: str) -> str:
    """The text with each paragraph of prose on one line, and one empty line between paragraphs.

    A paragraph is what stands between empty lines. It is prose if its lines, as far as
    they are not the last one, are filled up to the width that the text is wrapped at, are
    not indented (but the first one, or all alike), and do not all begin with a capital.
    """
    width = _width(text)
    paragraphs = re.split(r'\n(?:[ \t]*\n)+', text.strip('\n'))
    return '\n\n'.join(_joined(p) if _is_prose(p, width) else _as_it_is(p) for p in paragraphs if p.strip())


def _width(text: str) -> float:
    """Where lines of a text are broken, in characters; 0 where they are not."""
    lengths = np.array([len(line.rstrip()) for line in text.split('\n') if line.strip()])
    if not len(lengths):
        return 0
    # Of a wrapped text, many lines come close to the longest ones; a few tables may be wider.
    return float(np.percentile(lengths, 90))


def _is_prose(paragraph: str, width: float) -> bool:
    lines = paragraph.rstrip().split('\n')
    if len(lines) == 1:
        return True
    indents = [len(line) - len(line.lstrip()) for line in lines]
    words = [line.split() for line in lines]
    gaps = sum(_GAP.search(line) is not None for line in lines)
    if len(set(indents[1:])) > 1 or gaps > len(lines) / 2 or _WIDE_GAP.search(paragraph):
        return False
    if any(_MARKED.match(line) for line in lines) or (len(lines) == 2 and indents[1] > indents[0]):
        return False
    own = max(len(line.rstrip()) for line in lines)
    capitals = sum(_CAPITAL.match(w[0]) is not None for w in words[1:])
    if indents[0] == indents[1] > 0 and capitals == len(lines) - 1:
        return False
    if len(lines) > 3 and capitals >= _CAPITALS * (len(lines) - 1):
        return False
    if len(lines) <= 3 and capitals == len(lines) - 1 and own < 0.9 * width:
        return False
    # A narrower block, such as a quotation, is as wide as its longest line.
    limit = own if len(lines) > 2 and own >= 0.6 * width else width
    filled = [
        len(line.rstrip()) + 1 + len(re.split('--|—', following[0])[0]) >= _FULL * limit
        for line, following in zip(lines[:-1], words[1:], strict=True)
    ]
    return sum(filled) >= _MOST * len(filled)


def _joined(paragraph: str) -> str:
    out = ''
    for line in paragraph.split('\n'):
        words = ' '.join(line.split())
        # No space where a dash or a hyphen stands at the end of a line; whether the hyphen of
        # 'to-\nmorrow' was there before cannot be known, so it stays.
        out += words if not out or out.endswith(('--', '—')) or _HYPHENATED.search(out) else ' ' + words
    return out


def _as_it_is(paragraph: str) -> str:
    return '\n'.join(line.rstrip() for line in paragraph.split('\n'))
