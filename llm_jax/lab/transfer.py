"""Learning rate against width: does the best one of a narrow model hold for a wide one?"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import numpy as np

from llm_jax.config.schema import Config
from llm_jax.lab.trial import Trial
from llm_jax.lab.widths import MUP, STANDARD, require_two, slope, widened
from llm_jax.train.step import make_loss


@dataclasses.dataclass(frozen=True)
class Transfer:
    """Result of the measurement.

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
        run that diverged, it is the best of `rates` itself. NaN where all diverged.
        """
        out = []
        for losses in self.loss[parametrisation]:
            i = int(np.argmin(losses))
            near = losses[i - 1 : i + 2] if 0 < i < len(losses) - 1 else []
            shift = 0.0
            if len(near) == 3 and np.all(np.isfinite(near)):
                (a, b, c), step = near, np.log2(self.rates[i + 1] / self.rates[i])
                shift = step * (a - c) / (2 * (a - 2 * b + c))
            out.append(float(self.rates[i] * 2**shift) if np.isfinite(losses[i]) else float('nan'))
        return out

    def beyond(self, parametrisation: str) -> list[int]:
        """-1 or 1 for each width whose best rate is the lowest or highest of `rates`, so that a better one may be past
        it; 0 for the others.
        """
        ends = {0: -1, len(self.rates) - 1: 1}
        return [ends.get(int(np.argmin(losses)), 0) for losses in self.loss[parametrisation]]

    def drift(self, parametrisation: str) -> float:
        """The exponent of the width in the best rate: -1 halves it with every doubling, 0 is perfect transfer.

        It is over the widths whose best rate is within the range; NaN if these are fewer than two.
        """
        inside = np.asarray(self.beyond(parametrisation)) == 0
        if inside.sum() < 2:
            return float('nan')
        return slope(np.asarray(self.widths)[inside], np.asarray(self.best(parametrisation))[inside])

    @property
    def sentence(self) -> str:
        """The result, and what the range of rates leaves open."""
        drifts = {p: self.drift(p) for p in self.loss}
        known = [f'{2**drift:.2f} ({p})' for p, drift in drifts.items() if np.isfinite(drift)]
        unknown = [p for p, drift in drifts.items() if not np.isfinite(drift)]
        ends = [
            f'{p} {width}' for p in self.loss for width, end in zip(self.widths, self.beyond(p), strict=True) if end
        ]
        sentence = ''
        if known:
            sentence += (
                f'With every doubling of the width, the best learning rate is multiplied by {" and ".join(known)}. '
            )
        if unknown:
            names = ' and '.join(unknown)
            sentence += f'How the best rate of {names} depends on the width is unknown: it takes those of two widths. '
        if ends:
            sentence += (
                f'Not counted, as the lowest loss is at an end of the range of rates and a better rate may be past it: '
                f'{", ".join(ends)}.'
            )
        return sentence.strip()

    @property
    def numbers(self) -> dict[str, Any]:
        """All of it, for JSON and for `report.transfer`."""
        both = (STANDARD, MUP)
        return {
            'widths': self.widths,
            'rates': self.rates,
            'parametrisations': list(both),
            'drift': {p: self.drift(p) for p in both},
            'best': {p: self.best(p) for p in both},
            'beyond': {p: self.beyond(p) for p in both},
            'loss': {p: values.tolist() for p, values in self.loss.items()},
        }


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

    Raises:
      ConfigError: fewer than two widths, or one that the experiment cannot have.
    """
    widths, rates = require_two(widths), sorted(rates)
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
    """Peak learning rate -> loss."""
    trial = Trial(config, batches, vocab_size=vocab_size, bos_id=bos_id)
    evaluate = jax.jit(lambda params, tokens: make_loss(trial.model, config, bos_id=bos_id)(params, tokens)[1])

    def run(rate: float) -> float:
        params = trial.train(rate)
        sums = [jax.device_get(evaluate(params, tokens)) for tokens in held_out]
        loss = sum(s['nll'] for s in sums) / sum(s['weight'] for s in sums)
        return float(loss) if np.isfinite(loss) else float('inf')

    return run
