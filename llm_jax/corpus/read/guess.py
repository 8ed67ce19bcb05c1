"""The legacy encoding of bytes that do not say it: the one under which they read like some language.

An encoding is as plausible as the largest share of non-ASCII characters that one
language explains: letters of its alphabet in a sensible place (no capital inside a
word, no quotation mark between letters), or, in Chinese, Japanese and Korean, the
common half of the characters that the old standards list by frequency.
"""

from collections import Counter
from collections.abc import Callable
import re

# Characters that are looked at, about.
_SAMPLE = 1000
_SPOT = re.compile(rb'(?:[\x00-\x7f]{0,2}[\x80-\xff]++)++[\x00-\x7f]{0,2}')

_LATIN = ('àâæçéèêëîïôœùûü', 'äöüß', 'áéíñóúü', 'àèéìíòóù', 'áâãàçéêíóõúü', 'åäöé', 'æøåé', 'áðéíóúýþæö', 'àçèéíïòóúü·')
_CENTRAL = ('áčďéěíňóřšťúůýž', 'áäčďéíĺľňóôŕšťúýž', 'ąćęłńóśźż', 'áéíóöőúüű', 'čćđšž', 'ăâîşţșț')
_CYRILLIC = (
    'абвгдежзийклмнопрстуфхцчшщъыьэюяё',
    'абвгдежзийклмнопрстуфхцчшщьюяєіїґ',
    'абвгдежзийклмнопрстуфхцчшыьэюяёіў',
    'абвгдежзиклмнопрстуфхцчшђјљњћџѓѕќ',
)
_GREEK = ('αβγδεζηθικλμνξοπρστυφχψωςάέήίόύώϊϋΐΰ',)
# Alphabets beyond ASCII, in lower case, of the languages that each encoding was made for. Where two are
# equally plausible the first is taken, so they stand in order of how common they are.
_ALPHABETS = {
    'windows-1252': _LATIN,
    # Before Cyrillic, whose small letters have the same bytes: but Hebrew has no use for those of capitals.
    'windows-1255': ('אבגדהוזחטיךכלםמןנסעףפץצקרשת',),
    'windows-1251': _CYRILLIC,
    'windows-1250': _CENTRAL,
    'iso-8859-2': _CENTRAL,
    'koi8-r': _CYRILLIC[:1],
    'koi8-u': _CYRILLIC[1:2],
    'windows-1253': _GREEK,
    'windows-1254': ('çğıöşüâîi̇',),
    'windows-1256': ('ءآأؤإئابةتثجحخدذرزسشصضطظعغفقكلمنهوىيًٌٍَُِّْ،؛؟ـ', 'ءآأؤئابتثجحخدذرزسشصضطظعغفقكلمنهويگچپژ،؛؟‌'),
    'windows-1257': ('ąčęėįšųūž', 'āčēģīķļņšūž', 'äõöüšž'),
    'cp874': (''.join(map(chr, [*range(0x0E01, 0x0E3B), *range(0x0E40, 0x0E4F)])),),
    'iso-8859-5': _CYRILLIC,
    'iso-8859-7': _GREEK,
    'cp866': _CYRILLIC[:1],
    'cp850': _LATIN,
    'mac-roman': _LATIN,
}
_PUNCTUATION = frozenset('“”„‘’‚«»‹›…–—•·°©®™€£¥§†¿¡ªº¹²³½¼¾×±µ´№\xa0\xad')
# What may stand between two letters: l’eau, mother—and, a soft hyphen, col·legi.
_INNER = frozenset('’–—·\xa0\xad')
_LAST_LATIN = '\u024f'
_KANA = re.compile('[\u3041-\u3096\u30a1-\u30fc]')
_HANGUL = re.compile('[\uac00-\ud7a3]')
_WIDE_PUNCTUATION = re.compile('[\u3000-\u3015\uff01-\uff5e\u2010-\u2026\u00b7]')


def guess(data: bytes) -> tuple[str, float]:
    """The most plausible legacy encoding, and its plausibility from 0 to 1.

    Args:
      data: text that is not valid UTF-8.
    """
    sample = _sample(data)
    found = [(_plausible(sample, encoding), -i, encoding) for i, encoding in enumerate(_MEASURES)]
    best, _, encoding = max(found)
    return encoding, best


def plausibility(data: bytes, encoding: str) -> float:
    """How much the data reads like text of this encoding, from 0 to 1; 1 for encodings not known here."""
    return _plausible(_sample(data), encoding)


def beyond_ascii(text: str) -> int:
    """Number of characters that are not ASCII."""
    return len(text) - len(text.encode('ascii', 'ignore'))


def _sample(data: bytes) -> bytes:
    """The first non-ASCII bytes and what is next to them."""
    pieces, count = [], 0
    for match in _SPOT.finditer(data):
        pieces.append(match[0][: 2 * _SAMPLE])
        count += len(pieces[-1])
        if count > 2 * _SAMPLE:
            break
    return b' '.join(pieces)


def _plausible(sample: bytes, encoding: str) -> float:
    text = sample.decode(encoding, 'replace')
    beyond = beyond_ascii(text)
    measure = _MEASURES.get(encoding)
    return measure(text) / beyond if measure and beyond else 1.0


def _alphabetic(alphabets: tuple[str, ...]) -> Callable[[str], float]:
    """Non-ASCII characters that the best of these alphabets explains."""

    def measure(text: str) -> float:
        padded = f' {text} '
        spots = Counter(padded[m.start() - 1 : m.start() + 2] for m in re.finditer('[^\x00-\x7f]', padded))
        return max(
            sum(count * _fits(*spot, letters) for spot, count in spots.items()) for letters in map(frozenset, alphabets)
        )

    return measure


def _fits(before: str, char: str, after: str, letters: frozenset[str]) -> float:
    """Whether a character is where a text of these letters has it: from 0 to 1."""
    small = char.lower()
    if small in letters:
        if small > _LAST_LATIN and (_is_latin(before) or _is_latin(after)):
            return 0.0  # two scripts in one word
        if char == small:
            return 1.0
        # A capital: first in its word, or among capitals.
        return 1.0 if not before.isalpha() and not after.isupper() else 0.9 * (not before.islower())
    if char in _PUNCTUATION:
        return 1.0 if char in _INNER or not (before.isalpha() and after.isalpha()) else 0.0
    return 0.0


def _is_latin(char: str) -> bool:
    return char.isalpha() and char <= _LAST_LATIN


def _korean(text: str) -> float:
    """The Hangul syllables of KS X 1001, of which a language without them hits few by chance."""
    pairs = ''.join(_HANGUL.findall(text)).encode('cp949')
    common = sum(0xB0 <= lead <= 0xC8 and trail > 0xA0 for lead, trail in zip(pairs[::2], pairs[1::2], strict=True))
    return common + len(_WIDE_PUNCTUATION.findall(text))


def _japanese(text: str) -> float:
    """Kana, and kanji of the first level of JIS X 0208 where there is kana as well."""
    kana = len(_KANA.findall(text))
    kanji = _first_level(text, 'euc-jp', 0xB0, 0xCF)
    return kana + len(_WIDE_PUNCTUATION.findall(text)) + min(kanji, 8 * kana)


def _chinese(encoding: str, first: int, last: int) -> Callable[[str], float]:
    return lambda text: _first_level(text, encoding, first, last) + len(_WIDE_PUNCTUATION.findall(text))


def _first_level(text: str, encoding: str, first: int, last: int) -> int:
    """Characters whose lead byte in this two-byte encoding is one of the rows of common characters."""
    characters = ''.join(c for c in text if '\u3400' <= c <= '\u9fff')
    return sum(first <= lead <= last for lead in characters.encode(encoding, 'ignore')[::2])


_MEASURES: dict[str, Callable[[str], float]] = {
    'cp949': _korean,
    'euc-jp': _japanese,
    'cp932': _japanese,
    **{encoding: _alphabetic(alphabets) for encoding, alphabets in _ALPHABETS.items()},
    'gb18030': _chinese('gb2312', 0xB0, 0xD7),
    'big5hkscs': _chinese('big5', 0xA4, 0xC6),
}
