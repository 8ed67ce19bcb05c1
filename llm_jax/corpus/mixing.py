"""How much of each source: weights, token budgets, or times that it is seen."""

from collections.abc import Mapping
import re
from typing import Any

from llm_jax.config import parts
from llm_jax.config.schema import ConfigError

_AMOUNT = re.compile(r'\s*(\d+(?:\.\d*)?(?:e[+-]?\d+)?)\s*(epochs?|tokens?)\s*', re.IGNORECASE)
# Where tokens have to be compared with text before there is a tokenizer.
BYTES_PER_TOKEN = 4.0


def check(mixture: Mapping[str, Any], sources: Mapping[str, Any]) -> None:
    """Whether a mixture can be meant.

    Raises:
      ConfigError: a name that is no source, or one that is left out; a value that is neither a
        weight nor an amount; both kinds at once; nothing at all.
    """
    for name in mixture:
        if name not in sources:
            raise ConfigError(
                f'mixture.{name}: there is no source {name!r}{parts.nearest(name, sources)} Sources: '
                f'{", ".join(sorted(sources))}'
            )
    if mixture and (missing := sorted(set(sources) - set(mixture))):
        raise ConfigError(f'mixture says nothing of {missing}; give every source a value, 0 leaves it out')
    values = {name: _parsed(name, value) for name, value in mixture.items()}
    if len({unit == 'weight' for unit, _ in values.values()}) > 1:
        raise ConfigError(f'mixture = {dict(mixture)}: either all values are weights, or all are epochs or tokens')
    if mixture and not any(number for _, number in values.values()):
        raise ConfigError(f'mixture = {dict(mixture)}: at least one source needs more than 0')


def amounts(mixture: Mapping[str, Any], available: Mapping[str, float], per_token: float = 1.0) -> dict[str, float]:
    """How much of each source one pass over the mixture takes.

    Weights share out as much as there is in all sources together.

    Args:
      mixture: as in the config, checked.
      available: what each source has, in tokens or in another measure of text.
      per_token: that measure per token.

    Raises:
      ConfigError: a source that is to be used has nothing.
    """
    values = {name: _parsed(name, mixture[name]) if mixture else ('epoch', 1.0) for name in available}
    for name, (_, number) in values.items():
        if mixture and number and not available[name]:
            raise ConfigError(
                f'mixture.{name} = {mixture[name]!r}, but nothing of this source is left to train on; see report.html '
                'for where it went, or set it to 0'
            )
    total = sum(available.values())
    weights = sum(number for unit, number in values.values() if unit == 'weight')
    take = {
        'weight': lambda name, number: number / weights * total,
        'epoch': lambda name, number: number * available[name],
        'token': lambda name, number: number * per_token,
    }
    return {name: take[unit](name, number) for name, (unit, number) in values.items()}


def _parsed(name: str, value: Any) -> tuple[str, float]:
    """('weight', 'epoch' or 'token', number)."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float('inf'):
        return 'weight', float(value)
    match = _AMOUNT.fullmatch(value) if isinstance(value, str) else None
    if not match:
        raise ConfigError(f"mixture.{name} = {value!r}: write a weight such as 0.5, '2 epochs' or '1e9 tokens'")
    return match[2].lower().rstrip('s'), float(match[1])
