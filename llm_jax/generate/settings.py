"""Settings of each row that is sampled: checked where they are given, arrays where they are used.

Being arrays, they are data of a compiled program: a new temperature compiles nothing, and
rows of one batch may differ in all of them.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import NamedTuple

import jax
import numpy as np

from llm_jax.config.schema import ConfigError


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Distribution to draw tokens from, in the order of the fields: logits change, then scale, then are cut.

    Each cut looks at what the one before it left, scaled to sum to 1. Tokens that are equally
    likely are kept or cut together, so no cut depends on their order.

    Attributes:
      temperature: divides the logits; 0 takes the likeliest token, of the logits with bias and penalties.
      top_k: keeps the k likeliest tokens (Fan et al. 2018, arXiv:1805.04833); 0 keeps all.
      top_p: keeps the likeliest tokens until together they reach this probability, the one
        that crosses it included (Holtzman et al. 2020, arXiv:1904.09751); 1 keeps all.
      min_p: keeps tokens of at least this fraction of the likeliest one's probability
        (Nguyen et al. 2024, arXiv:2407.01082); 0 keeps all.
      typical_p: keeps the tokens whose surprise is nearest to the entropy until together they
        reach this probability (Meister et al. 2023, arXiv:2202.00666); 1 keeps all.
      repetition_penalty: divides the positive logits, and multiplies the negative ones, of tokens in
        the prompt or the output, once (Keskar et al. 2019, arXiv:1909.05858); 1 is none.
      frequency_penalty: is subtracted from a token's logit for each time that it is in the output.
      presence_penalty: is subtracted once from the logit of a token that is in the output.
      logit_bias: is added to the logits of these ids, before all else; -inf forbids one.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        _require(0 <= self.temperature < math.inf, self, 'temperature', '0 (greedy) or a positive number')
        is_count = 0 <= self.top_k < 2**31 and self.top_k == int(self.top_k)
        _require(is_count, self, 'top_k', '0 (keep all tokens) or a count below 2^31')
        _require(0 < self.top_p <= 1, self, 'top_p', 'above 0 and at most 1 (keep all tokens)')
        _require(0 <= self.min_p <= 1, self, 'min_p', 'from 0 (keep all tokens) to 1')
        _require(0 < self.typical_p <= 1, self, 'typical_p', 'above 0 and at most 1 (keep all tokens)')
        _require(0 < self.repetition_penalty < math.inf, self, 'repetition_penalty', 'a positive number; 1 is none')
        for name in ('frequency_penalty', 'presence_penalty'):
            _require(math.isfinite(getattr(self, name)), self, name, 'a finite number; 0 is none')
        for token, bias in self.logit_bias.items():
            if token < 0 or math.isnan(bias) or bias == math.inf:
                raise ConfigError(
                    f'logit_bias = {{{token}: {bias}}}: it needs ids from 0 on, and numbers; -inf forbids an id'
                )


def _require(holds: bool, sampler: Sampler, name: str, need: str) -> None:
    if not holds:
        raise ConfigError(f'{name} = {getattr(sampler, name)} must be {need}')


class Settings(NamedTuple):
    """The fields of `Sampler` as arrays over rows: float32[B], but for those that say otherwise.

    Attributes:
      top_k: int32[B].
      bias_ids: int32[B, N]; NO_ID where a row has fewer than N.
      bias_values: float32[B, N].
    """

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    typical_p: jax.Array
    repetition_penalty: jax.Array
    frequency_penalty: jax.Array
    presence_penalty: jax.Array
    bias_ids: jax.Array
    bias_values: jax.Array


NUMBERS = tuple(name for name in Settings._fields if not name.startswith('bias'))
# An id that no vocabulary has: writes to it are dropped.
NO_ID = np.iinfo(np.int32).max
# Entries of one row's logit_bias; the number is part of the compiled programs.
MAX_BIAS = 512


def pack_settings(samplers: Sequence[Sampler], max_bias: int = MAX_BIAS) -> Settings:
    """Makes the arrays of B rows, in NumPy.

    Raises:
      ConfigError: a logit_bias of more than `max_bias` ids.
    """
    bias_ids = np.full((len(samplers), max_bias), NO_ID, np.int32)
    bias_values = np.zeros((len(samplers), max_bias), np.float32)
    for row, sampler in enumerate(samplers):
        count = len(sampler.logit_bias)
        if count > max_bias:
            raise ConfigError(f'logit_bias has {count} ids; {max_bias} are the most')
        bias_ids[row, :count] = list(sampler.logit_bias)
        bias_values[row, :count] = list(sampler.logit_bias.values())
    dtype = lambda name: np.int32 if name == 'top_k' else np.float32
    numbers = {name: np.array([getattr(one, name) for one in samplers], dtype(name)) for name in NUMBERS}
    return Settings(**numbers, bias_ids=bias_ids, bias_values=bias_values)
