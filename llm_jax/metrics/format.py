"""Numbers for people: '1.23 M', '3 min 20 s', '41.2 %'. NaN and None become a dash."""

import math

DASH = '–'


def _missing(value: float | None) -> bool:
    return value is None or math.isnan(value)


def count(value: float | None) -> str:
    """Three significant digits and k, M, B or T: 950, 12.3 k, 1.24 B."""
    if _missing(value):
        return DASH
    return _scaled(value, 1000, ('', ' k', ' M', ' B', ' T'))


def size(n_bytes: float | None) -> str:
    """Bytes in decimal units: 12.3 MB."""
    if _missing(n_bytes):
        return DASH
    return _scaled(n_bytes, 1000, (' B', ' kB', ' MB', ' GB', ' TB', ' PB'))


def flops(per_second: float | None) -> str:
    """FLOP/s: 989 TFLOP/s."""
    if _missing(per_second):
        return DASH
    return _scaled(per_second, 1000, (' FLOP/s', ' kFLOP/s', ' MFLOP/s', ' GFLOP/s', ' TFLOP/s', ' PFLOP/s'))


def percent(share: float | None) -> str:
    """A share of 1 in percent: 41.2 %."""
    return DASH if _missing(share) else f'{100 * share:.1f} %'


def decimal(value: float | None, digits: int = 3) -> str:
    """Fixed digits after the point, scientific when those would show nothing: 3.142, 2.00e-05."""
    if _missing(value):
        return DASH
    if math.isinf(value):
        return '∞' if value > 0 else '-∞'
    tiny = value != 0 and abs(value) < 10**-digits
    return f'{value:.2e}' if tiny or abs(value) >= 1e6 else f'{value:.{digits}f}'


def learning_rate(value: float | None) -> str:
    """Two digits and an exponent: 3.0e-04."""
    return DASH if _missing(value) else '0' if value == 0 else f'{value:.1e}'


def duration(seconds: float | None) -> str:
    """The two largest units: 12.3 s, 3 min 20 s, 2 h 05 min, 3 d 04 h."""
    if _missing(seconds):
        return DASH
    if seconds < 60:
        return f'{seconds:.1f} s'
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f'{days:,} d {h:02d} h'
    return f'{hours} h {m:02d} min' if hours else f'{m} min {s:02d} s'


def clock(seconds: float) -> str:
    """A compact time to go: 0:42, 3:20, 2:05:00."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f'{hours}:{m:02d}:{s:02d}' if hours else f'{m}:{s:02d}'


def _scaled(value: float, base: int, units: tuple[str, ...]) -> str:
    power = 0
    # 999.6 would be shown as 1000, so it goes to the next unit.
    while abs(value) >= base - 0.5 and power < len(units) - 1:
        value, power = value / base, power + 1
    if power == 0 and value == round(value):
        return f'{round(value)}{units[0]}'
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f'{value:.{min(digits, 2)}f}{units[power]}'
