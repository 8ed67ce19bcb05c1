"""The same experiment at another width, with muP or without: what is compared to see whether muP holds."""

import dataclasses
from fractions import Fraction
from typing import Any

import numpy as np

from llm_jax.config.schema import Config, ConfigError, Model, Mup, with_fields
from llm_jax.data.batches import TrainRows
from llm_jax.data.prepare import Prepared

STANDARD, MUP = 'standard', 'muP'
# What grows with d_model besides it, as names of fields of `model`.
_INNER = ('d_ff', 'moe.d_ff', 'mla.q_rank', 'mla.kv_rank')
_GROWN = {'heads': ('n_heads', 'n_kv_heads'), 'd_head': ('d_head', 'mla.d_nope', 'mla.d_rope', 'mla.d_value')}


def widened(config: Config, width: int, *, base: int, parametrisation: str, grow: str = 'heads') -> Config:
    """The experiment with d_model = width and all that belongs to it in proportion.

    Args:
      config: the experiment, at its own width.
      width: the new d_model.
      base: the width at which both parametrisations are the same model.
      parametrisation: 'standard' or 'muP'.
      grow: whether 'heads' become more, or 'd_head' wider.

    Raises:
      ConfigError: something would not be a whole number.
    """
    model = config.model
    ratio = Fraction(width, model.d_model)
    names = ('d_model', *_INNER, *_GROWN[grow])

    def changed(name: str, value: Any) -> Any:
        # One key/value head for all queries is what multi-query attention is, at any width.
        if name not in names or (name == 'n_kv_heads' and value == 1):
            return value
        if (value * ratio).denominator != 1:
            raise ConfigError(
                f'width {width} is {ratio} of model.d_model = {model.d_model}, and so much of model.{name} = {value} '
                'is not a whole number; use other widths'
            )
        return int(value * ratio)

    def layer(entry: tuple) -> tuple:
        return tuple((name, changed(name, value)) for name, value in entry)

    # Said outright, so that they are exactly in proportion: by default d_ff is rounded to a multiple.
    full = dataclasses.replace(model, d_ff=model.ff_size, d_head=model.head_size)
    fields = [(name, changed(name, _field(full, name))) for name in names]
    head = model.head_size * Fraction(base, model.d_model)
    mup = Mup(base, int(head) if grow == 'd_head' else 0) if parametrisation == MUP else Mup()
    model = dataclasses.replace(
        with_fields(full, fields), mup=mup, pattern=tuple(map(layer, model.pattern)),
        first_layers=tuple(map(layer, model.first_layers)),
    )  # fmt: skip
    return dataclasses.replace(config, model=model)


def _field(model: Model, name: str) -> Any:
    for part in name.split('.'):
        model = getattr(model, part)
    return model


def training_batches(prepared: Prepared, config: Config, n: int) -> np.ndarray:
    """The first n batches that training sees, int32[n, B, L+1]."""
    size = config.train.batch_size
    return TrainRows(prepared, config.data.mixture, config.seed, size, np.arange(size)).read(0, n)


def require_two(widths: list[int]) -> list[int]:
    """The widths in ascending order.

    Raises:
      ConfigError: fewer than two different ones: nothing could be said of how anything depends on the width.
    """
    if len(set(widths)) < 2:
        raise ConfigError(f'widths {widths}: give two different ones or more, such as --widths 64,128,256')
    return sorted(set(widths))


def slope(widths: list[int], values: np.ndarray) -> float:
    """The exponent of `values` as a power of the width, by least squares; NaN if one is not positive."""
    if not np.all(np.isfinite(values)) or np.any(np.asarray(values) <= 0):
        return float('nan')
    return float(np.polyfit(np.log2(widths), np.log2(values), 1)[0])
