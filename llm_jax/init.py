"""Initialisation schemes: how large each weight starts, from what the weight is."""

from collections.abc import Callable
import dataclasses

import jax

from llm_jax.parts import resolve_part
from llm_jax.schema import Model


@dataclasses.dataclass(frozen=True)
class Weight:
    """What a scheme may know of a weight matrix.

    Attributes:
      role: 'embedding' (rows are looked up), 'hidden' (residual width on at least one
        side), or 'readout' (maps to the vocabulary).
      fan_in: how many inputs each output sums.
      fan_out: how many outputs there are.
      writes_residual: whether its output is added to the residual stream.
    """

    role: str
    fan_in: int
    fan_out: int
    writes_residual: bool = False


def gpt2(config: Model, weight: Weight) -> Callable[..., jax.Array]:
    """Normal of `init_std`; what writes to the residual stream is scaled by 1/√(2·n_layers).

    The scaling keeps the variance of the residual stream independent of depth, since
    2·n_layers branches add to it (Radford et al. 2019, "Language Models are
    Unsupervised Multitask Learners", §2.3).
    """
    scale = (2 * config.n_layers) ** -0.5 if weight.writes_residual else 1.0
    return jax.nn.initializers.normal(config.init_std * scale)


SCHEMES = {'gpt2': gpt2}


def initializer(config: Model, weight: Weight) -> Callable[..., jax.Array]:
    """`init(key, shape, dtype, out_sharding=...)` of the config's scheme for this weight."""
    return resolve_part('model.init', config.init, SCHEMES)(config, weight)
