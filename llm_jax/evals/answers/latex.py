r"""Answers in LaTeX, as in MATH: found in generated text, and compared by meaning.

\frac{1}{2} = 0.5, 2\sqrt{3} = \sqrt{12}, (x+1)^2 = x^2+2x+1, \{1,2\} = \{2,1\}, x=5 = 5, 5\text{ cm} = 5, (3, 4) =
(3,4).
Values are compared exactly (1/2004! is not 1/2006!); what is too large to be, or is no mathematics, is compared as
text.
"""

from collections.abc import Hashable
from fractions import Fraction
import itertools
import random
import re

from .expression import Evaluator, Node, NotRead, equal_values, multiply, parse, variables

_MAX_CHARS = 2000
_POINTS, _LEAST = 8, 3  # at which expressions with variables are compared; at how many of them both must have a value
_MAX_PARTS = 30  # of a list whose order does not matter

_SPACES = re.compile(r'\\[,;:! ]|\\q?quad(?![a-zA-Z])|\\(?:hspace|vspace|phantom)\{[^{}]*\}|~|&nbsp;')
_DROPPED = re.compile(r'\\(?:left|right|bigg?|Bigg?|displaystyle|textstyle|limits|mathstrut)(?![a-zA-Z])')
_FONTS = re.compile(r'\\(?:mathrm|mathbf|mathit|mathbb|mathcal|boldsymbol|bold|bf|rm|operatorname)(?![a-zA-Z])\*?')
_TEXT = re.compile(r'\\(?:text|textbf|textit|textrm|mbox|hbox|emph)\s*\{([^{}]*)\}')
_THOUSANDS = re.compile(r'(?<![\d.,])(\d{1,3})((?:(?:\{,\}|,\\!|\\,|,)\d{3})+)(?![\d]|,\d)')
_DEGREES = re.compile(r'\^\s*\{?\s*\\circ\s*\}?|\\degree(?![a-zA-Z])|°')
_SIGNS = {'$': re.compile('＄'), '%': re.compile(r'\\?%'), '°': _DEGREES}
_UNIT_SIGNS = {'percent': '%', 'degrees': '°', 'degree': '°', 'dollars': '$', 'dollar': '$'}
_NUMBER_WORDS = {
    'hundred',
    'thousand',
    'million',
    'billion',
    'trillion',
    'dozen',
    'half',
    'third',
    'quarter',
    'pi',
    'or',
    'and',
}
_UNIT = re.compile(
    r'(?<=[\d)}\s])\s*((?:(?:[a-zA-Z]{2,}|[a-zA-Z](?=\s*(?:/|\^)\s*))\.?(?:\s*\^\s*\{?[23]\}?)?[\s/]*)+)$'
)
_TEXT_UNIT = re.compile(
    r'\\(?:text|textbf|textit|textrm|mbox|hbox)\s*\{([^{}]*[a-zA-Z][^{}]*)\}(?:\s*\^\s*\{?[23]\}?)?\.?\s*$'
)
_MIXED = re.compile(r'(?<![\d./^])(\d+) (\d+)/(\d+)(?![\d/])')
_REPLACED = (
    ('\\dfrac', '\\frac'), ('\\tfrac', '\\frac'), ('\\cfrac', '\\frac'), ('\\leq', '\\le'), ('\\geq', '\\ge'),
    ('\\le ', '≤'), ('\\ge ', '≥'), ('\\le', '≤'), ('\\ge', '≥'), ('<=', '≤'),
    ('>=', '≥'), ('\\lt', '<'), ('\\gt', '>'),
    ('\\neq', '≠'), ('\\ne ', '≠'), ('−', '-'), ('–', '-'), ('\\lbrace', '\\{'), ('\\rbrace', '\\}'), ('\\colon', ':'),
    ('\\bar', '\\overline'),
    ('\\lvert', '|'), ('\\rvert', '|'), ('\\vert', '|'), ('π', '\\pi '), ('∞', '\\infty '),
    ('√', '\\sqrt '), ('×', '\\times '),
    ('\\cup', '∪'), ('\\infin ', '\\infty '), ('·', '\\cdot '), ('**', '^'), ('\\{', '⦃'), ('\\}', '⦄'),
)  # fmt: skip


def find_boxed(text: str) -> str | None:
    r"""The content of the last \boxed{...} (or \fbox, or \boxed 5); None without one that is closed."""
    for found in reversed(list(re.finditer(r'\\(?:boxed|fbox)\s*', text))):
        at = found.end()
        if text[at : at + 1] != '{':
            return next(iter(re.split(r'[\s$]', text[at : at + 100], maxsplit=1)), '') or None
        depth = 0
        for i in range(at, min(len(text), at + _MAX_CHARS)):
            if text[i] == '\\' or text[i - 1] == '\\' and text[i - 2] != '\\':
                continue
            depth += (text[i] == '{') - (text[i] == '}')
            if depth == 0:
                return text[at + 1 : i]
    return None


def find_answer(text: str) -> str | None:
    r"""The answer that a text gives: its last \boxed{}, what follows 'the answer is', or its last formula."""
    text = text[-100_000:]
    if (boxed := find_boxed(text)) is not None:
        return boxed
    said = list(re.finditer(r'(?i)answer\s*(?:is|:)\s*:?\s*', text))
    if said:
        rest = text[said[-1].end() :][:_MAX_CHARS].split('\n')[0]
        if rest.startswith('$') and (formula := re.match(r'\$+([^$]+)\$', rest)):
            return formula[1].strip()
        return re.split(r'\.(?:\s|$)', rest, maxsplit=1)[0].strip(' $*') or None
    formulas = re.findall(r'\$([^$\n]+)\$', text)
    return formulas[-1].strip() if formulas else None


def _clean(text: str) -> tuple[str, str]:
    """A text in fewer forms, and the unit at its end."""
    text = text.strip()[:_MAX_CHARS].replace('\\$', '＄').strip('$').strip()
    for opening, closing in (('\\(', '\\)'), ('\\[', '\\]')):
        if text.startswith(opening) and text.endswith(closing):
            text = text[2:-2].strip()
    text = text.replace('\\\\', '⏎')
    text = _THOUSANDS.sub(lambda found: found[1] + re.sub(r'\D', '', found[2]), text)
    for old, new in _REPLACED:
        text = (
            re.sub(re.escape(old) + r'(?![a-zA-Z])', lambda _, new=new: new, text)
            if old[-1:].isalpha()
            else text.replace(old, new)
        )
    if re.search(r'(?:sin|cos|tan|cot|sec|csc)(?![a-z])', text):
        text = re.sub(rf'(\d+(?:\.\d+)?)\s*(?:{_DEGREES.pattern})', r'{\1\\pi/180}', text)
    sign = next((unit for unit, pattern in _SIGNS.items() if pattern.search(text)), '')
    for pattern in (*_SIGNS.values(), re.compile(r'\$')):
        text = pattern.sub('', text)
    text = _FONTS.sub('', _DROPPED.sub('', _SPACES.sub(' ', text)))
    plain = _unwrap(text)
    for found in (_TEXT_UNIT.search(text), _UNIT.search(plain)):
        if found and not set(re.findall('[a-z]+', found[1].lower())) & _NUMBER_WORDS:
            rest = _unwrap(found.string[: found.start()])
            if rest and _is_read(rest):
                unit = re.sub(r'[\s.{}]', '', found[1]).lower()
                return rest, _UNIT_SIGNS.get(unit, unit)
    return plain, sign


def _differ(unit: str, other: str) -> bool:
    """Whether two units are given and are not the same, in the singular or the plural."""
    return bool(unit and other) and not any(a in (b, f'{b}s', f'{b}es') for a, b in ((unit, other), (other, unit)))


def _unwrap(text: str) -> str:
    """Without the marks of text, doubled spaces and the final full stop; 1 3/4 as a sum."""
    text = re.sub(r'\s+', ' ', _TEXT.sub(r' \1 ', text)).strip().rstrip('.').rstrip()
    return _MIXED.sub(r'(\1+\2/\3)', text)


def _is_read(text: str) -> bool:
    try:
        parse(text)
    except NotRead:
        return False
    return True


def _split(text: str, separators: str) -> list[str]:
    """Splits at separators outside all brackets."""
    parts, depth, last = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in '([{⦃') - (c in ')]}⦄')
        if depth <= 0 and c in separators:
            parts.append(text[last:i].strip())
            last = i + 1
    return [*parts, text[last:].strip()]


def _plain(text: str) -> str:
    """A text as it is compared when it is no mathematics."""
    text = re.sub(r'(?<=\d)\s+(?=\d)', '_', text.replace('\\', ''))
    text = re.sub('[a-zA-Z]{3,}', lambda word: word[0] if word[0].isupper() else word[0].lower(), text)
    text = re.sub(r'[{}\s]', '', text)
    return re.sub(r'^\((.)\)$', r'\1', text)


def is_equal(answer: str, gold: str) -> bool:
    """Whether two answers mean the same."""
    if not answer.strip() or not gold.strip():
        return answer.strip() == gold.strip()
    (a, unit_a), (b, unit_b) = _clean(answer), _clean(gold)
    if _differ(unit_a, unit_b):
        return False
    return _equal(a, b, Evaluator())


def normal_form(answer: str) -> Hashable:
    """A key that equal answers often share, for votes: a number's value, else its text without spaces and dressing."""
    text = _clean(answer)[0]
    try:
        node = parse(_strip_name(text))
        value = Evaluator().evaluate(node, {})
        return value if isinstance(value, Fraction) else _plain(text)
    except (NotRead, ArithmeticError, KeyError):
        return _plain(text)


def _strip_name(text: str) -> str:
    r"""Without 'x =' or 'x \in' before a value."""
    found = re.match(
        r'^\s*(?:\\?[a-zA-Z]+(?:_\{?\w+\}?)?(?:\([a-z]\))?)\s*(?:=|\\in(?![a-zA-Z]))\s*(.+)$', text, re.DOTALL
    )
    return found[1] if found else text


def _equal(a: str, b: str, evaluator: Evaluator, depth: int = 0) -> bool:
    if _plain(a) == _plain(b):
        return True
    if depth > 5:
        return False
    kinds = [_kind(text) for text in (a, b)]
    if kinds[0] == kinds[1] == 'equation':
        return _equal_equations(a, b, evaluator)
    if 'equation' in kinds:
        stripped = [_value_of(text) if kind == 'equation' else text for text, kind in zip((a, b), kinds, strict=True)]
        return None not in stripped and _equal(*stripped, evaluator, depth + 1)
    shapes = [_shape(text) for text in (a, b)]
    if shapes[0] and shapes[1]:
        (kind_a, parts_a), (kind_b, parts_b) = shapes
        if kind_a != kind_b or len(parts_a) != len(parts_b) or len(parts_a) > _MAX_PARTS:
            return False
        if kind_a in ('list', 'union'):
            return _equal_unordered(parts_a, parts_b, evaluator, depth)
        return all(_equal(*pair, evaluator, depth + 1) for pair in zip(parts_a, parts_b, strict=True))
    if shapes[0] or shapes[1]:
        return False
    return _equal_expressions(a, b, evaluator)


def _equal_unordered(a: list[str], b: list[str], evaluator: Evaluator, depth: int) -> bool:
    left = list(b)
    for part in a:
        match = next((i for i, other in enumerate(left) if _equal(part, other, evaluator, depth + 1)), None)
        if match is None:
            return False
        left.pop(match)
    return True


def _kind(text: str) -> str:
    return 'equation' if len(_split(text, '=')) > 1 and not any(c in text for c in '<>≤≥≠') else ''


def _value_of(equation: str) -> str | None:
    """The value that an equation gives a name, or that follows from values: x = 5, f(x) = 5, 2 + 3 = 5; else None."""
    parts = [part for half in re.split(r'\s(?:and|or)\s', equation) for part in _split(half, ',;')]
    if len(parts) > 1:
        return ','.join(map(_strip_name, parts))
    sides = _split(equation, '=')
    if _strip_name(equation) != equation and len(sides) == 2:
        return sides[1]
    try:
        return None if variables(parse(sides[0])) and len(sides) == 2 else sides[-1]
    except NotRead:
        return None


def _shape(text: str) -> tuple[str, list[str]] | None:
    """The kind and the parts of what is no single expression: lists, sets, tuples, intervals, matrices; else None."""
    text = text.strip()
    if matrix := re.fullmatch(
        r'\\begin\s*\{([bpBvV]?matrix|array)\}(?:\{[^{}]*\})?(.*)\\end\s*\{\1\}', text, re.DOTALL
    ):
        rows = [row for row in matrix[2].strip().strip('⏎').split('⏎') if row.strip()]
        kind = 'determinant' if matrix[1][:1] in 'vV' else 'matrix'
        return f'{kind} of {len(rows)} rows', [cell.strip() for row in rows for cell in row.split('&')]
    if interval := _as_interval(text):
        return interval
    text = _strip_name(text) if '\\in' in text else text
    for separators, kind in (('∪', 'union'), (',;', 'list'), (':', 'ratio')):
        parts = _split(text, separators)
        if len(parts) > 1:
            return kind, [part for part in parts if part]
    words = re.split(r'\s(?:and|or)\s', text)
    if len(words) > 1:
        return 'list', words
    if signs := _both_signs(text):
        return 'list', signs
    if text[:1] == '⦃' and text[-1:] == '⦄':
        return 'list', [part for part in _split(text[1:-1], ',;') if part]
    if text[:1] in '([' and text[-1:] in ')]' and len(parts := _split(text[1:-1], ',')) > 1:
        return f'tuple {text[0]}{text[-1]}', parts
    return None


def _both_signs(text: str) -> list[str]:
    r"""3 \pm 2 as two values."""
    if not re.search(r'\\pm(?![a-zA-Z])|±', text):
        return []
    plus = re.sub(r'\\pm(?![a-zA-Z])|±', '+', text)
    minus = re.sub(r'\\pm(?![a-zA-Z])|±', '-', text)
    return [re.sub(r'\\mp(?![a-zA-Z])', '-', plus), re.sub(r'\\mp(?![a-zA-Z])', '+', minus)]


def _as_interval(text: str) -> tuple[str, list[str]] | None:
    """An inequality of one variable as an interval: x > 3 is (3, infinity), 1 <= x < 2 is [1, 2)."""
    signs = re.findall('[<>≤≥]', text)
    if not 1 <= len(signs) <= 2 or '=' in text or '≠' in text:
        return None
    sides = [side.strip() for side in re.split('[<>≤≥]', text)]
    if signs[0] in '>≥':
        sides, signs = sides[::-1], [{'>': '<', '≥': '≤'}.get(sign, '') for sign in signs[::-1]]
    if '' in sides or any(sign not in '<≤' or not sign for sign in signs):
        return None
    name = r'\\?[a-zA-Z]+(?:_\{?\w+\}?)?'
    opening, closing = ('[' if signs[0] == '≤' else '('), (']' if signs[-1] == '≤' else ')')
    if len(sides) == 3 and re.fullmatch(name, sides[1]):
        return f'tuple {opening}{closing}', [sides[0], sides[2]]
    if len(sides) == 2 and re.fullmatch(name, sides[1]) and not re.fullmatch(name, sides[0]):
        return f'tuple {opening})', [sides[0], '\\infty']
    if len(sides) == 2 and re.fullmatch(name, sides[0]) and not re.fullmatch(name, sides[1]):
        return f'tuple ({closing}', ['-\\infty', sides[1]]
    return None


def _points(names: set[str]) -> list[dict[str, Fraction]]:
    """Values of the variables, always the same, none of them special; in half of the points some are negative."""
    rng = random.Random(20)
    points = [{name: Fraction(rng.randrange(300, 3000), 997) for name in sorted(names)} for _ in range(_POINTS)]
    for point in points[_POINTS // 2 :]:
        for name in rng.sample(sorted(names), rng.randrange(1, len(names) + 1)):
            point[name] = -point[name]
    return points


def _equal_expressions(a: str, b: str, evaluator: Evaluator) -> bool:
    try:
        trees = parse(a), parse(b)
    except NotRead:
        return False
    names = variables(trees[0]) | variables(trees[1])
    pairs = list(_values(trees, names, evaluator))
    return len(pairs) >= (_LEAST if names else 1) and all(equal_values(*pair) for pair in pairs)


def _values(trees: tuple[Node, Node], names: set[str], evaluator: Evaluator) -> list[tuple]:
    """The values of both at some points; none where one has a value and the other has not."""
    pairs = []
    for point in _points(names) if names else [{}]:
        values = []
        for tree in trees:
            try:
                values.append(evaluator.evaluate(tree, point))
            except ArithmeticError:  # has no value there, or too large a one
                values.append(None)
        if (values[0] is None) != (values[1] is None):
            return []
        if None not in values:
            pairs.append(tuple(values))
    return pairs


def _equal_equations(a: str, b: str, evaluator: Evaluator) -> bool:
    """Whether two equations are multiples of each other: 2x + 4y - 3 = 0 and y = -x/2 + 3/4."""
    sides = [_split(text, '=') for text in (a, b)]
    if any(len(pair) != 2 for pair in sides):
        return False
    try:
        trees = tuple(Node('sum', (parse(left), Node('negative', (parse(right),)))) for left, right in sides)
    except NotRead:
        return False
    names = variables(trees[0])
    if not names or names != variables(trees[1]):
        return False
    pairs = _values(trees, names, evaluator)
    if len(pairs) < _LEAST or any(not x or not y for x, y in pairs):
        return False
    (x0, y0) = pairs[0]
    try:
        return all(equal_values(multiply(x, y0), multiply(y, x0)) for x, y in itertools.islice(pairs, 1, None))
    except ArithmeticError:
        return False
