"""Metrics of items and of tasks, in float64 on the host."""

from collections.abc import Sequence
import math
from typing import Any

import numpy as np

Z = 1.959963984540054  # standard deviations on each side that hold 95 % of a normal distribution


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


def wilson_interval(values: Sequence[float], z: float = Z) -> tuple[float, float]:
    """Returns the bounds of the interval of Wilson for a share, 95 % by default."""
    n, share = len(values), mean(values)
    centre, spread = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)


def mutual_information(log_likelihoods: Sequence[float], alone: Sequence[float], gold: int) -> float:
    """Whether the choice that the context makes likelier most is the right one (lm-eval's acc_mutual_info).

    Args:
      log_likelihoods: of the choices after the context.
      alone: of the choices after nothing.
      gold: index of the right one.
    """
    return float(np.argmax(np.array(log_likelihoods, np.float64) - np.array(alone, np.float64)) == gold)


def perplexity(log_likelihoods: Sequence[float]) -> dict[str, Any]:
    """exp(-mean log-likelihood) of the items, with the standard error that the delta method gives."""
    value, stderr = math.exp(min(-mean(log_likelihoods), 700.0)), standard_error(log_likelihoods)
    return {'value': value, 'stderr': None if stderr is None else value * stderr}


def rescale(entry: dict[str, Any], chance: float) -> dict[str, Any]:
    """A metric's entry so that chance is 0 and a perfect score 1."""
    scaled = {'value': (entry['value'] - chance) / (1 - chance), 'stderr': None}
    if entry['stderr'] is not None:
        scaled['stderr'] = entry['stderr'] / (1 - chance)
    if 'interval' in entry:
        scaled['interval'] = tuple((bound - chance) / (1 - chance) for bound in entry['interval'])
    return scaled
