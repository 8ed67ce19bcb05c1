"""The page on perplexity against length.

It is drawn from what `extrapolation.json` holds: trained, a length; ends [E] of the ranges of positions; perplexity
{name: [E]}; trained_with, names of the models; scaled, names of one model's scalings, itself the first.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llm_jax.report import charts
from llm_jax.report.charts import SERIES, Axis, Chart, Line, Rule
from llm_jax.report.page import Study
from llm_jax.report.tables import Table

# Perplexities up to so many times the lowest are shown.
_SPAN = 12


def tabulate(numbers: dict[str, Any]) -> Table:
    """The perplexity of tokens at these positions."""
    ends = numbers['ends']
    starts = [1, *(end + 1 for end in ends[:-1])]
    header = ('position part', *(f'{start}–{end}' for start, end in zip(starts, ends, strict=True)))
    rows = [(name, *(f'{value:.1f}' for value in values)) for name, values in numbers['perplexity'].items()]
    return Table('Perplexity of tokens at these positions', header, rows)


def draw_all(numbers: dict[str, Any]) -> list[Chart]:
    """A chart of the models that were trained, and one of RoPE's scalings."""
    return [
        _draw_curves(numbers, numbers['trained_with'], 'Trained with each'),
        _draw_curves(numbers, numbers['scaled'], 'RoPE, scaled after training'),
    ]


def _draw_curves(numbers: dict[str, Any], names: Sequence[str], title: str) -> Chart:
    ends, trained, values = numbers['ends'], numbers['trained'], numbers['perplexity']
    marks = [Rule(trained)]
    for i, name in enumerate(names):
        dash = list(charts.DASHES)[i // len(SERIES) % len(charts.DASHES)]
        marks.append(Line(ends, values[name], SERIES[i % len(SERIES)], name.removeprefix('rope, '), dash, dots=True))
    finite = [value for each in numbers['perplexity'].values() for value in each if np.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (1.0, 10.0)
    high = min(max(high, 1.2 * low), _SPAN * low)
    note = (
        f'Perplexity of the tokens from the point before to this position; dashed: {trained}, the length of training. '
        + ('Beyond the frame it is larger.' if max(finite, default=0) > high else '')
    )
    ticks = {float(end): str(end) for end in ends}
    return charts.draw(
        title,
        note.strip(),
        marks,
        x=Axis('position', log=True, ticks=ticks),
        y=Axis(log=True, limits=(low / 1.1, high * 1.1)),
    )


write = Study('extrapolation', 'perplexity against length', draw_all, tabulate).write
