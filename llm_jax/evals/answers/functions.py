"""Functions and constants of mathematics in 60 decimal digits."""

from collections.abc import Iterator
import decimal
from decimal import Decimal
from fractions import Fraction
import math

Number = Fraction | Decimal

DIGITS = 60
PI = Decimal('3.14159265358979323846264338327950288419716939937510582097494459230781640628620899')
E = Decimal('2.71828182845904523536028747135266249775724709369995957496696762772407663035354759')


class TooLarge(ArithmeticError):
    """A number that would take too long, or too many digits."""


def to_decimal(value: Number) -> Decimal:
    return Decimal(value.numerator) / Decimal(value.denominator) if isinstance(value, Fraction) else value


def apply_function(name: str, arguments: list[Number]) -> Number:
    """The value of a function, such as 'sin', 'log' (with a base, or 10) or 'floor'.

    Raises:
      ArithmeticError: it has none there, or is TooLarge.
    """
    first = arguments[0]
    if name == 'abs':
        return abs(first)
    if name in ('floor', 'ceil'):
        if abs(first) > 10**50:
            raise TooLarge
        return Fraction(math.floor(first) if name == 'floor' else math.ceil(first))
    x = to_decimal(first)
    if name == 'exp':
        return x.exp()
    if name == 'ln':
        return x.ln()
    if name == 'log':
        if len(arguments) == 2:
            return x.ln() / to_decimal(arguments[1]).ln()
        return x.log10()
    if name in ('sinh', 'cosh', 'tanh'):
        up, down = x.exp(), (-x).exp()
        return {'sinh': (up - down) / 2, 'cosh': (up + down) / 2, 'tanh': (up - down) / (up + down)}[name]
    if name in ('arcsin', 'arccos', 'arctan'):
        return _inverse_trigonometric(name, x)
    sine, cosine = _sine_cosine(x)
    if name in ('sin', 'cos'):
        return sine if name == 'sin' else cosine
    above, below = {
        'tan': (sine, cosine), 'cot': (cosine, sine), 'sec': (Decimal(1), cosine), 'csc': (Decimal(1), sine)
    }[name]  # fmt: skip
    if abs(below) < Decimal(10) ** (5 - DIGITS):
        raise decimal.DivisionByZero
    return above / below


def _terms(x: Decimal) -> Iterator[Decimal]:
    """x^n / n! from n = 0, as long as they count."""
    term, n = Decimal(1), 0
    while abs(term) > Decimal(10) ** (-DIGITS - 5):
        yield term
        n += 1
        term = term * x / n


def _sine_cosine(x: Decimal) -> tuple[Decimal, Decimal]:
    if abs(x) > 10**6:
        raise TooLarge
    x %= 2 * PI
    terms = list(_terms(x))
    signed = [term if n % 4 < 2 else -term for n, term in enumerate(terms)]
    return sum(signed[1::2], Decimal(0)), sum(signed[::2], Decimal(0))


def _inverse_trigonometric(name: str, x: Decimal) -> Decimal:
    if name == 'arctan':
        turns = 0
        while abs(x) > Decimal('0.05'):  # arctan x = 2 arctan(x / (1 + sqrt(1 + x^2)))
            x, turns = x / (1 + (1 + x * x).sqrt()), turns + 1
        total, power, n = Decimal(0), x, 1
        while abs(power) > Decimal(10) ** (-DIGITS - 5):
            total += power / n if n % 4 == 1 else -power / n
            power, n = power * x * x, n + 2
        return total * 2**turns
    if abs(x) > 1:
        raise decimal.InvalidOperation
    sine = x * PI / 2 if abs(x) == 1 else _inverse_trigonometric('arctan', x / (1 - x * x).sqrt())
    return sine if name == 'arcsin' else PI / 2 - sine
