"""Books of Project Gutenberg: the work itself, without the Project's header, licence and credits.

What goes, by rule:
  - everything up to the START marker, and the "small print" of the 1990s, on whichever
    side of the book it stands;
  - everything from the END marker, or from a line 'End of (the) Project Gutenberg ...', on;
  - of the first and last paragraphs that are left: who produced, typed or scanned the file,
    what else there is at the Project, and transcriber's notes;
  - anywhere: '[Illustration: ...]' with its caption, and notes '[Transcriber's note: ...]'.
Everything else stays: title page, contents, footnotes, '_emphasis_'. Paragraphs of prose
are unwrapped if the options say so; verse and tables keep their lines.
"""

from collections.abc import Callable
import re

from llm_jax.corpus.document import Document, Dropped, Raw
from llm_jax.corpus.extract.common import document, dropped, text_of
from llm_jax.corpus.extract.options import Extract
from llm_jax.corpus.extract.wrap import unwrap

_NAME = r'project\s+gutenberg'
_START = re.compile(
    rf'^[ \t]*\*{{2,}}[ \t]*START OF (?:THE |THIS )?{_NAME}[^\n]*(?:\n[^\n]+\*{{3}}[ \t]*$)?', re.I | re.M
)
_SMALL_PRINT = re.compile(r'^[ \t]*\*+[ \t]*END[ \t*]*(?:OF )?[ \t*]*THE SMALL PRINT[^\n]*$', re.I | re.M)
_END = re.compile(
    rf'^[ \t*]*(?:\*{{2,}}[ \t]*END OF (?:THE |THIS )?{_NAME}|END OF (?:THE |THIS )?{_NAME}[’\']?S?[ \t,])', re.I | re.M
)
# Where a small print that stands behind the book begins.
_SMALL_PRINT_BEGINS = re.compile(
    rf'^[ \t*]*(?:The )?{_NAME}[’\']?S? E-?(?:text|book)s? of |^[* \t]*START[ \t*]*THE SMALL PRINT', re.I | re.M
)
_CREDIT = re.compile(
    r'\W*(?:(?:this |the )?(?:e-?text|e-?book|text|file|edition|html version)s? (?:was |were |is )?(?:first )?)?'
    r'(?:produced|prepared|transcribed|scanned|digiti[sz]ed|typed|entered|proofed|proofread|created|updated|converted|'
    r'submitted|entered/proofed)(?: and \w+)?(?:,? (?:for|in) [\w ]+?)? (?:by|from) |'
    r'\W*(?:html|epub) version by |\W*credits?:|\W*cover(?: image)?\s*$|\W*updater?[’\']?s note|'
    r'\W*(?:we thank|nous remercions) .{0,80}biblioth',
    re.I,
)
_ABOUT = re.compile(
    rf'{_NAME}|distributed\s+proofread|pgdp\.net|gutenberg\.(?:org|net)|this e-?(?:text|book) is for the use of anyone|'
    r'free\s+plain\s+vanilla|\[e-?(?:text|book) #\d+\]',
    re.I,
)
_NOTE = re.compile(
    r'[\s|+*\[_-]*(?:(?:original |etext )?transcriber[’\']?s?[’\']? (?:end)?notes?|project gutenberg editor[’\']s note|'
    r'typographical errors corrected by)',
    re.I,
)
_NOTE_IN_TEXT = re.compile(r'\[\s*(?:original )?transcriber[’\']?s?[’\']? notes?\b', re.I)
_ILLUSTRATION = re.compile(r'\[(?:Illustration|Frontispiece|Cover)\b', re.I)
_LONGEST_BRACKET = 4000
# Paragraphs at either end among which credits are looked for, and the longest of them, in characters.
_FIRST, _LAST, _LONGEST_CREDIT = 15, 4, 1500
# Notes of a transcriber are in this share of the book at either end, and this long at most.
_NOTES_WITHIN, _LONGEST_NOTES = 0.1, 20_000
_LISTED = re.compile(r'[-dl][rwxsStT-]{9}\s|\S+\.(?:txt|zip|html?|pdf|epub|mobi)\s*$')
_LICENCE = re.compile(rf'{_NAME}(?:-tm|™| literary archive)|the small print', re.I)
_LICENCE_LEFT = 5


def make(options: Extract) -> Callable[[Raw], Document | Dropped]:
    """The extractor of books; drops 'extract.listing', 'extract.licence_left', 'extract.empty'."""

    def extract(raw: Raw) -> Document | Dropped:
        text = text_of(raw)
        lines = [line for line in text.split('\n') if line.strip()]
        listed = sum(_LISTED.match(line.strip()) is not None for line in lines)
        if lines and listed > len(lines) / 2:
            return dropped(raw, 'extract.listing', text, f'{listed} of {len(lines)} lines name files')
        body = book(text)
        left = len(_LICENCE.findall(body))
        if left >= _LICENCE_LEFT:
            return dropped(raw, 'extract.licence_left', body, f'the licence is named {left} times within the book')
        body = unwrap(body) if options.unwrap else body
        if not body.strip():
            return dropped(raw, 'extract.empty', text)
        return document(raw, body)

    return extract


def book(text: str) -> str:
    """The work within a file of Project Gutenberg, its lines as they are; '' if there is nothing else in the file."""
    text = _between_markers(text)
    text = _without_brackets(_without_brackets(text, _NOTE_IN_TEXT), _ILLUSTRATION)
    return _without_credits(_without_notes(text)).strip('\n')


def _between_markers(text: str) -> str:
    start, stop = 0, len(text)
    if marker := _START.search(text):
        start = marker.end()
    if small_print := _SMALL_PRINT.search(text, start):
        begins = _SMALL_PRINT_BEGINS.search(text, start, small_print.start())
        before = begins.start() if begins else small_print.start()
        # The book is on the longer side of the small print.
        if marker and before - start > stop - small_print.end():
            stop = before
        else:
            start = small_print.end()
    if end := _END.search(text, start, stop):
        stop = end.start()
    return text[start:stop]


def _without_brackets(text: str, opening: re.Pattern) -> str:
    """The text without what stands in brackets after this opening; brackets may be nested."""
    out, at = [], 0
    for match in opening.finditer(text):
        if match.start() < at:
            continue
        depth, stop = 0, 0
        for bracket in re.finditer(r'[\[\]]', text[match.start() : match.start() + _LONGEST_BRACKET]):
            depth += 1 if bracket[0] == '[' else -1
            if not depth:
                stop = match.start() + bracket.end()
                break
        if stop:
            out.append(text[at : match.start()].rstrip(' '))
            at = stop
    return ''.join(out) + text[at:]


def _without_notes(text: str) -> str:
    """The text without the transcriber's notes at its beginning and its end."""
    near = min(int(len(text) * _NOTES_WITHIN), _LONGEST_NOTES)
    for paragraph in re.finditer(r'(?:^|\n[ \t]*\n)(?=([^\n]+))', text):
        at = paragraph.end()
        if near < at < len(text) - near or not _NOTE.match(paragraph[1]):
            continue
        if at >= len(text) - near:
            return text[:at]
        # What follows the heading, up to the next larger gap.
        gap = re.compile(r'\n[ \t]*\n[ \t]*\n')
        first = gap.search(text, at)
        if first and not paragraph[1].strip(' :_*|').lower().endswith(('note', 'notes')):
            return _without_notes(text[:at] + text[first.start() :])
        body = re.compile(r'\n[ \t]*\n\s*').search(text, at)
        last = gap.search(text, body.end()) if body else None
        if last and last.start() - at < _LONGEST_NOTES:
            return _without_notes(text[:at] + text[last.start() :])
    return text


def _without_credits(text: str) -> str:
    """The text without the paragraphs at its beginning and end that are about the file."""
    parts = re.split(r'(\n[ \t]*\n\s*\n|\n[ \t]*\n)', text.strip('\n'))
    paragraphs = [i for i in range(0, len(parts), 2) if parts[i].strip()]
    for i in {*paragraphs[:_FIRST], *paragraphs[-_LAST:]}:
        about = len(parts[i]) <= _LONGEST_CREDIT and _ABOUT.search(parts[i])
        if about or _CREDIT.match(parts[i].strip()):
            parts[i] = ''
    return ''.join(parts)
