"""Telephone and card numbers.

A telephone number is one of:
  - international: '+' (or '00' and separators), an assigned country code, and as many digits as
    numbers there have (E.164);
  - North American: (212) 555-0123, 212-555-0123, 212.555.0123, with area and exchange as the
    numbering plan allows them;
  - national: a trunk 0 and groups of digits as they are written in Europe, Asia and Australia, an
    area code in brackets, the Russian 8 (495) 123-45-67; in prose only;
  - 7 to 15 digits after a word such as 'Tel.', 'fax', 'mobile', in many languages.
Left: dates, years, ISBNs, prices, serial numbers, numbers with thousands apart.

A card number has the first digits and the length of an issuer (ISO/IEC 7812), stands alone or in
groups as on a card, and passes the Luhn check. In code, where any integer may be that long, an
ungrouped one also needs a word such as 'card' before it.
"""

from collections.abc import Iterator
import re

# What separates groups of digits; the rules are written for a space and '-'.
_SPACES, _DASHES = ' \u00a0\u2009\u202f', '-\u2010\u2011\u2012\u2013'
_SEPARATORS = str.maketrans(_SPACES + _DASHES, ' ' * len(_SPACES) + '-' * len(_DASHES))
_CANDIDATE = re.compile(
    # What is looked for behind comes after the first character: so `re` skips to the next '+', '(' or digit.
    # Chinese or Japanese may stand before a number without a space.
    rf'[+(0-9](?<![A-Za-z0-9_\u00c0-\u04ff+(].)(?:[{_SPACES}.()/\{_DASHES}]{{0,3}}[0-9]){{6,24}}(?![^\Wx]|x(?![0-9])|[.,:]\d)'
)
_EXTENSION = re.compile(r',?\s?(?:ext|extension|x)\.?\s?[0-9]{1,5}(?!\w)', re.I)
# Country codes (ITU E.164) and how many digits follow them where that is told from other numbers by it.
_LENGTHS = {
    '7': (10, 10), '20': (8, 10), '27': (9, 9), '30': (10, 10), '31': (9, 9), '32': (8, 9), '33': (9, 9),
    '34': (9, 9), '36': (8, 9), '39': (6, 11), '40': (9, 9), '41': (9, 9), '43': (7, 13), '44': (9, 10), '45': (8, 8),
    '46': (7, 10), '47': (8, 8), '48': (9, 9), '49': (7, 12), '52': (10, 11), '54': (10, 11), '55': (10, 11),
    '61': (9, 9), '81': (9, 10), '82': (8, 10), '86': (10, 11), '90': (10, 10), '91': (10, 10),
}  # fmt: skip
_OTHER_CODES = re.compile(
    r'5[136-8]|6[02-6]|8[46]|9[2-58]|2(?:1[1-8]|[2-6]\d|9[0179])|3[578]\d|42[013]|50\d|59\d|67\d|68\d|69[0-2]|'
    r'80[08]|85[02356]|870|88[0-368]|96\d|97\d|99[2-68]'
)
_NORTH_AMERICAN = re.compile(
    r'(?:1[ .-])?(?:(?:\([2-9]\d\d\)[ -]?|[2-9]\d\d[.-])(?![2-9]11)[2-9]\d\d[ .-]\d{4}'
    # Toll-free.
    r'|\(?8(?:00|88|77|66|55|44|33)\)?[ .-][2-9]\d\d[ .-]\d{4})'
)
_NATIONAL = re.compile(
    # A trunk 0: 020 7946 0018, 0171/1234567, 03-1234-5678, 01 23 45 67 89, (02) 9876 5432. Neither a
    # post code such as 02134-1234 nor a row of numbers.
    r'(?!\d{5}-\d{4}$|\d{3}([ -])\d{3}\1\d{3}\1\d{3}$)\(?0[1-9]\d{0,3}\)?(?: - |[ -]| ?/ ?(?=[1-9]))'
    r'\d{2,8}(?:([ -])\d{2,5}(?:\2\d{2,5}){0,3})?'
    r'|0[1-9](?:\.\d\d){4}'
    # An area code in brackets: (11) 91234-5678, (55) 1234 5678; not a year: Nature (1998) 393-4400.
    r'|(?!\((?:1[5-9]|20)\d\d\))\(\d{2,5}\)[ -]?\d{3,5}[ -]\d{4}'
    # 8 (495) 123-45-67
    r'|8[ -]?\(?\d{3}\)?[ -]?\d{3}-\d\d-\d\d'
)
# Words before a number, perhaps with 'number', 'us at', ... between.
_SAID = re.compile(
    # Not within a name: j.cell.2011.02.013.
    r'(?:(?<!\w\.)(?<![^\W\d_])(?:tele?(?:ph|f)+(?:one?|oon|ono|oni|on)s?|tel|phones?|ph|fon|mobil[ey]?|mob|cellphone|fax|'
    r'(?P<weak>cell|call|dial|portable|handy)|whatsapp|sms|viber|hotline|helpline|móvil|movil|celular|teléfono|téléphone|tél|'
    r'telefax|puhelin|телефон\w*|тел|моб|факс|τηλ|טל|फोन|मोबाइल)(?![^\W\d_])'
    r'|电话|電話|手机|手機|传真|联系|聯絡|携帯|전화|휴대폰|연락처|هاتف|جوال|☎|📞|📱|✆)[^\w\n]{0,6}'
    r'(?:(?:number|no|nr|num|us|me|at|on|is|office|home|work|numéro|номер|号码|番号|번호)[^\w\n]{1,4}){0,4}[^\w\n]{0,3}$',
    re.I,
)
# 'call 1000000 times', 'cell 12345678', 'dial 1 000 000'
_COUNT = re.compile(r'\d{7,9}|\d{1,3}(?:[ .]\d{3})+')
# 'fax 2000000 pages'
_ROUND = re.compile(r'\d{1,4}0{5,}|\d{1,3}[ .]000[ .]000')
_NORTH_AMERICAN_AMONG_OTHERS = re.compile(rf'(?<![^ ])(?:{_NORTH_AMERICAN.pattern})(?![^ ])')
_NUMBER_BEFORE = re.compile(r'\d[.,;]\s$')
_POST_CODE = re.compile(r'\b[A-Z]{2} \d{5}(?:-\d{4})?[.,;]?\s$')
_DRAW = re.compile(r'\b(?:scores?|results?|draws?|lotto|lottery|points|grades?|marks)[:\s]{1,3}$', re.I)
_DATE = re.compile(r'(?:1[5-9]|20)\d\d([-./ ])[01]?\d\1[0-3]?\d(?!\d)|[0-3]?\d([-./ ])[01]?\d\2(?:1[5-9]|20)\d\d(?!\d)')
_NO_PHONE_BEFORE = re.compile(
    r'[$€£¥₹#%=*^~]\s?$|[\d)][.,:/+*x×=\u2013-]\s?$|\w[.,/_:-]$|(?:isbn|issn|doi|oclc|ean|upc)[\w\s:-]{0,12}$', re.I
)


def phones(text: str, code: bool) -> Iterator[tuple[int, int]]:
    """(start, end) of each telephone number, its extension included."""
    for match in _CANDIDATE.finditer(text):
        raw = match[0].translate(_SEPARATORS)
        start = match.start()
        before = text[max(0, start - 40) : start]
        if raw.count('(') != raw.count(')'):
            if not raw.startswith('(') or raw.count('(') != 1:
                continue
            raw, start = raw[1:], start + 1
        digits = ''.join(c for c in raw if '0' <= c <= '9')
        end = match.end()
        if not _is_phone(raw, digits, before, code):
            # Behind the number of a house, a suite or a post code.
            inner = _NORTH_AMERICAN_AMONG_OTHERS.search(raw)
            if not inner:
                continue
            start, end = start + inner.start(), start + inner.end()
        extension = _EXTENSION.match(text, end)
        yield start, extension.end() if extension else end


def _is_phone(raw: str, digits: str, before: str, code: bool) -> bool:
    if raw.count('.') == 1:  # a decimal point
        return False
    if raw[0] == '+':
        return not before[-1:].isalnum() and _is_international(raw)
    if _DATE.match(raw):
        return False
    said = _SAID.search(before)
    if said and (':' in said[0] or not (_ROUND if not said['weak'] else _COUNT).fullmatch(raw)):
        return 7 <= len(digits) <= 15
    if _NORTH_AMERICAN.fullmatch(raw) and (_POST_CODE if raw[0] != '(' else _NUMBER_BEFORE).search(before):
        return True
    if _NO_PHONE_BEFORE.search(before) or _DRAW.search(before) or _is_ascending(raw):
        return False
    if digits.startswith('00') and len(raw) > len(digits) + 1:
        return _is_international(raw)
    if _NORTH_AMERICAN.fullmatch(raw):
        return True
    return not code and 9 <= len(digits) <= 12 and _NATIONAL.fullmatch(raw) is not None


def _is_ascending(raw: str) -> bool:
    """Tells whether pairs of digits rise from one to the next and stay below 50, as numbers of a lottery do."""
    pairs = raw.split(' ')
    return all(len(pair) == 2 for pair in pairs) and pairs == sorted(set(pairs)) and pairs[-1] < '50'


def _is_international(raw: str) -> bool:
    """Whether what follows '+' or '00' is a country code and a number of that country."""
    # +44 (0)20 7946 0018: the 0 is for callers within the country.
    digits = re.sub(r'\D', '', raw.replace('(0)', '')).removeprefix('00')
    if digits.startswith('1'):
        return re.fullmatch(r'1[2-9]\d\d[2-9]\d{6}', digits) is not None
    for size in (1, 2):
        if digits[:size] in _LENGTHS:
            low, high = _LENGTHS[digits[:size]]
            return low <= len(digits) - size <= high
    code = _OTHER_CODES.match(digits)
    return code is not None and 5 <= len(digits) - code.end() <= 12


# --- Cards -----------------------------------------------------------------------------

_CARD = re.compile(
    r'[2-6](?<![\w.,+/-].)[0-9]{3}'
    r'(?:[0-9]{9,15}|([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{4}(?:\1[0-9]{3})?|([ -])[0-9]{6}\2[0-9]{4,5})(?!\w|[.,-]\d)'
)
# (first digits, lengths)
_ISSUERS = re.compile(
    r'4\d{12}(?:\d{3}){0,2}'  # Visa: 13, 16, 19
    r'|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}'  # Mastercard
    r'|3[47]\d{13}'  # American Express
    r'|(?:6011|64[4-9]\d|65\d\d)\d{12}(?:\d{3})?'  # Discover
    r'|35(?:2[89]|[3-8]\d)\d{12}'  # JCB
    r'|3(?:0[0-5]|[689]\d)\d{11}'  # Diners Club
    r'|62\d{14}(?:\d{3})?'  # UnionPay
    r'|220[0-4]\d{12}'  # Mir
    r'|(?:50(?:18|20|38)|5893|6304|67(?:59|6[1-3]))\d{12}'  # Maestro
)
_CARD_SAID = re.compile(
    r'(?<![a-z])(?:card|cc|ccn|credit|debit|visa|master_?card|amex|american express|discover|diners|jcb|maestro|pan|'
    r'kreditkarte|karte|carte|tarjeta|cartão|carta|карт\w*)', re.I,
)  # fmt: skip


def cards(text: str, code: bool) -> Iterator[tuple[int, int]]:
    """(start, end) of each card number."""
    for match in _CARD.finditer(text):
        digits = ''.join(c for c in match[0] if c.isdecimal())
        grouped = len(digits) < len(match[0])
        if not _ISSUERS.fullmatch(digits) or not passes_luhn(digits):
            continue
        # 13 digits are a bar code, 14 a time, unless it is said that they are a card.
        before = text[max(0, match.start() - 40) : match.start()]
        if grouped or (len(digits) > 14 and not code) or _CARD_SAID.search(before):
            yield match.span()


def passes_luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of those before it (ISO/IEC 7812-1, annex B)."""
    doubled = (2 * int(digit) for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(d - 9 if d > 9 else d for d in doubled)) % 10 == 0
