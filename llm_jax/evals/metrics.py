"""Metrics of items and of tasks, in float64 on the host."""

from collections.abc import Sequence
import math

import numpy as np


def choice_metrics(
    log_likelihoods: Sequence[float], choices: Sequence[str], gold: int, n_tokens: Sequence[int]
) -> dict:
    """Whether the likeliest choice is the right one, by its sum and per character, byte and token.

    Args:
      log_likelihoods: of the choices, in nats.
      choices: texts whose lengths divide them; not empty.
      gold: index of the right one.
      n_tokens: of the choices.
    """
    values = np.array(log_likelihoods, np.float64)
    divisors = {
        'acc': np.ones(len(values)),
        'acc_norm': np.array([len(choice) for choice in choices]),
        'acc_bytes': np.array([len(choice.encode()) for choice in choices]),
        'acc_per_token': np.array(n_tokens),
    }
    return {name: float(np.argmax(values / divisor) == gold) for name, divisor in divisors.items()}


def mass_on(log_likelihoods: Sequence[float], labels: Sequence[int]) -> float:
    """Returns the share of the probability that is on the choices of label 1 (TruthfulQA's mc2)."""
    values = np.array(log_likelihoods, np.float64)
    weights = np.exp(values - values.max())
    return float(weights[np.array(labels, bool)].sum() / weights.sum())


def mean(values: Sequence[float]) -> float:
    return float(np.mean(np.array(values, np.float64)))


def standard_error(values: Sequence[float]) -> float | None:
    """Returns the sample's standard deviation (n - 1) over sqrt(n); None of a single value."""
    if len(values) < 2:
        return None
    return float(np.std(np.array(values, np.float64), ddof=1) / math.sqrt(len(values)))


def wilson_interval(values: Sequence[float], z: float = 1.959963984540054) -> tuple[float, float]:
    """Returns the bounds of the interval of Wilson for a share, 95 % by default."""
    n, share = len(values), mean(values)
    centre, spread = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)
