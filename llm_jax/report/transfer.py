"""The page on the best learning rate of each width.

It is drawn from what `mup_transfer.json` holds: widths [W]; rates [R]; parametrisations, the standard one first; loss
{parametrisation: [W, R]}, infinite if it diverged; best {parametrisation: [W]} learning rates, NaN if all diverged;
beyond {parametrisation: [W]}, -1 or 1 where the best is at an end of `rates`.
"""

from typing import Any

import numpy as np

from llm_jax.report import charts
from llm_jax.report.charts import STRONG, Axis, Chart, Dots, Line
from llm_jax.report.page import Study
from llm_jax.report.tables import Table

# Above the lowest loss of all, what is shown.
_SPAN = 1.5
# Before a rate at the lower or upper end of the range, past which a better one may be.
_BEYOND = {-1: '≤ ', 0: '', 1: '≥ '}


def tabulate(numbers: dict[str, Any]) -> Table:
    """The loss of each run, and the best learning rate of each width."""
    rows = []
    for parametrisation in numbers['parametrisations']:
        columns = (numbers[name][parametrisation] for name in ('loss', 'best', 'beyond'))
        for width, losses, best, beyond in zip(numbers['widths'], *columns, strict=True):
            shown = ['diverged' if not np.isfinite(loss) else f'{loss:.3f}' for loss in losses]
            if np.isfinite(losses).any():
                shown[int(np.argmin(losses))] += ' *'
            rate = f'{_BEYOND[beyond]}2^{np.log2(best):.2f}' if np.isfinite(best) else 'all diverged'
            rows.append((f'{parametrisation} {width}', *shown, rate))
    rates = (f'2^{np.log2(rate):g}' for rate in numbers['rates'])
    return Table('Held-out loss by learning rate; * is the lowest', ('width', *rates, 'best rate'), rows)


def draw_all(numbers: dict[str, Any]) -> list[Chart]:
    """A chart for each parametrisation, on the same axes: loss against the learning rate, a line for each width."""
    rates = numbers['rates']
    losses = np.concatenate([np.ravel(loss) for loss in numbers['loss'].values()])
    finite = losses[np.isfinite(losses)]
    low, high = (finite.min(), min(finite.max(), finite.min() + _SPAN)) if len(finite) else (0.0, 1.0)
    margin = 0.06 * (high - low) + 1e-3
    x = Axis('learning rate', log=True, ticks={rate: f'2^{np.log2(rate):g}' for rate in rates})
    y = Axis(limits=(low - margin, high + margin))
    drawn = []
    for parametrisation in numbers['parametrisations']:
        marks, best_at = [], []
        for n, (width, row) in enumerate(zip(numbers['widths'], numbers['loss'][parametrisation], strict=True)):
            color = charts.SERIES[n % len(charts.SERIES)]
            marks.append(Line(rates, row, color, f'width {width}', dots=True))
            if np.isfinite(row).any():
                best_at.append((rates[int(np.argmin(row))], min(row)))
        if best_at:
            marks.append(Dots(*zip(*best_at, strict=True), STRONG, 'lowest', filled=False, size=8))
        note = (
            'Held-out loss, nats per token. Both charts have the same axes; above the frame it is larger or diverged.'
        )
        drawn.append(charts.draw(parametrisation, note, marks, x=x, y=y))
    return drawn


write = Study('mup_transfer', 'learning rate and width', draw_all, tabulate).write
