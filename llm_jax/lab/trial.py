"""Short trainings on given batches, for comparisons: no run directory, no mesh, no checkpoints."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.config.schema import Config
from llm_jax.nn.transformer import build, init_params, parameters_of
from llm_jax.train.optimizer import Span, make_optimizer, make_schedule
from llm_jax.train.setup import Steps
from llm_jax.train.state import init_state
from llm_jax.train.step import make_train_step


class Trial:
    """An experiment trained on the same batches as often as wished, at any learning rate.

    Compiled once: the rate is an argument of the step.
    """

    def __init__(self, config: Config, batches: np.ndarray, *, vocab_size: int, bos_id: int):
        """Args: batches: int32[steps, B, L+1], on which each training goes once."""
        self.config, self.batches = config, batches
        self.model = build(config.model, vocab_size=vocab_size, seq_len=config.data.seq_len)
        shapes, weights = jax.eval_shape(lambda: init_params(self.model, jax.random.key(0))), parameters_of(self.model)
        steps = Steps.of(config, rows=len(batches) * config.train.batch_size)
        span = Span(len(batches), steps.warmup, steps.decay, config.schedule.final_lr_ratio)
        shape = make_schedule(config.schedule, 1.0, span)

        def at(rate: jax.Array | float):
            schedule = lambda step: rate * shape(step)
            return schedule, make_optimizer(config.optimizer, schedule, shapes, weights)

        @jax.jit
        def step(state, tokens, rate):
            schedule, optimizer = at(rate)
            return make_train_step(self.model, config, optimizer, schedule, bos_id=bos_id)(state, tokens)

        self._step = step
        self._init = jax.jit(lambda key: init_state(self.model, at(0.0)[1], key, with_ema=False))

    def train(self, rate: float) -> Any:
        """Parameters after training at a peak learning rate."""
        state = self._init(jax.random.key(self.config.seed))
        for tokens in self.batches:
            state, _ = self._step(state, tokens, jnp.float32(rate))
        return state.params
