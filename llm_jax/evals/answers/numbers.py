"""Numbers in generated text: GSM8K's answers as lm-eval finds them, and as a reader would."""

from decimal import Decimal, InvalidOperation
import re

_MAX_CHARS = 100_000
_PLACES, _LINE = 100, 1000  # marks of an answer that are looked at, from the last; characters after one
INVALID = '[invalid]'  # as lm-eval calls text without an answer

# lm-eval's filters of gsm8k: strict-match takes the first match, flexible-extract the last.
_STRICT = re.compile(r'#### (\-?[0-9\.\,]+)')
_FLEXIBLE = re.compile(r'(-?[$0-9.,]{2,})|(-?[0-9]+)')

_NUMBER = re.compile(
    r'(?<![\w.])(?P<sign>[-+\u2212\u2013]?)\s?(?P<currency>[$€£]?)\s?(?P<minus>[-\u2212]?)'
    r'(?P<whole>\d{1,3}(?:,\d{3})+(?!\d)|\d+|(?=\.\d))(?P<fraction>\.\d+)?(?:\s?/\s?(?P<below>\d+)(?![\d.]))?'
)
# What stands in front of the final answer, the strongest first.
_MARKS = (
    re.compile(r'####'),
    re.compile(r'\\boxed\{'),
    re.compile(r'^A:', re.MULTILINE),
    re.compile(r'\b(?:final )?answer(?: is|:| =)', re.IGNORECASE),
)


def extract_strict(text: str) -> str:
    """The answer that lm-eval's strict-match finds: after the first '#### '."""
    found = _STRICT.search(text[:_MAX_CHARS])
    return found[1] if found else INVALID


def extract_flexible(text: str) -> str:
    """The answer that lm-eval's flexible-extract finds: the last number."""
    found = [match[0] for match in _FLEXIBLE.finditer(text[-_MAX_CHARS:])]
    return found[-1] if found else INVALID


def is_same_text(answer: str, gold: str) -> bool:
    """lm-eval's exact match of gsm8k: without commas, dollars, what stands before '#### ', and a final full stop."""
    return _without_ignored(answer).lower() == _without_ignored(gold).lower()


def _without_ignored(text: str) -> str:
    """Without what lm-eval's patterns ',', '\\$', '(?s).*#### ' and '\\.$' match (the third is slow as a pattern)."""
    return re.sub(r'\.$', '', text.replace(',', '').replace('$', '').rpartition('#### ')[2])


def grade_strict(generation: str, gold: str) -> bool:
    """Whether a generation is right by lm-eval's strict-match; `gold` is GSM8K's whole answer, or its number."""
    return is_same_text(extract_strict(generation), gold)


def grade_flexible(generation: str, gold: str) -> bool:
    """Whether a generation is right by lm-eval's flexible-extract."""
    return is_same_text(extract_flexible(generation), gold)


def read_number(text: str) -> Decimal | tuple[Decimal, Decimal] | None:
    """The first number in a text: with sign, currency, thousands' commas, as a decimal or a fraction (a, b).

    '$1,234.50', '-3', '3/4', '.5', '18 dollars', '10%' (which is 10: the unit is not part of the number).
    """
    found = _NUMBER.search(text[:_MAX_CHARS])
    if not found or len(found[0]) > 1000:
        return None
    try:
        value = Decimal((found['whole'] or '0').replace(',', '') + (found['fraction'] or ''))
        if found['sign'] in ('-', '\u2212', '\u2013') and found['sign'] or found['minus']:
            value = -value
        if found['below'] is None or not Decimal(found['below']):
            return value
        return value, Decimal(found['below'])
    except InvalidOperation:  # more digits than Decimal takes
        return None


def final_number(text: str) -> Decimal | tuple[Decimal, Decimal] | None:
    """The number that a text gives as its answer: the first one after the last mark of an answer, else the last number.

    Marks are '####', '\\boxed{', 'A:' at the start of a line, and 'the answer is'.
    """
    text = text[-_MAX_CHARS:]
    for mark in _MARKS:
        places = list(mark.finditer(text))
        for place in reversed(places[-_PLACES:]):
            line = text[place.end() : place.end() + _LINE].split('\n')[0]
            if (number := read_number(line)) is not None:
                return number
    found = [match[0] for match in _NUMBER.finditer(text)]
    return read_number(found[-1]) if found else None


def equal_numbers(a: Decimal | tuple[Decimal, Decimal], b: Decimal | tuple[Decimal, Decimal]) -> bool:
    """Whether two numbers are the same, exactly: 18 = 18.00, 1/2 = 0.5."""
    above_a, below_a = a if isinstance(a, tuple) else (a, Decimal(1))
    above_b, below_b = b if isinstance(b, tuple) else (b, Decimal(1))
    return _integer_product(above_a, below_b) == _integer_product(above_b, below_a)


def _integer_product(a: Decimal, b: Decimal) -> tuple[int, int]:
    """A product without rounding: its digits as an integer without final zeros, and their exponent."""
    (sign_a, digits_a, exponent_a), (sign_b, digits_b, exponent_b) = a.as_tuple(), b.as_tuple()
    value = int(''.join(map(str, digits_a))) * int(''.join(map(str, digits_b)))
    exponent = int(exponent_a) + int(exponent_b)
    if not value:
        return 0, 0
    while value % 10 == 0:
        value, exponent = value // 10, exponent + 1
    return (-value if sign_a != sign_b else value), exponent


def grade_number(generation: str, gold: str) -> bool:
    """Whether a generation's final number is that of the gold answer, however both are written."""
    answer, right = final_number(generation), final_number(gold)
    return answer is not None and right is not None and equal_numbers(answer, right)
