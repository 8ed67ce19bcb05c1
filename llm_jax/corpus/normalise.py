"""One way to write the same text: Unicode NFC, newlines, white space, no invisible junk, mojibake repaired.

NFC and not NFKC, which would turn x² into x2 and ½ into 1⁄2. What it does to prose, over
and over until nothing changes, so that a second run changes nothing:

- UTF-8 that was read as Windows-1252 or Latin-1 ('Itâ€™s') is read again, where ftfy's measure of
  nonsense finds that the characters cannot be meant; 'â€' whose third byte was lost is a
  closing quotation mark. Where it may be right ('AMANHÃ”') or is spoken about ("Ã¤") it stays.
- CRLF, CR, form feeds and Unicode's separators of lines become a newline; C1 controls become the
  characters of Windows-1252 that were meant; other controls, terminal colours, byte order marks,
  noncharacters, zero-width spaces (but for scripts that part words by them), soft hyphens with the
  line break they made, and directional marks (but in texts that run right to left) go. The
  zero-width joiners stay: Persian, Indic scripts and emoji need them.
- All spaces but the ideographic one become ' '. Spaces at the ends of lines go; runs within a
  line become one, but not the indentation. Lines that are indented by four spaces or a tab and
  those between ``` fences are code or verse and keep theirs.
- Blank lines at both ends go, runs of them are cut to `max_blank_lines`.

Of code only newlines, byte order marks and NULs change.
"""

from collections.abc import Collection
import dataclasses
import re
import unicodedata

from ftfy import fix_encoding
from ftfy.badness import is_bad

from llm_jax.config.schema import field
from llm_jax.corpus.document import Document, Dropped, Stage, well_formed

_CODE = ('code', 'notebook')

# Bytes 80 to 9F of Windows-1252; its five holes stand for themselves, as in WHATWG's encoding standard.
_CP1252 = {byte: bytes([byte]).decode('cp1252', 'ignore') or chr(byte) for byte in range(0x80, 0xA0)}
_CONTINUATION = '\x80-\xbf' + ''.join(_CP1252.values())
_LOST_BYTE = re.compile(f'â€(?![{_CONTINUATION}])')
# What may be meant: Portuguese in capitals within quotes ('AMANHÃ”'), and mojibake that is spoken about ("Ã¤").
_MEANT = re.compile(f'(?<=[A-ZÀ-Þ])Ã[’”»](?!\\w)|(?<=[^\\w\\s])[\xc2-\xdf][{_CONTINUATION}](?=[^\\w\\s])', re.M)

_NEWLINES = re.compile('[\x0b\x0c\x1c-\x1e\u2028\u2029]')
_TERMINAL = re.compile('\x1b\\[[0-9;?]*[A-Za-z]')
_SOFT_HYPHEN = re.compile('\xad(?:[ \t]*\n[ \t]*(?=\\w))?')
# A zero-width space next to Thai, Lao, Tibetan, Burmese, Khmer or another script of South-East Asia parts words.
_ZERO_WIDTH_SPACE = re.compile('(?<![\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u1aaf\ua9e0-\ua9ff])\u200b')
_JUNK = re.compile(
    '[\x00-\x08\x0e-\x1f\x7f\x81\x8d\x8f\x90\x9d\u180e\u2060-\u2064\u206a-\u206f\ufeff\ufff9-\ufffb\ufdd0-\ufdef\ufffe\uffff]'
)
_DIRECTION = re.compile('[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]')
_RIGHT_TO_LEFT = re.compile(
    '[\u0590-\u05ff\u0620-\u08ff\ufb1d-\ufdfd\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff]'
)
_SPACES = re.compile('[\xa0\u1680\u2000-\u200a\u202f\u205f]')
# Any of these means that there is something to do.
_ODD = re.compile(
    '[\x00-\x08\x0b-\x1f\x7f-\xa0\xad\u061c\u1680\u180e\u2000-\u200b\u200e\u200f\u2028-\u202f\u205f-\u206f\ufdd0-\ufdef\ufeff\ufff9-\uffff]'
)
_RUN = re.compile('[ \t]{2,}|\t')
_FENCE = re.compile(' {0,3}(```+|~~~+)')


@dataclasses.dataclass(frozen=True)
class Options:
    mojibake: bool = field(
        True, 'whether UTF-8 that was read as Windows-1252 or Latin-1 is repaired where that is certain'
    )
    max_blank_lines: int = field(1, 'most blank lines in a row in prose')


def make(options: Options) -> Stage:
    """The stage 'normalise'; it drops a document of which nothing is left, as `normalise.empty`."""

    def stage(document: Document) -> Document | Dropped:
        text = code(document.text) if document.kind in _CODE else prose(document.text, options)
        if not text.strip():
            return Dropped(document, 'normalise.empty', 'nothing but white space')
        title = ' '.join(prose(document.title, options).split()) if document.title else ''
        if text == document.text and title == document.title:
            return document
        return dataclasses.replace(document, text=text, title=title)

    return stage


def code(text: str) -> str:
    """Source code with newlines as '\\n', without byte order marks and NULs; else as it is."""
    return _newlines(text).replace('\0', '').lstrip('\ufeff')


def prose(text: str, options: Options | None = None) -> str:
    """The text in its normal form; see the head of this module."""
    options = options or Options()
    while True:
        once = _spaced(_clean(text, options.mojibake), options.max_blank_lines)
        if once == text:
            return text
        text = once


def repaired(text: str) -> str:
    """Reads mojibake as what it was, where that is certain, line by line."""
    if not is_bad(text):
        return text
    lines = _LOST_BYTE.sub('”', text).split('\n')
    return '\n'.join(fix_encoding(line) if is_bad(line) and not _MEANT.search(line) else line for line in lines)


def _clean(text: str, mojibake: bool) -> str:
    """All but white space."""
    text = _newlines(text)
    if not text.isascii():
        text = well_formed(text)
        if mojibake:
            text = repaired(text)
    if odd := set(_ODD.findall(text)):
        text = _without_odd(text, odd)
    return text if unicodedata.is_normalized('NFC', text) else unicodedata.normalize('NFC', text)


def _newlines(text: str) -> str:
    return text.replace('\r\n', '\n').replace('\r', '\n') if '\r' in text else text


def _without_odd(text: str, odd: Collection[str]) -> str:
    """The text with newlines and spaces of one kind, without what cannot be seen, of which `odd` occurs in it."""
    if '\x1b' in odd:
        text = _TERMINAL.sub('', text)
    if any(_NEWLINES.match(c) for c in odd):
        text = _NEWLINES.sub('\n', text)
    if any('\x80' <= c < '\xa0' for c in odd):
        text = text.translate(_CP1252)
    if any(_JUNK.match(c) for c in odd):
        text = _JUNK.sub('', text)
    if '\u200b' in odd:
        text = _ZERO_WIDTH_SPACE.sub('', text)
    if '\xad' in odd:
        text = _SOFT_HYPHEN.sub('', text)
    if any(_DIRECTION.match(c) for c in odd) and not _RIGHT_TO_LEFT.search(text):
        text = _DIRECTION.sub('', text)
    if any(_SPACES.match(c) for c in odd):
        text = _SPACES.sub(' ', text)
    return text


def _spaced(text: str, max_blank_lines: int) -> str:
    """The text with white space in its normal form."""
    text = text.strip('\n')
    if not ('  ' in text or '\t' in text or ' \n' in text or text[-1:] == ' ' or '\n' * (max_blank_lines + 2) in text):
        return text
    out, fence, blank = [], '', 0
    for line in text.split('\n'):
        if fence:
            out.append(line)
            if line.strip() and not line.strip().strip(fence[0]) and len(line.strip()) >= len(fence):
                fence = ''
            continue
        line = _spaced_line(line)
        blank = 0 if line else blank + 1
        if blank <= max_blank_lines:
            out.append(line)
        if opened := _FENCE.match(line):
            fence = opened[1]
    return '\n'.join(out).strip('\n')


def _spaced_line(line: str) -> str:
    line = line.rstrip(' \t')
    if '  ' not in line and '\t' not in line:
        return line
    words = line.lstrip(' \t')
    indentation = line[: len(line) - len(words)]
    if len(indentation) >= 4 or '\t' in indentation:
        return line
    return indentation + _RUN.sub(' ', words)
