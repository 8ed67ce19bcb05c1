"""The page of a coordinate check: how the change of each activation depends on the width.

It is drawn from what `coord_check.json` holds: widths [W]; names [N] of the activations; grow; passed; limit, the
largest exponent that counts as flat; parametrisations, the standard one first; slopes {parametrisation: {name:
exponent}}; change {parametrisation: [W, seeds, steps, N]} and size {parametrisation: [W, seeds, steps + 1, N]}, root
mean squares.
"""

from typing import Any

import numpy as np

from llm_jax.report import charts
from llm_jax.report.charts import MAIN, SECOND, Axis, Band, Chart, Line
from llm_jax.report.page import Study
from llm_jax.report.tables import Table

_COLORS = (SECOND, MAIN)


def tabulate(numbers: dict[str, Any]) -> Table:
    """The exponent of the width in the change of each activation."""
    slopes, parametrisations = numbers['slopes'], numbers['parametrisations']
    rows = [(name, *(f'{slopes[p][name]:+.2f}' for p in parametrisations)) for name in numbers['names']]
    return Table('Exponent of the width in the change of activations', ('change of', *parametrisations), rows)


def draw_all(numbers: dict[str, Any]) -> list[Chart]:
    """A chart for each kind of activation, all on the same axes, so that their slopes compare."""
    names, widths = numbers['names'], np.asarray(numbers['widths'], float)
    curves = {p: _relative(np.asarray(change, float)) for p, change in numbers['change'].items()}  # [W, N]
    limit = (widths / widths[0]) ** numbers['limit']
    shown = np.concatenate([limit, 1 / limit, *(curve.ravel() for curve in curves.values())])
    shown = shown[np.isfinite(shown) & (shown > 0)]
    margin = max(shown.max() / shown.min(), 1.1) ** 0.06
    y = Axis(log=True, limits=(float(shown.min() / margin), float(shown.max() * margin)))
    kinds = {}
    for i, name in enumerate(names):
        kinds.setdefault(name.split(' ', 2)[-1], []).append(i)
    return [_draw_kind(kind, indices, curves, numbers, y) for kind, indices in kinds.items()]


def _relative(change: np.ndarray) -> np.ndarray:
    """[W, seeds, steps, N] -> after the last step, the seeds' geometric mean over that of the first width: [W, N].

    Infinite or NaN where a change is 0 or not finite; a chart leaves those out.
    """
    with np.errstate(divide='ignore', invalid='ignore'):
        last = np.mean(np.log(change[:, :, -1]), axis=1)
        return np.exp(last - last[0])


def _draw_kind(kind: str, indices: list[int], curves: dict[str, np.ndarray], numbers: dict[str, Any], y: Axis) -> Chart:
    """A line for each layer."""
    widths = numbers['widths']
    limit = (np.asarray(widths, float) / widths[0]) ** numbers['limit']
    marks = [Band(widths, 1 / limit, limit, 'counts as flat')]
    for parametrisation, color in zip(numbers['parametrisations'], _COLORS, strict=True):
        for n, i in enumerate(indices):
            label, alpha = '' if n else parametrisation, 1 - 0.6 * n / len(indices)
            marks.append(Line(widths, curves[parametrisation][:, i], color, label, alpha=alpha, dots=True))
    note = f'Change after the last step by width, relative to that at width {widths[0]}'
    note += '; later layers are paler.' if indices[1:] else '.'
    ticks = {float(width): str(width) for width in widths}
    return charts.draw(kind, note, marks, x=Axis('width', log=True, ticks=ticks), y=y)


write = Study('coord_check', 'coordinate check', draw_all, tabulate).write
