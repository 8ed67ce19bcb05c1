"""The page of corpora that are compared by what they teach the same model.

It is drawn from what `compare_data.json` holds: corpora [C] and held_out [H], names; tokens that each model was trained
on; bits_per_byte [C, H, seeds].
"""

from typing import Any

from etils import epath
import numpy as np

from llm_jax.report import charts
from llm_jax.report.charts import MAIN, SECOND, Axis, Chart, Dots
from llm_jax.report.page import Study
from llm_jax.report.tables import Table


def mean_and_error(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean over the last axis and its standard error, NaN for one seed."""
    n = values.shape[-1]
    error = values.std(-1, ddof=1) / np.sqrt(n) if n > 1 else np.full(values.shape[:-1], np.nan)
    return values.mean(-1), error


def tabulate(numbers: dict[str, Any]) -> Table:
    """Mean and standard error over seeds; of one seed, its value."""
    mean, error = mean_and_error(np.asarray(numbers['bits_per_byte'], float))
    cell = lambda m, e: f'{m:.4f} ± {e:.4f}' if np.isfinite(e) else f'{m:.4f}'
    rows = [(name, *map(cell, mean[i], error[i])) for i, name in enumerate(numbers['corpora'])]
    return Table('Bits per byte', ('corpus', *numbers['held_out']), rows)


def write(directory: epath.PathLike, numbers: dict[str, Any], *, command: str) -> epath.Path:
    """Writes compare_data.html and compare_data.json; returns the path of the page.

    Args:
      directory: where.
      numbers: see above.
      command: that makes the page again, as a shell takes it.
    """
    seeds = np.shape(numbers['bits_per_byte'])[-1]
    over = f'mean and standard error over {seeds} seeds' if seeds > 1 else 'with one seed, which says nothing of chance'
    sentence = (
        f'The same model after the same {numbers["tokens"]:,} tokens of each corpus; bits per byte of held-out text '
        f'(less is better), {over}.'
    )
    return Study('compare_data', 'corpora compared', draw_all, tabulate).write(
        directory, numbers, sentence=sentence, command=command
    )


def draw_all(numbers: dict[str, Any]) -> list[Chart]:
    """A chart for each held-out text."""
    return [_draw(numbers, k) for k in range(len(numbers['held_out']))]


def _draw(numbers: dict[str, Any], k: int) -> Chart:
    """One held-out text: a row for each corpus."""
    values = np.asarray(numbers['bits_per_byte'], float)[:, k]  # [C, seeds]
    mean, error = mean_and_error(values)
    several = values.shape[1] > 1
    places = np.arange(len(mean), dtype=float)
    marks = []
    if several:
        seeds = np.repeat(places, values.shape[1])
        marks.append(Dots(values.ravel(), seeds, SECOND, 'a seed', size=3))
    marks.append(Dots(mean, places, MAIN, 'mean' if several else '', size=6, error=error if several else None))
    note = 'Bits per byte' + ('; the bar is the standard error of the mean.' if several else ', of one seed.')
    ticks = dict(zip(places.tolist(), numbers['corpora'], strict=True))
    return charts.draw(
        numbers['held_out'][k],
        note,
        marks,
        height=66 + 24 * len(mean),
        x=Axis(),
        y=Axis(ticks=ticks, reverse=True, limits=(-0.6, len(mean) - 0.4), grid=False),
    )
