"""The curves of a run as SVG, to be put into an HTML page as they are."""

from collections.abc import Sequence
import io
import re
from typing import NamedTuple

import matplotlib
from matplotlib import axes, figure, ticker
import numpy as np

from llm_jax.metrics import format as fmt
from llm_jax.report.run import Run

# Matplotlib wants fixed colours, the page has a light and a dark scheme: these stand
# in for CSS colours and are swapped for them in the finished SVG.
INK, _GRID, MAIN, SECOND = '#010203', '#010204', '#010205', '#010206'
_CSS = {INK: 'var(--muted)', _GRID: 'var(--line)', MAIN: 'var(--main)', SECOND: 'var(--second)'}

_SIZE = (4.9, 2.7)  # inches: text stays readable on a phone, where it is shown at this size
_MAX_POINTS = 800  # more cannot be seen, and make the page heavy
STYLE = {
    'svg.fonttype': 'none',
    'font.size': 9,
    'axes.edgecolor': _GRID,
    'axes.labelcolor': INK,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'axes.axisbelow': True,
    'grid.color': _GRID,
    'grid.linewidth': 0.6,
    'text.color': INK,
    'xtick.color': _GRID,
    'ytick.color': _GRID,
    'xtick.labelcolor': INK,
    'ytick.labelcolor': INK,
    'legend.frameon': False,
    'lines.linewidth': 1.6,
    'lines.solid_joinstyle': 'round',
}


class Chart(NamedTuple):
    title: str
    note: str
    svg: str  # safe to put into a page: it holds no text from the run


def all_charts(run: Run) -> list[Chart]:
    """Every chart that the run has points for."""
    made = [
        _loss(run),
        _bits_per_byte(run),
        _simple(run, 'learning_rate', 'Learning rate', 'After warmup and decay.', fmt.learning_rate),
        _simple(run, 'tokens_per_second', 'Throughput', 'Tokens per second, over all devices.', _tick, zero=True),
        _simple(run, 'grad_norm', 'Gradient norm', 'Before clipping.', None, smooth=True),
        _simple(run, 'param_norm', 'Parameter norm', 'Over all parameters.', None),
        _simple(run, 'router_peak', 'Fullest expert', 'Its load over the mean load; 1 is even.', None, smooth=True),
        _simple(run, 'router_aux', 'Balance of experts', 'The balance loss; 1 is even.', None, smooth=True),
        _simple(run, 'router_z', 'Router logits', 'Mean of log(Σ exp)².', None, smooth=True),
    ]
    return [chart for chart in made if chart]


def smoothed(steps: Sequence[int], values: Sequence[float], span: float = 0.02) -> np.ndarray:
    """An exponential mean whose time constant is a share `span` of the steps.

    Bias-corrected, so that it starts at the first value; non-finite values are passed over.
    """
    steps, values = np.asarray(steps, float), np.asarray(values, float)
    constant = max(span * (steps[-1] - steps[0]), 1e-9)
    total = weight = 0.0
    out = np.empty_like(values)
    for i, value in enumerate(values):
        keep = np.exp(-(steps[i] - steps[i - 1]) / constant) if i else 0.0
        total, weight = keep * total, keep * weight
        if np.isfinite(value):
            total, weight = total + value, weight + 1
        out[i] = total / weight if weight else np.nan
    return out


def _loss(run: Run) -> Chart | None:
    steps, loss = run.series('loss')
    val_steps, val_loss = run.series('val/loss')
    if not steps and not val_steps:
        return None
    with matplotlib.rc_context(STYLE):
        fig, ax = _figure()
        note = 'Nats per token.'
        if steps:
            _line(ax, steps, loss, color=MAIN, alpha=0.3, linewidth=0.8)
            _line(ax, steps, smoothed(steps, loss), color=MAIN, label='training, smoothed')
        if val_steps:
            ax.plot(val_steps, val_loss, 'o-', color=SECOND, markersize=3.5, linewidth=1, label='validation')
        shown = [v for v in [*loss[len(loss) // 20 :], *val_loss[1 if len(val_loss) > 2 else 0 :]] if np.isfinite(v)]
        highest = max([v for v in loss if np.isfinite(v)], default=0)
        if shown and len(loss) >= 40 and highest > max(shown):
            low, high = min(shown), max(shown)
            margin = 0.05 * (high - low)
            ax.set_ylim(low - margin, high + margin)
            note += f' The start, at {highest:.2f}, lies above the frame.'
        ax.legend(loc='upper right')
        return Chart('Loss', note, svg(fig, 'loss'))


def _bits_per_byte(run: Run) -> Chart | None:
    steps, bits = run.series('val/bits_per_byte')
    if not steps:
        return None
    gzip = run.data.get('gzip_bits_per_byte')
    with matplotlib.rc_context(STYLE):
        fig, ax = _figure()
        ax.plot(steps, bits, 'o-', color=SECOND, markersize=3.5, label='model')
        if gzip:
            ax.axhline(gzip, color=INK, linewidth=1, linestyle=(0, (4, 3)), label='gzip -9')
        ax.set_ylim(bottom=0)
        ax.legend(loc='best')
        return Chart('Bits per byte', 'Validation split; lower is better.', svg(fig, 'bits'))


def _simple(run, name, title, note, tick_format, *, smooth=False, zero=False) -> Chart | None:
    steps, values = run.series(name)
    if not np.isfinite(values).any():
        return None
    with matplotlib.rc_context(STYLE):
        fig, ax = _figure()
        if smooth:
            _line(ax, steps, values, color=MAIN, alpha=0.3, linewidth=0.8)
            values = smoothed(steps, values)
        _line(ax, steps, values, color=MAIN)
        if zero:
            ax.set_ylim(bottom=0)
        if tick_format:
            ax.yaxis.set_major_formatter(ticker.FuncFormatter(lambda v, _: tick_format(v)))
        return Chart(title, note, svg(fig, name))


def _figure() -> tuple[figure.Figure, axes.Axes]:
    fig = figure.Figure(figsize=_SIZE, layout='constrained')  # not pyplot, which keeps global state
    ax = fig.subplots()
    ax.set_xlabel('step')
    ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda v, _: _tick(v)))
    ax.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
    ax.tick_params(length=0)
    return fig, ax


def _tick(value: float) -> str:
    """A round number without the digits that a measured one would show: 1.5 k, not 1.50 k."""
    number, space, unit = fmt.count(value).partition(' ')
    return (number.rstrip('0').rstrip('.') if '.' in number else number) + space + unit


def _line(ax: axes.Axes, steps: Sequence[int], values: Sequence[float], **style) -> None:
    """A line of at most _MAX_POINTS points, each the mean of its neighbourhood."""
    steps, values = np.asarray(steps, float), np.asarray(values, float)
    values = np.where(np.isfinite(values), values, np.nan)  # a gap where the run had no number
    if len(steps) > _MAX_POINTS:
        parts = np.array_split(np.arange(len(steps)), _MAX_POINTS)
        steps = np.array([steps[part].mean() for part in parts])
        values = np.array([values[part].mean() for part in parts])
    ax.plot(steps, values, marker='o' if len(steps) == 1 else None, markersize=3.5, **style)


def svg(fig: figure.Figure, name: str) -> str:
    """The figure as one <svg> element in the page's colours and fonts, at any width."""
    out = io.StringIO()
    # The salt keeps the ids of several charts in one page apart.
    with matplotlib.rc_context({'svg.hashsalt': name}):
        fig.savefig(out, format='svg', transparent=True, metadata={'Date': None})
    text = out.getvalue()
    text = text[text.index('<svg') :]
    text = re.sub(r'<metadata>.*?</metadata>', '', text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"|\s(width|height)="[\d.]+pt"', '', text)
    text = re.sub(r'\sid="[\w.]+_\d+"', '', text)  # group names, which repeat from chart to chart
    text = re.sub(r'font: ([\d.]+)px [^;"]*', r'font-size: \1px', text)
    for placeholder, css in _CSS.items():
        text = text.replace(placeholder, css)
    return text
