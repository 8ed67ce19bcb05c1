"""Bytes to text: by byte order mark, by what the bytes can be at all, by what is declared, else by detection.

Detection is resiliparse's (uchardet). What it has no model of, the code pages of DOS and old Macs, and Ukrainian
KOI8, is tried where the text that it names does not read as words.

Line ends stay as they are: CRLF, and the lone CR of old Mac files, become LF where
texts are normalised, so that text which never was bytes (JSON, Parquet) is treated alike.
"""

import codecs
from collections import Counter
import re
import unicodedata

import ftfy.bad_codecs  # noqa: F401, registers the codecs named sloppy
from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

# Encodings that contain those of the WHATWG Encoding Standard (https://encoding.spec.whatwg.org), as Python names them.
_SUPERSETS = {
    'cp1252': 'windows-1252',
    'cp1254': 'windows-1254',
    'iso8859-1': 'windows-1252',
    'iso8859-9': 'windows-1254',
    'iso8859-11': 'cp874',
    'tis-620': 'cp874',
    'gb2312': 'gb18030',
    'gbk': 'gb18030',
    'big5': 'big5hkscs',
    'shift_jis': 'cp932',
    'euc_kr': 'cp949',
    'euc_jp': 'euc-jp',
}
# Further encodings that a label may name, by Python's name.
_OTHERS = ('hz', 'mac-cyrillic', 'cp437', 'cp850', 'cp852', 'cp855', 'cp857')
# Encodings that resiliparse has no model of, the most common first.
_UNDETECTED = ('koi8-u', 'mac-roman', 'cp850')
# Encodings of the same languages, of which resiliparse at times names the wrong one.
_CONFUSED = {
    'cp1250': ('iso8859-2',),
    'iso8859-2': ('cp1250',),
    'cp852': ('cp850',),
    'cp865': ('cp850',),
}
# Letters beyond ASCII of the languages that these three were made for: nothing else tells Icelandic from Romanian.
_WESTERN = ('windows-1252', 'mac-roman', 'cp850')
_WESTERN_LETTERS = tuple(
    map(
        frozenset,
        ['àâæçéèêëîïôœùûü', 'äöüß', 'áéíñóúü', 'àèéìíòóù', 'áâãàçéêíóõúü', 'åäöé', 'æøåé', 'áðéíóúýþæö', 'àçèéíïòóúü·'],
    )
)
# ftfy's codecs give each byte a character, as browsers do: 0x9D of windows-1252 ends mojibake of a quotation mark.
_SLOPPY = {f'{name}{n}': f'sloppy-windows-{n}' for n in range(1250, 1259) for name in ('windows-', 'cp')}
_MULTIBYTE = ('gb18030', 'big5hkscs', 'cp932', 'cp949', 'euc-jp')
_BOMS = (
    (codecs.BOM_UTF8, 'utf-8'),
    (codecs.BOM_UTF32_LE, 'utf-32-le'),
    (codecs.BOM_UTF32_BE, 'utf-32-be'),
    (codecs.BOM_UTF16_LE, 'utf-16-le'),
    (codecs.BOM_UTF16_BE, 'utf-16-be'),
)
_MAGIC = (
    b'%PDF-',
    b'%!PS',
    b'\x89PNG',
    b'GIF8',
    b'\xff\xd8\xff',
    b'PK\x03\x04',
    b'\x1f\x8b',
    b'\x7fELF',
    b'RIFF',
    b'BZh',
)
_CONTROL = bytes(set(range(32)) - set(b'\t\n\v\f\r\b\x1b')) + b'\x7f'
# How far into a page a declaration is looked for: WHATWG says 1024 bytes, but scripts often come first.
_HEAD_BYTES = 4096
_XML_DECLARATION = re.compile(rb"""\s*<\?xml[^>]*?encoding\s*=\s*["']([\w:.-]+)""", re.I)
_META = re.compile(rb"""<meta\s[^>]*?charset\s*=\s*["']?\s*([\w:.-]+)""", re.I)
# Detection looks at so many bytes from the first one on that is not ASCII, and at some before it.
_SAMPLE_BYTES, _BEFORE_BYTES = 1 << 16, 1 << 8
# A declared one-byte encoding fits any bytes; it is believed if the text then reads as words, or nearly as well as
# what is detected.
_BELIEVED, _MARGIN = 0.8, 0.1
# By how much text of an encoding that is not detected has to read better.
_BETTER = 0.05
# Errors per good character of what is still UTF-8: where that is declared or detected, or nothing else reads as words;
# and where another encoding does.
_UTF8_ERRORS = {True: 1.0, False: 0.1}
# What reads as words less than this is none: UTF-8 taken for Chinese or Korean has ideographs between Latin letters.
_IMPLAUSIBLE = 0.5
_PUNCTUATION = frozenset('“”„‘’‚«»‹›…–—•·°©®™€£¥§†¿¡ªº¹²³½¼¾×±µ´№\xa0\xad')
# Punctuation that may stand between two letters: l’eau, mother—and, a soft hyphen, col·legi.
_INNER = frozenset('’–—·\xa0\xad')
_LAST_LATIN = '\u024f'
_BEYOND_ASCII = re.compile('[^\x00-\x7f]')


def decode(data: bytes, declared: str = '', html: bool = False) -> tuple[str, str, bool]:
    """Text of bytes, without a byte order mark.

    In this order: a byte order mark; UTF-16 without one; valid UTF-8 (few other texts
    are by chance, many pages declare something else); what is declared, by the transport
    and then by the document; UTF-8 with some errors; the detected legacy encoding.
    Nothing fails: what cannot be decoded is U+FFFD.

    Args:
      data: the bytes of the document.
      declared: name of the encoding that came with it (a charset of HTTP); '' if none did.
      html: whether to look for an XML declaration or a meta tag within.

    Returns:
      (text, encoding under a name that Python knows, whether the bytes or a declaration
      without any error settled it).
    """
    for bom, encoding in _BOMS:
        if data.startswith(bom):
            return data[len(bom) :].decode(encoding, 'replace'), encoding, True
    if b'\0' in data and (encoding := _utf16(data)):
        return data.decode(encoding, 'replace'), encoding, True
    stated = [encoding for label in (declared, *(_within(data) if html else ())) if (encoding := lookup(label))]
    escaped = next((e for e in (*stated, 'iso2022_jp') if e in ('iso2022_jp', 'hz') and _is_escaped(data, e)), None)
    if escaped:
        return data.decode(escaped, 'replace'), escaped, True
    if data.isascii():
        return data.decode('ascii'), 'ascii', True
    as_utf8 = data.decode('utf-8', 'replace')
    errors = as_utf8.count('\ufffd') - data.count('\ufffd'.encode())
    if not errors and not (stated and stated[0] in _MULTIBYTE and _ambiguous(data, stated[0])):
        return as_utf8, 'utf-8', True
    sample = _sample(data)
    for encoding in dict.fromkeys(stated):
        if encoding.startswith('utf-'):
            continue
        text = _legacy(data, encoding)
        wrong = text.count('\ufffd')
        if wrong <= 0.01 * _beyond_ascii(text) and plausibility(sample, encoding) >= _BELIEVED:
            return text, encoding, not wrong
    encoding, plausible = detect(data)
    good = _beyond_ascii(as_utf8) - errors
    if errors <= good * _UTF8_ERRORS['utf-8' in (encoding, *stated) or plausible < _IMPLAUSIBLE]:
        return _mixed(data), 'utf-8', False
    one = next((e for e in stated if not e.startswith('utf-')), '')
    if one and plausible <= plausibility(sample, one) + _MARGIN:
        encoding = one
    return _legacy(data, encoding), encoding, False


def _legacy(data: bytes, encoding: str) -> str:
    """Decodes a legacy encoding; bytes that Python leaves undefined become controls, as in WHATWG's tables."""
    return data.decode(_SLOPPY.get(encoding, encoding), 'replace')


def _mixed(data: bytes) -> str:
    """UTF-8 text of which some lines are in another encoding, as of files that were joined; else U+FFFD."""
    lines = data.split(b'\n')
    texts = [line.decode('utf-8', 'replace') for line in lines]
    # A line that has both is UTF-8 with damage.
    others = [i for i, text in enumerate(texts) if '\ufffd' in text and text.replace('\ufffd', '').isascii()]
    if others:
        rest = b'\n'.join(lines[i] for i in others)
        encoding, plausible = detect(rest)
        if encoding != 'utf-8' and plausible >= _BELIEVED:
            for i, text in zip(others, _legacy(rest, encoding).split('\n'), strict=True):
                texts[i] = text
    return '\n'.join(texts)


def detect(data: bytes) -> tuple[str, float]:
    """Detects the encoding of text that does not say it.

    Returns:
      (encoding, how much the text reads as words then, from 0 to 1).
    """
    sample = _sample(data)
    found = detect_encoding(sample, max_len=len(sample), html5_compatible=False) or 'windows-1252'
    found = _SUPERSETS.get(found, found)
    if found in _MULTIBYTE:
        return found, plausibility(sample, found)
    if found == 'utf-8':
        text = sample.decode('utf-8', 'replace')
        if 3 * text.count('\ufffd') <= _beyond_ascii(text):
            return found, plausibility(sample, found)
    # Equally plausible: the most common, then the detected one, is the first.
    candidates = dict.fromkeys(('windows-1252', found, *_CONFUSED.get(found, ())))
    score = {encoding: plausibility(sample, encoding) for encoding in (*candidates, *_UNDETECTED)}
    found = max(candidates, key=lambda encoding: round(score[encoding], 2))
    best = max(_UNDETECTED, key=score.__getitem__)
    if score[best] >= max(_BELIEVED, score[found] + _BETTER):
        found = best
    return found, score[found]


def plausibility(sample: bytes, encoding: str) -> float:
    """Measures the share of characters beyond ASCII that are where a text has such, from 0 to 1; 1 without any."""
    text = f' {sample.decode(encoding, "replace")} '
    spots = Counter(text[m.start() - 1 : m.start() + 2] for m in _BEYOND_ASCII.finditer(text))
    total = sum(spots.values())
    if not total:
        return 1.0
    fitting = {spot: count for spot, count in spots.items() if _fits(*spot)}
    if encoding not in _WESTERN:
        return sum(fitting.values()) / total
    known = lambda spot, letters: spot[1] in _PUNCTUATION or spot[1].lower() in letters
    return max(sum(n for spot, n in fitting.items() if known(spot, letters)) for letters in _WESTERN_LETTERS) / total


def _fits(before: str, char: str, after: str) -> bool:
    """Tells if a word can have a character between these two: no second script, no capital or sign inside."""
    if not char.isalpha() and unicodedata.category(char) not in ('Mn', 'Mc'):
        is_sign = char in _PUNCTUATION or unicodedata.category(char).startswith('P')
        return is_sign and (char in _INNER or char >= '\u2e80' or not (before.isalpha() and after.isalpha()))
    if char.isupper() and before.islower():
        return False
    if char > _LAST_LATIN:
        return not (_is_latin(before) or _is_latin(after))
    # Languages that use Latin letters use those of ASCII too, at least every third.
    return not (before > '\x7f' and before.isalpha() and after > '\x7f' and after.isalpha())


def _is_latin(char: str) -> bool:
    return char.isalpha() and char <= _LAST_LATIN


def _sample(data: bytes) -> bytes:
    """Returns the part of some bytes that is not ASCII, from a little before its beginning."""
    start = next((i for i in range(0, len(data), 4096) if not data[i : i + 4096].isascii()), 0)
    start += next((i for i, byte in enumerate(data[start : start + 4096]) if byte > 0x7F), 0)
    return data[max(0, start - _BEFORE_BYTES) :][:_SAMPLE_BYTES]


def _beyond_ascii(text: str) -> int:
    """Counts the characters that are not ASCII."""
    return len(text) - len(text.encode('ascii', 'ignore'))


def is_binary(data: bytes) -> bool:
    """Whether data is no text in any encoding: known file types, NUL bytes, or many control characters."""
    if data.startswith(_MAGIC):
        return True
    if data.startswith(tuple(bom for bom, _ in _BOMS)):
        return False
    head = data[: 1 << 14]
    controls = len(head) - len(head.translate(None, _CONTROL))
    # Browsers, and so authors, do not see a few.
    if controls <= max(len(head) * 0.001, min(len(head) * 0.01, 3)):
        return False
    if b'\0' in head:
        return not _utf16(data)
    return controls > len(head) * 0.02


def lookup(label: str) -> str:
    """Python's name of the encoding that browsers use for a label ('latin1' -> 'windows-1252'); '' if there is none."""
    try:
        name = map_encoding_to_html5(label, fallback_utf8=False) or codecs.lookup(label.strip()).name
    except (LookupError, ValueError):  # ValueError: a NUL in the label
        return ''
    known = name in _OTHERS or map_encoding_to_html5(name, fallback_utf8=False)
    return _SUPERSETS.get(name, name) if known else ''


def _within(data: bytes) -> list[str]:
    """Labels that a page declares itself."""
    head = data[:_HEAD_BYTES]
    found = [match for match in (_XML_DECLARATION.match(head), *_META.finditer(head)) if match]
    return [match[1].decode('ascii', 'ignore') for match in found]


def _utf16(data: bytes) -> str:
    """UTF-16 without a byte order mark; '' if the data is not that.

    Each script has spaces, line ends or ideographic commas; read in the wrong order, or
    from something else than text, there are characters that nobody uses.
    """
    found = []
    for encoding in ('utf-16-le', 'utf-16-be'):
        text = data[: 1 << 16].decode(encoding, 'replace')
        unused = sum(unicodedata.category(c) in ('Cc', 'Cn', 'Co', 'Cs') and c not in '\t\n\v\f\r' for c in text)
        between = sum(map(text.count, ' \n\r\u3000\u3001\u3002'))
        if unused <= len(text) * 0.001 and between >= len(text) * 0.005:
            found.append((between, encoding))
    return max(found)[1] if found else ''


def _is_escaped(data: bytes, encoding: str) -> bool:
    """Whether ASCII bytes switch to two-byte characters by the escapes of this encoding, and do so rightly."""
    if not data.isascii() or not re.search(rb'\x1b\$[@B]' if encoding == 'iso2022_jp' else rb'~\{', data):
        return False
    return '\ufffd' not in data.decode(encoding, 'replace').rstrip('\ufffd')


def _ambiguous(data: bytes, encoding: str) -> bool:
    """Whether valid UTF-8 is so short that it may be this two-byte encoding as well."""
    high = len(data) - len(data.translate(None, bytes(range(128, 256))))
    return high < 12 and '\ufffd' not in data.decode(encoding, 'replace')
