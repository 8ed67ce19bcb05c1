"""Weighted means, kept as (total, weight) until the end.

A mean of means is wrong as soon as the parts have different weights: the last
batch of an epoch, a row that is half padding, a host with fewer tokens. Sums add
up exactly whatever the parts, so every metric stays a `Mean` until it is shown.
All functions take any pytree of Means, e.g. `{'loss': Mean, 'z_loss': Mean}`.
"""

import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Mean(NamedTuple):
    """A weighted mean that has not been divided yet; a pytree of two leaves."""

    total: Any  # sum of weight * value
    weight: Any  # sum of the weights


def mean_of(values: jax.Array, weights: jax.Array) -> Mean:
    """The Mean of an array.

    Args:
      values: [...], any float dtype.
      weights: [...], the same shape; 0 leaves a value out, even a non-finite one.

    Returns:
      a Mean of two float32 scalars. Over a sharded array these are global sums.
    """
    weights = weights.astype(jnp.float32)
    weighted = jnp.where(weights == 0, 0.0, values.astype(jnp.float32) * weights)
    return Mean(weighted.sum(), weights.sum())


def add(a: Any, b: Any) -> Any:
    """The Means of both parts together; `a` and `b` are the same pytree of Means."""
    return jax.tree.map(operator.add, a, b)


def fetch(means: Any) -> Any:
    """The same Means on the host, in Python floats.

    Waits for the device. What is added after this is summed in float64: a token
    count in float32 stops growing at 2^24, which a validation split soon reaches.
    """
    return jax.tree.map(float, jax.device_get(means))


def value(means: Any) -> Any:
    """The pytree with each Mean divided out; NaN where nothing had weight."""

    def divide(mean: Mean) -> Any:
        if isinstance(mean.weight, (int, float)):
            return mean.total / mean.weight if mean.weight else float('nan')
        return mean.total / mean.weight

    return jax.tree.map(divide, means, is_leaf=lambda x: isinstance(x, Mean))
