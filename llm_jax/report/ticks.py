"""Ticks of an axis: round values, three of them at least, with labels that are short, distinct and apart."""

from collections.abc import Callable, Sequence
import math

from matplotlib import ticker

Format = Callable[[Sequence[float]], list[str]]

# Values in a decade that look round, from few to many.
_MANTISSAS = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))
_MOST = 7


def place_ticks(low: float, high: float, *, log: bool = False, whole: bool = False) -> list[float]:
    """Round values between two ends.

    Args:
      low: above 0 if `log`.
      high: above `low`.
      log: the axis is logarithmic: powers of ten, or what is round between them where there are fewer than three.
      whole: whole numbers only.

    Returns:
      ascending; at least three wherever that many are round.
    """
    if log and (inside := _decades(low, high)) is not None:
        return inside
    locator = ticker.MaxNLocator(_MOST - 1, integer=whole, steps=[1, 2, 2.5, 5, 10])
    return [float(value) for value in locator.tick_values(low, high) if _between(value, low, high)]


def _decades(low: float, high: float) -> list[float] | None:
    """None where even the densest choice has fewer than three."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for mantissas in _MANTISSAS:
        inside = [m * 10.0**e for e in range(first, last + 1) for m in mantissas if _between(m * 10.0**e, low, high)]
        if len(inside) >= 3:
            return inside[:: math.ceil(len(inside) / _MOST)]
    return None


def _between(value: float, low: float, high: float) -> bool:
    slack = 1e-9 * (high - low)
    return low - slack <= value <= high + slack


def tick_labels(values: Sequence[float], *, even: bool = True) -> list[str]:
    """Labels as short as they are distinct: 0.5, 4, 12.5 k, 3e-4.

    Args:
      values: of the ticks.
      even: the same number of digits after the point in all.
    """
    for digits in range(3, 16):
        texts = [f'{value:.{digits}g}' for value in values]
        if len(set(texts)) == len(set(values)) and all(
            math.isclose(float(text), value, rel_tol=1e-6 if even else 1e-3, abs_tol=1e-12)
            for text, value in zip(texts, values, strict=True)
        ):
            break
    largest = max((abs(value) for value in values), default=0.0)
    if 1e4 <= largest < 1e15:
        return [_with_unit(value) for value in values]
    if 0 < largest < 1e-3 or largest >= 1e15 or (not even and any('e' in text for text in texts)):
        return [_with_exponent(value) for value in values]
    if any('e' in text for text in texts):
        texts = [f'{value:.{digits}f}'.rstrip('0').rstrip('.') for value in values]
    decimals = max((len(text.partition('.')[2]) for text in texts), default=0)
    return [f'{value:.{decimals}f}' for value in values] if even else texts


def _with_unit(value: float) -> str:
    for unit, scale in ((' T', 1e12), (' B', 1e9), (' M', 1e6), (' k', 1e3)):
        if abs(value) >= scale:
            return f'{value / scale:.6g}{unit}'
    return f'{value:.6g}'


def _with_exponent(value: float) -> str:
    if value == 0:
        return '0'
    if 1e-3 <= abs(value) < 1e4:
        return f'{value:.6g}'
    exponent = math.floor(math.log10(abs(value)) + 1e-9)
    return f'{value / 10.0**exponent:.4g}e{exponent}'


def spread_apart(at: Sequence[float], sizes: Sequence[float], *, gap: float) -> list[bool]:
    """Chooses labels of which none touches another: every one, or every second, third, ...

    Args:
      at: the middle of each.
      sizes: its extent along the axis.
      gap: the least space between two.

    Returns:
      True for each that is written.
    """
    order = sorted(range(len(at)), key=lambda i: at[i])
    for every in range(1, len(order) + 1):
        kept = order[::every]
        if all(at[b] - at[a] >= (sizes[a] + sizes[b]) / 2 + gap for a, b in zip(kept, kept[1:], strict=False)):
            break
    return [i in kept for i in range(len(at))] if order else []
