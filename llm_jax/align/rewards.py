"""What rewards are made of that needs no model: lengths, numbers in answers, and how many of n samples pass."""

import math
import re

import jax
import jax.numpy as jnp

_NUMBER = re.compile(r'[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+')


def overlong_penalty(lengths_B: jax.Array, *, max_length: int, cache: int) -> jax.Array:
    """0 up to max_length − cache tokens, falling to −1 at max_length and staying there (DAPO, arXiv:2503.14476)."""
    over_B = jnp.asarray(lengths_B) - (max_length - cache)
    return -jnp.clip(over_B / cache, 0, 1)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The probability that one of k samples passes, unbiased from n samples (arXiv:2107.03374, eq. 1)."""
    return 1.0 - math.prod((n - correct - i) / (n - i) for i in range(k)) if n - correct >= k else 1.0


def last_number(text: str) -> float | None:
    """The last number of a text; separators of thousands, signs of money and a full stop after it are no part of it."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(',', '')) if found else None


def same_number(answer: str, wanted: str) -> bool:
    """Whether two answers end in the same number."""
    found = last_number(answer)
    return found is not None and found == last_number(wanted)
