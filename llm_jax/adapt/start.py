"""Where a run with adapters begins: the parameters of its base, held in few bits, and adapters that change nothing."""

from typing import Any

import jax

from llm_jax.adapt import lora, quantise
from llm_jax.nn.transformer import Transformer, init_params


def start_adapters(model: Transformer, params: Any, seed: int) -> Any:
    """The parameters of a base as `model.adapter` wants them, and adapters beside them; without one, `params`.

    Raises:
      ConfigError: as `lora.find_targets` and `quantise.hold_base`.
    """
    if model.config.adapter.kind == 'none':
        return params
    held = quantise.hold_base(model, params)
    # Another stream than that of the initial weights, which begins with the same seed.
    key = jax.random.fold_in(jax.random.key(seed), 1)
    return lora.attach(held, lora.init_adapters(model, held, key))


def base_shapes(model: Transformer) -> Any:
    """Shapes of the parameters without adapters, with their shardings on the current mesh."""
    return jax.eval_shape(lambda: init_params(model, jax.random.key(0)))


def param_shapes(model: Transformer) -> Any:
    """Shapes of the parameters, adapters included, with their shardings on the current mesh."""
    return jax.eval_shape(lambda: start_adapters(model, init_params(model, jax.random.key(0)), 0))
