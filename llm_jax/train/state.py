"""What training carries from step to step."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from llm_jax.nn.transformer import Transformer, init_params


@flax.struct.dataclass
class State:
    """A plain pytree. The data order and dropout are functions of (seed, step), so this is all.

    Attributes:
      step: int32[], optimizer steps taken.
      params: the parameters that are trained: nested dict, float32. What is frozen is kept apart, see `trainable`.
      opt_state: of optax, for `params`.
      ema: averages of `params`, or None.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any

    @property
    def averaged(self) -> Any:
        """The trained parameters to evaluate and to sample from: the averaged ones where there are any."""
        return self.params if self.ema is None else self.ema


def init_state(model: Transformer, optimizer: optax.GradientTransformation, key: jax.Array, *, with_ema: bool) -> State:
    """A fresh state on the current mesh, everything trained. Jit it, or take its shapes with `jax.eval_shape`."""
    return start_training(init_params(model, key), optimizer, with_ema=with_ema)


def start_training(params: Any, optimizer: optax.GradientTransformation, *, with_ema: bool) -> State:
    """The state before the first step that trains these parameters."""
    ema = jax.tree.map(jnp.copy, params) if with_ema else None
    return State(jnp.zeros((), jnp.int32), params, optimizer.init(params), ema)
