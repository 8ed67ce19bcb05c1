"""Bytes to text: by byte order mark, by what the bytes can be at all, by what is declared, else by guess.

Line ends stay as they are: CRLF, and the lone CR of old Mac files, become LF where
texts are normalised, so that text which never was bytes (JSON, Parquet) is treated alike.
"""

import codecs
import re
import unicodedata

from llm_jax.corpus.read.guess import beyond_ascii, guess, plausibility

# Names that the WHATWG Encoding Standard reads as another encoding than they say, or that Python does not know;
# without what is neither letter nor digit. https://encoding.spec.whatwg.org/#names-and-labels
_LABELS = {
    label: encoding
    for encoding, labels in {
        'utf-8': 'utf8 utf8mb4 unicode11utf8 unicode20utf8 xunicode20utf8 unicode',
        'windows-1252': 'ascii usascii ansix341968 iso88591 iso885911987 isoir100 latin1 l1 cp819 ibm819 csisolatin1 '
        'windows1252 cp1252 xcp1252 ansi xxxuserdefined',
        'windows-1254': 'iso88599 iso885991989 isoir148 latin5 l5 csisolatin5 windows1254 cp1254 xcp1254',
        'cp874': 'iso885911 dos874 tis620 windows874',
        'gb18030': 'gb2312 gb231280 gbk gb18030 chinese csgb2312 csiso58gb231280 isoir58 xgbk euccn cp936',
        'big5hkscs': 'big5 big5hkscs cnbig5 csbig5 xxbig5 cp950',
        'cp932': 'shiftjis sjis xsjis mskanji windows31j csshiftjis ms932',
        'cp949': 'euckr ksc56011987 ksc56011989 ksc5601 korean cseuckr csksc56011987 isoir149 windows949 uhc',
        'euc-jp': 'eucjp xeucjp cseucpkdfmtjapanese',
        'mac-roman': 'macintosh mac xmacroman csmacintosh',
        'mac-cyrillic': 'xmaccyrillic xmacukrainian',
        'iso-8859-6': 'asmo708 ecma114 arabic csisolatinarabic',
        'iso-8859-8': 'iso88598i logical visual hebrew',
        'utf-16-le': 'utf16 utf16le ucs2 iso10646ucs2 csunicode unicodefeff',
        'utf-16-be': 'utf16be unicodefffe',
    }.items()
    for label in labels.split()
}
# Other encodings that a label may name, by Python's name of them.
_OTHERS = {
    'cp866', 'koi8-r', 'koi8-u', 'iso2022_jp', 'hz', 'mac-cyrillic', 'cp437', 'cp850', 'cp852', 'cp855', 'cp857',
    *(f'iso8859-{i}' for i in (2, 3, 4, 5, 6, 7, 8, 10, 13, 14, 15, 16)),
    *(f'cp{i}' for i in (1250, 1251, 1253, 1255, 1256, 1257, 1258)),
}  # fmt: skip
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
# A declared one-byte encoding fits any bytes; it is believed if the text then reads like a language.
_BELIEVED = 0.8
# By how much a guess must be more plausible than a declaration.
_MARGIN = 0.1
# Errors per good character of what is still UTF-8, if it is declared, and if not.
_UTF8_ERRORS = {True: 0.5, False: 0.1}


def decode(data: bytes, declared: str = '', html: bool = False) -> tuple[str, str, bool]:
    """Text of bytes, without a byte order mark.

    In this order: a byte order mark; UTF-16 without one; valid UTF-8 (few other texts
    are by chance, many pages declare something else); what is declared, by the transport
    and then by the document; UTF-8 with some errors; the most plausible legacy encoding.
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
    for encoding in dict.fromkeys(stated):
        if encoding.startswith('utf-'):
            continue
        text = data.decode(encoding, 'replace')
        beyond = beyond_ascii(text)
        wrong = text.count('\ufffd')
        if wrong <= 0.01 * beyond and plausibility(data, encoding) >= _BELIEVED:
            return text, encoding, not wrong
    good = beyond_ascii(as_utf8) - errors
    if errors <= good * _UTF8_ERRORS['utf-8' in stated]:
        return as_utf8, 'utf-8', False
    encoding, plausible = guess(data)
    one = next((e for e in stated if not e.startswith('utf-')), '')
    if one and plausible <= plausibility(data, one) + _MARGIN:
        encoding = one
    return data.decode(encoding, 'replace'), encoding, False


def is_binary(data: bytes) -> bool:
    """Whether data is no text in any encoding: known file types, NUL bytes, or many control characters."""
    if data.startswith(_MAGIC):
        return True
    if data.startswith(tuple(bom for bom, _ in _BOMS)):
        return False
    head = data[: 1 << 14]
    controls = len(head) - len(head.translate(None, _CONTROL))
    if controls <= len(head) * 0.001:
        return False
    if b'\0' in head:
        return not _utf16(data)
    return controls > len(head) * 0.02


def lookup(label: str) -> str:
    """Python's name of the encoding that browsers use for a label ('latin1' -> 'windows-1252'); '' if there is none."""
    label = label.strip().lower()
    plain = re.sub('[^a-z0-9]', '', label)
    if plain in _LABELS:
        return _LABELS[plain]
    try:
        name = codecs.lookup(label).name
    except (LookupError, ValueError):  # ValueError: a NUL in the label
        return ''
    return name if name in _OTHERS else ''


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
