"""Learning rate against width: does the best one of a narrow model hold for a wide one?"""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.nn.transformer import build, init_params, parameters_of
from llm_jax.schema import Config
from llm_jax.train.optimizer import Span, make_optimizer, make_schedule
from llm_jax.train.setup import Steps
from llm_jax.train.state import init_state
from llm_jax.train.step import make_loss, make_train_step
from llm_jax.train.widths import MUP, STANDARD, slope, widened


@dataclasses.dataclass(frozen=True)
class Transfer:
    """What was measured.

    Attributes:
      widths: W of them, ascending; at the first both parametrisations are the same.
      rates: R learning rates, ascending.
      loss: parametrisation -> held-out loss after training, [W, R]; infinite if it diverged.
    """

    widths: list[int]
    rates: list[float]
    loss: dict[str, np.ndarray]

    def best(self, parametrisation: str) -> list[float]:
        """The best rate at each width: the lowest point of a parabola through the best of `rates` and its neighbours.

        The parabola is over log2 of the rate; at the ends of the range, and beside a
        run that diverged, it is the best of `rates` itself.
        """
        out = []
        for losses in self.loss[parametrisation]:
            i = int(np.argmin(losses))
            near = losses[i - 1 : i + 2] if 0 < i < len(losses) - 1 else []
            shift = 0.0
            if len(near) == 3 and np.all(np.isfinite(near)):
                (a, b, c), step = near, np.log2(self.rates[i + 1] / self.rates[i])
                shift = step * (a - c) / (2 * (a - 2 * b + c))
            out.append(float(self.rates[i] * 2**shift))
        return out

    def drift(self, parametrisation: str) -> float:
        """The exponent of the width in the best rate: -1 halves it with every doubling, 0 is perfect transfer."""
        return slope(self.widths, np.asarray(self.best(parametrisation)))


def sweep(
    config: Config,
    batches: np.ndarray,
    held_out: np.ndarray,
    *,
    vocab_size: int,
    bos_id: int,
    widths: list[int],
    rates: list[float],
    progress: Callable[[str], None] = lambda text: None,
) -> Transfer:
    """Trains every width at every learning rate, with and without muP, on the same batches.

    Args:
      config: the experiment; its schedule's shape and its optimizer are used.
      batches: int32[steps, B, L+1].
      held_out: int32[n, B, L+1], for the loss after training.
      vocab_size: of the tokenizer.
      bos_id: of the tokenizer.
      widths: values of model.d_model; the smallest is the base.
      rates: peak learning rates.
      progress: told each result.
    """
    widths, rates = sorted(widths), sorted(rates)
    loss = {STANDARD: [], MUP: []}
    for parametrisation in loss:
        for width in widths:
            if parametrisation == MUP and width == widths[0]:  # the same model
                loss[MUP].append(loss[STANDARD][0])
                continue
            wide = widened(config, width, base=widths[0], parametrisation=parametrisation)
            run = _runner(wide, batches, held_out, vocab_size, bos_id)
            row = []
            for rate in rates:
                row.append(run(rate))
                progress(f'{parametrisation}, width {width}, learning rate {rate:.3g}: loss {row[-1]:.4f}')
            loss[parametrisation].append(row)
    return Transfer(widths, rates, {name: np.asarray(rows) for name, rows in loss.items()})


def _runner(
    config: Config, batches: np.ndarray, held_out: np.ndarray, vocab_size: int, bos_id: int
) -> Callable[[float], float]:
    """Peak learning rate -> loss. Compiled once: the rate is an argument of the step."""
    model = build(config.model, vocab_size=vocab_size, seq_len=config.data.seq_len)
    shapes, weights = jax.eval_shape(lambda: init_params(model, jax.random.key(0))), parameters_of(model)
    steps = Steps.of(config, rows=len(batches) * config.train.batch_size)
    span = Span(len(batches), steps.warmup, steps.decay, config.schedule.floor)
    shape = make_schedule(config.schedule, 1.0, span)

    def at(rate: jax.Array | float):
        schedule = lambda step: rate * shape(step)
        return schedule, make_optimizer(config.optimizer, schedule, shapes, weights)

    @jax.jit
    def step(state, tokens, rate):
        schedule, optimizer = at(rate)
        return make_train_step(model, config, optimizer, schedule, bos_id=bos_id)(state, tokens)

    init = jax.jit(lambda key: init_state(model, at(0.0)[1], key, with_ema=False))
    evaluate = jax.jit(lambda params, tokens: make_loss(model, config, bos_id=bos_id)(params, tokens)[1])

    def run(rate: float) -> float:
        state = init(jax.random.key(config.seed))
        for tokens in batches:
            state, _ = step(state, tokens, jnp.float32(rate))
        sums = [jax.device_get(evaluate(state.params, tokens)) for tokens in held_out]
        loss = sum(s['nll'] for s in sums) / sum(s['weight'] for s in sums)
        return float(loss) if np.isfinite(loss) else float('inf')

    return run
