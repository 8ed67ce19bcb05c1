"""Mathematical expressions in LaTeX: read into a tree, and evaluated exactly where they are rational.

Bounded in time and memory: by the length and depth of a text, by the bits of a number, and by the work in all. An
expression that goes beyond is `TooLarge`, never rounded until it equals another.
"""

from collections.abc import Callable, Mapping
import dataclasses
import decimal
from decimal import Decimal
from fractions import Fraction
import math
import re

from .functions import DIGITS, PI, E, Number, TooLarge, apply_function, to_decimal

_MAX_BITS, _MAX_WORK, _MAX_FACTORIAL = 30_000, 10_000_000, 3000
_MAX_DEPTH, _MAX_TOKENS = 60, 400
_CONTEXT = decimal.Context(prec=DIGITS, Emax=99_999, Emin=-99_999, traps=[
    decimal.InvalidOperation, decimal.DivisionByZero, decimal.Overflow, decimal.Underflow,
])  # fmt: skip


class NotRead(ValueError):
    """A text that is no expression."""


@dataclasses.dataclass(frozen=True)
class Node:
    """An operation on nodes; `value` is a number's, a variable's name, or a function's."""

    kind: str
    children: tuple['Node', ...] = ()
    value: str | Fraction = ''


_FUNCTIONS = {
    'sin', 'cos', 'tan', 'cot', 'sec', 'csc', 'arcsin', 'arccos', 'arctan', 'ln', 'log', 'exp', 'sinh', 'cosh', 'tanh',
}  # fmt: skip
_WORDS = {'sqrt', 'pi', 'frac', 'theta', 'alpha', 'beta', 'gamma', 'infty', 'cdot', 'times', *_FUNCTIONS}
_TOKEN = re.compile(r'\s*(?:(\d+\.?\d*|\.\d+)|\\([a-zA-Z]+)|([a-zA-Z]+)|(.))', re.DOTALL)
_GREEK = {
    'alpha', 'beta', 'gamma', 'delta', 'epsilon', 'varepsilon', 'zeta', 'eta', 'theta', 'vartheta', 'iota',
    'kappa', 'lambda', 'mu', 'nu', 'xi', 'rho', 'sigma', 'tau', 'upsilon', 'phi', 'varphi', 'chi', 'psi',
    'omega', 'Gamma', 'Delta', 'Theta', 'Lambda', 'Xi', 'Pi', 'Sigma', 'Phi', 'Psi', 'Omega', 'infty', 'ell',
}  # fmt: skip


def _tokens(text: str) -> list[tuple[str, str]]:
    """(kind, text): 'number', 'command', 'letter' or 'sign'. A long word that is no function is no expression."""
    out, at = [], 0
    text = text.rstrip()
    while at < len(text):
        found = _TOKEN.match(text, at)
        if not found:
            break
        number, command, word, sign = found.groups()
        at = found.end()
        if number:
            out.append(('number', number))
        elif command:
            out.append(('command', command))
        elif word and word in _WORDS:
            out.append(('command', word))
        elif word and len(word) > 2:
            raise NotRead(f'a word: {word}')
        elif word:
            out += [('letter', letter) for letter in word]
        else:
            out.append(('sign', sign))
        if len(out) > _MAX_TOKENS:
            raise NotRead('too long')
    return out


class _Parser:
    """Recursive descent over tokens."""

    def __init__(self, text: str) -> None:
        self.tokens, self.at, self.depth = _tokens(text), 0, 0

    def peek(self, ahead: int = 0) -> tuple[str, str]:
        place = self.at + ahead
        return self.tokens[place] if place < len(self.tokens) else ('end', '')

    def take(self) -> tuple[str, str]:
        token = self.peek()
        self.at += 1
        return token

    def expect(self, *texts: str) -> None:
        if self.take()[1] not in texts:
            raise NotRead(f'no {texts[0]}')

    def parse(self) -> Node:
        node = self.sum()
        if self.peek()[0] != 'end':
            raise NotRead(f'{self.peek()[1]!r} is left over')
        return node

    def sum(self) -> Node:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise NotRead('too deep')
        parts = [self.product()]
        while self.peek() in (('sign', '+'), ('sign', '-')):
            sign = self.take()[1]
            part = self.product()
            parts.append(Node('negative', (part,)) if sign == '-' else part)
        self.depth -= 1
        return parts[0] if len(parts) == 1 else Node('sum', tuple(parts))

    def product(self) -> Node:
        parts = [self.signed()]
        while True:
            kind, text = self.peek()
            if (kind, text) in (('sign', '*'), ('command', 'cdot'), ('command', 'times')):
                self.take()
                parts.append(self.signed())
            elif (kind, text) in (('sign', '/'), ('command', 'div')):
                self.take()
                parts.append(Node('inverse', (self.signed(),)))
            elif self.begins_factor():
                if self.is_mixed(parts):
                    parts[-1] = Node('sum', (parts[-1], self.power()))
                else:
                    if kind == 'number':
                        raise NotRead('a number after a factor')
                    parts.append(self.power())
            else:
                return parts[0] if len(parts) == 1 else Node('product', tuple(parts))

    def is_mixed(self, parts: list[Node]) -> bool:
        r"""Whether an integer and a proper fraction of integers follow each other: 1\frac{3}{4} is 7/4."""
        if self.peek() != ('command', 'frac') or self.tokens[self.at - 1][0] != 'number':
            return False
        start, tokens, depth = self.at, list(self.tokens), self.depth
        fraction = self.power()
        self.at, self.tokens, self.depth = start, tokens, depth
        numbers = [child.value for child in fraction.children if child.kind == 'number']
        whole = parts[-1].value if parts[-1].kind == 'number' else None
        return (
            fraction.kind == 'quotient'
            and len(numbers) == 2
            and all(isinstance(n, Fraction) and n.denominator == 1 for n in (*numbers, whole))
            and numbers[0] < numbers[1]
        )

    def begins_factor(self) -> bool:
        kind, text = self.peek()
        if kind in ('number', 'letter'):
            return True
        if kind == 'command':
            return text not in ('cdot', 'times', 'div', 'rfloor', 'rceil', 'rvert', 'right')
        return text in ('(', '{', '[')

    def signed(self) -> Node:
        kind, text = self.peek()
        if (kind, text) in (('sign', '-'), ('sign', '+')):
            self.take()
            self.depth += 1
            if self.depth > _MAX_DEPTH:
                raise NotRead('too deep')
            node = self.signed()
            self.depth -= 1
            return Node('negative', (node,)) if text == '-' else node
        return self.power()

    def power(self) -> Node:
        node = self.postfix(self.atom())
        if self.peek() == ('sign', '^'):
            self.take()
            node = Node('power', (node, self.argument(is_exponent=True)))
            node = self.postfix(node)
        return node

    def postfix(self, node: Node) -> Node:
        while self.peek() == ('sign', '!'):
            self.take()
            node = Node('factorial', (node,))
        return node

    def argument(self, *, is_exponent: bool = False) -> Node:
        """What follows ^, \\frac or \\sqrt: a group in braces, or one token, of a number its first digit."""
        kind, text = self.peek()
        if (kind, text) == ('sign', '{'):
            return self.group('{', '}')
        if is_exponent and text == '-':
            self.take()
            return Node('negative', (self.argument(is_exponent=True),))
        if is_exponent and text == '(':
            return self.group('(', ')')
        if kind == 'number' and not is_exponent and len(text) > 1:
            self.tokens[self.at] = (kind, text[1:])
            return Node('number', value=Fraction(text[0]))
        return self.atom()

    def group(self, opening: str, *closing: str) -> Node:
        self.expect(opening)
        node = self.sum()
        self.expect(*closing)
        return node

    def atom(self) -> Node:
        kind, text = self.take()
        if kind == 'number':
            if self.peek() == ('sign', '_'):
                raise NotRead('a number in another base')
            if self.peek() == ('command', 'overline'):
                return self.repeating(text)
            return Node('number', value=Fraction(text.rstrip('.')))
        if kind == 'letter':
            return Node('variable', value=text + self.subscript()) if text != 'e' else Node('constant', value='e')
        if kind == 'sign' and text in '([{':
            self.at -= 1
            return self.group(text, {'(': ')', '[': ']', '{': '}'}[text])
        if kind == 'sign' and text == '|':
            return self.closed('abs', '|')
        if kind == 'command':
            return self.command(text)
        raise NotRead(f'{text!r} is no value')

    def closed(self, function: str, closing: str) -> Node:
        node = self.sum()
        self.expect(closing)
        return Node('function', (node,), function)

    def subscript(self) -> str:
        if self.peek() != ('sign', '_'):
            return ''
        self.take()
        if self.peek() != ('sign', '{'):
            return '_' + self.take()[1]
        text, depth = '_', 0
        while True:
            kind, token = self.take()
            depth += (token == '{') - (token == '}')
            if kind == 'end':
                raise NotRead('no }')
            if depth == 0:
                return text
            text += token * (token not in '{}')

    def repeating(self, before: str) -> Node:
        """0.1\\overline{6}"""
        self.take()
        self.expect('{')
        kind, digits = self.take()
        self.expect('}')
        if kind != 'number' or '.' not in before or '.' in digits or len(digits) > 50:
            raise NotRead('no repeating decimal')
        places = len(before.split('.')[1])
        value = Fraction(before.rstrip('.') or '0') + Fraction(int(digits), 10**places * (10 ** len(digits) - 1))
        return Node('number', value=value)

    def command(self, name: str) -> Node:
        if name == 'frac':
            return Node('quotient', (self.argument(), self.argument()))
        if name in ('binom', 'dbinom', 'tbinom'):
            return Node('binomial', (self.argument(), self.argument()))
        if name == 'sqrt':
            index = Node('number', value=Fraction(2))
            if self.peek() == ('sign', '['):
                index = self.group('[', ']')
            of = self.group('(', ')') if self.peek() == ('sign', '(') else self.argument()
            return Node('root', (of, index))
        if name == 'pi':
            return Node('constant', value='pi')
        if name in ('lfloor', 'lceil', 'lvert'):
            return self.closed({'lfloor': 'floor', 'lceil': 'ceil', 'lvert': 'abs'}[name], name.replace('l', 'r', 1))
        if name in _FUNCTIONS:
            return self.function(name)
        if name in _GREEK:
            return Node('variable', value=f'\\{name}{self.subscript()}')
        raise NotRead(f'\\{name} is no expression')

    def function(self, name: str) -> Node:
        r"""\sin^2 x, \log_2 8, \tan(x + 1)."""
        base = exponent = None
        while self.peek()[1] in ('_', '^') and self.peek()[0] == 'sign':
            if self.take()[1] == '_':
                base = self.argument()
            else:
                exponent = self.argument(is_exponent=True)
        if self.peek()[1] in ('(', '{', '[') or self.peek()[0] == 'end':
            of = self.power()
        else:  # \sin 2x is sin(2x)
            parts = [self.signed()]
            while self.begins_factor() and self.peek()[1] not in (*_FUNCTIONS, '(', '['):
                parts.append(self.power())
            of = Node('product', tuple(parts))
        node = Node('function', (of,) if base is None else (of, base), name)
        if exponent is None:
            return node
        if exponent.kind == 'negative':
            raise NotRead('an inverse function')
        return Node('power', (node, exponent))


def parse(text: str) -> Node:
    """The tree of an expression.

    Raises:
      NotRead: the text is none.
    """
    try:
        return _Parser(text).parse()
    except (ValueError, IndexError, ZeroDivisionError) as e:
        raise NotRead(str(e)) from None


def variables(node: Node) -> set[str]:
    """Names of the variables in a tree."""
    names = {str(node.value)} if node.kind == 'variable' else set()
    return names.union(*map(variables, node.children))


class Evaluator:
    """Evaluates trees where variables have values; counts its work."""

    def __init__(self) -> None:
        self._work = 0

    def evaluate(self, node: Node, values: Mapping[str, Fraction]) -> Number:
        """The value: a Fraction where it is exact, else 60 digits.

        Raises:
          ArithmeticError: it has none there, or is TooLarge.
        """
        with decimal.localcontext(_CONTEXT):
            return self._evaluate(node, values)

    def _evaluate(self, node: Node, values: Mapping[str, Fraction]) -> Number:
        if node.kind == 'number':
            return self._bounded(node.value)  # type: ignore[arg-type]
        if node.kind == 'variable':
            return values[str(node.value)]
        if node.kind == 'constant':
            return E if node.value == 'e' else PI
        arguments = [self._evaluate(child, values) for child in node.children]
        return self._bounded(self._apply(node, arguments))

    def _bounded(self, value: Number) -> Number:
        if isinstance(value, Fraction):
            bits = value.numerator.bit_length() + value.denominator.bit_length()
            if bits > 2 * _MAX_BITS:
                raise TooLarge
            self._count(bits)
        return value

    def _count(self, work: int) -> None:
        self._work += work
        if self._work > _MAX_WORK:
            raise TooLarge

    def _apply(self, node: Node, arguments: list[Number]) -> Number:
        first = arguments[0]
        if node.kind == 'sum':
            return _fold(lambda a, b: a + b, arguments)
        if node.kind == 'product':
            return _fold(lambda a, b: a * b, arguments)
        if node.kind == 'negative':
            return -first
        if node.kind in ('inverse', 'quotient'):
            return _fold(lambda a, b: a / b, [Fraction(1), first] if node.kind == 'inverse' else arguments)
        self._count(3000)
        if node.kind == 'power':
            return self._power(first, arguments[1])
        if node.kind == 'root':
            return self._root(first, _integer(arguments[1], 1, 1000))
        if node.kind == 'factorial':
            return Fraction(math.factorial(_integer(first, 0, _MAX_FACTORIAL)))
        if node.kind == 'binomial':
            return Fraction(math.comb(*(_integer(value, 0, _MAX_FACTORIAL) for value in arguments)))
        return apply_function(str(node.value), arguments)

    def _power(self, base: Number, exponent: Number) -> Number:
        if isinstance(exponent, Fraction) and exponent.denominator == 1:
            n = exponent.numerator
            if isinstance(base, Fraction):
                size = max(base.numerator.bit_length(), base.denominator.bit_length())
                if size > 1 and abs(n) * size > _MAX_BITS:
                    raise TooLarge
                if abs(n) > 1 << 62:
                    raise TooLarge
                return base**n
        elif base < 0:
            raise decimal.InvalidOperation
        if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator < 1000:
            return self._power(self._root(base, exponent.denominator), Fraction(exponent.numerator))
        return to_decimal(base) ** to_decimal(exponent)

    def _root(self, value: Number, n: int) -> Number:
        if value < 0:
            if n % 2 == 0:
                raise decimal.InvalidOperation
            return -self._root(-value, n)
        if isinstance(value, Fraction):
            exact = [_integer_root(part, n) for part in (value.numerator, value.denominator)]
            if None not in exact:
                return Fraction(*exact)
        return to_decimal(value).sqrt() if n == 2 else to_decimal(value) ** (Decimal(1) / n)


def _fold(operation: Callable[[Number, Number], Number], values: list[Number]) -> Number:
    """Applies it from the left: to fractions as long as all are, then to decimals."""
    result = values[0]
    for value in values[1:]:
        if isinstance(result, Fraction) != isinstance(value, Fraction):
            result, value = to_decimal(result), to_decimal(value)
        result = operation(result, value)
    return result


def _integer(value: Number, least: int, most: int) -> int:
    if not isinstance(value, Fraction) or value.denominator != 1:
        raise decimal.InvalidOperation
    if not least <= value <= most:
        raise TooLarge
    return int(value)


def _integer_root(value: int, n: int) -> int | None:
    """The exact n-th root of an integer, or None."""
    if value < 2:
        return value
    if value.bit_length() > 4000:
        return None
    low, high = 1, 1 << (value.bit_length() // n + 1)
    while low < high:
        middle = (low + high) // 2
        if middle**n < value:
            low = middle + 1
        else:
            high = middle
    return low if low**n == value else None


def equal_values(a: Number, b: Number) -> bool:
    """Whether two values are the same: fractions exactly, others in 40 digits."""
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    with decimal.localcontext(_CONTEXT):
        a, b = to_decimal(a), to_decimal(b)
        return abs(a - b) <= max(abs(a), abs(b)).scaleb(-40)


def multiply(a: Number, b: Number) -> Number:
    """The product of two values.

    Raises:
      ArithmeticError: it is too large.
    """
    with decimal.localcontext(_CONTEXT):
        return _fold(lambda x, y: x * y, [a, b])
