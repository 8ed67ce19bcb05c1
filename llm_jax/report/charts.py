"""Charts as SVG, from marks that are plain data: in the page's colours, readable at 400 px and at 1200 px.

No other file knows matplotlib. A page says what is drawn (`Line`, `Dots`, `Bar`, ...) and on which axes; here it is
decided where ticks and the legend are, so that no label is cut and none lies on another.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import io
import re
from typing import NamedTuple
import warnings

import matplotlib
from matplotlib import axes, axis, figure
import numpy as np

from llm_jax.report.text import visible
from llm_jax.report.ticks import Format, place_ticks, spread_apart, tick_labels

# Matplotlib wants fixed colours, the page has a light and a dark scheme: these stand in for variables of the
# stylesheet and are replaced by them in the finished SVG.
_CSS = {
    f'#0102{3 + i:02d}': f'var(--{name})'
    for i, name in enumerate(('muted', 'line', 'main', 'second', 'third', 'fourth', 'fifth', 'sixth', 'ink'))
}
INK, _GRID, MAIN, SECOND, THIRD, FOURTH, FIFTH, SIXTH, STRONG = _CSS
SERIES = (MAIN, SECOND, THIRD, FOURTH, FIFTH, SIXTH, STRONG)  # of lines that have nothing but their names
DASHES = {'solid': '-', 'dashed': (0, (4, 3)), 'dotted': (0, (1.2, 1.8))}

# Units of the drawing: 72 to an inch, which is about one pixel where a phone shows it, and at most 1.6 elsewhere.
FONT = 9.0
WIDTH, SMALL_WIDTH = 331, 245
ENLARGED = 1.6
_LETTER = 0.62  # width of a letter over the size of the font, rather more than less
_LONGEST, _LONGEST_TICK = 34, 22  # letters of a label in the legend, at a tick
_GAP = 4  # between a bar and its value
_MAX_POINTS = 800  # more cannot be seen, and make the page heavy
_STYLE = {
    'svg.fonttype': 'none',
    'text.parse_math': False,  # labels are names of users: '$' means nothing
    'font.size': FONT,
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
    'lines.solid_joinstyle': 'round',
    'lines.solid_capstyle': 'round',
}


class Chart(NamedTuple):
    title: str
    note: str
    svg: str  # safe to put into a page: text in it is escaped


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis of a chart.

    Attributes:
      label: under it; the vertical axis has none, its unit stands in the note.
      log: a logarithmic scale.
      limits: the first and the last value shown; None takes what the marks need.
      ticks: value -> label; None chooses round values.
      format: labels of round values; None writes them as short as they are distinct.
      reverse: grows downwards, as lists do.
      grid: lines at the ticks.
      whole: ticks are whole numbers.
    """

    label: str = ''
    log: bool = False
    limits: tuple[float, float] | None = None
    ticks: Mapping[float, str] | None = None
    format: Format | None = None
    reverse: bool = False
    grid: bool = True
    whole: bool = False


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve; a value that is not finite leaves a gap."""

    x: Sequence[float]
    y: Sequence[float]
    color: str = MAIN
    label: str = ''
    dash: str = 'solid'
    alpha: float = 1.0
    width: float = 1.6
    dots: bool = False

    def paint(self, ax: axes.Axes) -> None:
        x, y = np.asarray(self.x, float), np.asarray(self.y, float)
        y = np.where(np.isfinite(y), y, np.nan)
        if len(x) > _MAX_POINTS:  # each point is the mean of its neighbourhood
            parts = np.array_split(np.arange(len(x)), _MAX_POINTS)
            x, y = (np.array([values[part].mean() for part in parts]) for values in (x, y))
        marker = 'o' if self.dots or len(x) == 1 else None
        ax.plot(
            x,
            y,
            color=self.color,
            label=self.label or None,
            linestyle=DASHES[self.dash],
            alpha=self.alpha,
            linewidth=self.width,
            marker=marker,
            markersize=3.5,
            markeredgewidth=0,
        )


@dataclasses.dataclass(frozen=True)
class Dots:
    """Separate points, filled or as rings; `error` is a length to the left and the right of each."""

    x: Sequence[float]
    y: Sequence[float]
    color: str = MAIN
    label: str = ''
    filled: bool = True
    size: float = 5.0
    shape: str = 'o'
    error: Sequence[float] | None = None

    def paint(self, ax: axes.Axes) -> None:
        face = self.color if self.filled else 'none'
        ax.plot(
            self.x,
            self.y,
            self.shape,
            color=self.color,
            markerfacecolor=face,
            markersize=self.size,
            markeredgewidth=1.2,
            label=self.label or None,
            zorder=3,
        )
        if self.error is not None:
            ax.errorbar(self.x, self.y, xerr=self.error, fmt='none', ecolor=self.color, elinewidth=1.4, capsize=3)


@dataclasses.dataclass(frozen=True)
class Bar:
    """A horizontal bar in row `y`, from `start` over `length`."""

    y: float
    start: float
    length: float
    color: str = MAIN
    alpha: float = 1.0

    def paint(self, ax: axes.Axes) -> None:
        ax.barh(self.y, self.length, left=self.start, height=0.62, color=self.color, alpha=self.alpha, linewidth=0)


@dataclasses.dataclass(frozen=True)
class Steps:
    """A histogram as stairs: `values` [n] between `edges` [n + 1]."""

    values: Sequence[float]
    edges: Sequence[float]
    color: str = MAIN
    label: str = ''
    dash: str = 'solid'
    filled: bool = False

    def paint(self, ax: axes.Axes) -> None:
        if self.filled:
            ax.stairs(self.values, self.edges, color=self.color, fill=True, alpha=0.28)
        ax.stairs(
            self.values,
            self.edges,
            color=self.color,
            label=self.label or None,
            linewidth=1.3,
            linestyle=DASHES[self.dash],
        )


@dataclasses.dataclass(frozen=True)
class Band:
    """The area between two curves."""

    x: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    label: str = ''

    def paint(self, ax: axes.Axes) -> None:
        ax.fill_between(self.x, self.low, self.high, color=INK, alpha=0.14, linewidth=0, label=self.label or None)


@dataclasses.dataclass(frozen=True)
class Rule:
    """A line across the whole chart, at a value of x, or of y if `horizontal`."""

    at: float
    label: str = ''
    horizontal: bool = False
    dash: str = 'dashed'

    def paint(self, ax: axes.Axes) -> None:
        line = ax.axhline if self.horizontal else ax.axvline
        line(self.at, color=INK, linewidth=1.2, linestyle=DASHES[self.dash], label=self.label or None)


@dataclasses.dataclass(frozen=True)
class Value:
    """A short text right of the end of a bar; the horizontal axis is made long enough for it."""

    x: float
    y: float
    text: str

    def paint(self, ax: axes.Axes) -> None:
        ax.annotate(
            self.text, (self.x, self.y), xytext=(_GAP, 0), textcoords='offset points', va='center', color=STRONG
        )


Mark = Line | Dots | Bar | Steps | Band | Rule | Value


def draw(
    title: str,
    note: str,
    marks: Sequence[Mark],
    *,
    x: Axis = Axis(),
    y: Axis = Axis(),
    height: float = 195,
    small: bool = False,
) -> Chart:
    """A chart of marks.

    Args:
      title: of the chart; different for each chart of a page.
      note: a sentence under the title: units, and how to read it.
      marks: painted in this order; those with a label are in the legend.
      x: the horizontal axis.
      y: the vertical axis.
      height: in units of the drawing.
      small: narrower, for many charts beside each other.
    """
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # The font here only measures: the page is shown in a font of the reader's, which may have the letter.
        warnings.filterwarnings('ignore', 'Glyph .* missing from')
        size = ((SMALL_WIDTH if small else WIDTH) / 72, height / 72)
        fig = figure.Figure(figsize=size, layout='constrained')  # not pyplot, which keeps global state
        ax = fig.subplots()
        ax.tick_params(length=0)
        ax.set_xlabel(x.label)
        for description, scale, limit, one in (
            (x, ax.set_xscale, ax.set_xlim, ax.xaxis),
            (y, ax.set_yscale, ax.set_ylim, ax.yaxis),
        ):
            if description.log:
                scale('log')
            if description.limits:
                limit(*description.limits)
            one.grid(description.grid)
            ax.minorticks_off()
        for mark in marks:
            mark.paint(ax)
        _make_room(ax, [mark for mark in marks if isinstance(mark, Value)], y)
        if y.reverse and not ax.yaxis_inverted():
            ax.invert_yaxis()
        for description, one in ((x, ax.xaxis), (y, ax.yaxis)):
            _set_ticks(one, description)
        _legend(ax)
        _drop_overlapping(fig, ax)
        return Chart(title, note, _svg(fig, title))


def text_width(text: str) -> float:
    """Units of the drawing that a text takes, by the number of its letters."""
    return _LETTER * FONT * len(text)


def shorten(text: str, most: int = _LONGEST) -> str:
    """A label of at most so many letters, its middle left out."""
    text = visible(' '.join(text.split()))
    return text if len(text) <= most else f'{text[: most // 2]}…{text[len(text) - (most - most // 2 - 1) :]}'


def _make_room(ax: axes.Axes, values: Sequence[Value], y: Axis) -> None:
    """Moves the right end of the horizontal axis to where all texts end."""
    names = max((text_width(shorten(label, _LONGEST_TICK)) for label in (y.ticks or {}).values()), default=0.0)
    width = 72 * ax.figure.get_figwidth() - names - 3 * FONT
    low, high = ax.get_xlim()
    for value in values:
        high = max(high, low + (value.x - low) * width / (width - text_width(value.text) - _GAP))
    ax.set_xlim(low, high)


def _set_ticks(one: axis.Axis, description: Axis) -> None:
    interval = one.get_view_interval()
    if description.whole and abs(interval[1] - interval[0]) < 2:  # one value: so that others are beside it
        interval = interval.mean() + np.array([-1.5, 1.5])
    if description.ticks is not None:
        ticks = {value: shorten(label, _LONGEST_TICK) for value, label in description.ticks.items()}
    else:
        values = place_ticks(*sorted(interval), log=description.log, whole=description.whole)
        make = description.format or functools.partial(tick_labels, even=not description.log)
        ticks = dict(zip(values, make(values), strict=True))
    one.set_ticks(list(ticks), list(ticks.values()))
    one.set_view_interval(*interval, ignore=True)  # a tick past the end would move it


def _legend(ax: axes.Axes) -> None:
    """Above the chart, where no curve is, in as many columns as there is room for."""
    handles, labels = ax.get_legend_handles_labels()
    if not labels:
        return
    labels = [shorten(label) for label in labels]
    entry = max(map(text_width, labels)) + 3 * FONT
    columns = max(1, min(len(labels), int((ax.figure.get_figwidth() * 72 - 4 * FONT) // entry)))
    ax.legend(
        handles,
        labels,
        loc='lower left',
        bbox_to_anchor=(-0.02, 1.0),
        ncols=columns,
        borderaxespad=0.1,
        handlelength=1.5,
        handletextpad=0.6,
        columnspacing=1.2,
        labelspacing=0.3,
    )


def _drop_overlapping(fig: figure.Figure, ax: axes.Axes) -> None:
    """Takes the labels of ticks away that would touch their neighbours; the ticks stay."""
    fig.draw_without_rendering()
    box = ax.get_window_extent().transformed(fig.dpi_scale_trans.inverted())
    for one, length, extent in (
        (ax.xaxis, 72 * box.width, text_width),
        (ax.yaxis, 72 * box.height, lambda label: FONT),
    ):
        labels = [label.get_text() for label in one.get_ticklabels()]
        low, high = one.get_transform().transform(one.get_view_interval())
        at = (one.get_transform().transform(one.get_ticklocs()) - low) / (high - low) * length
        kept = spread_apart(list(at), [extent(label) for label in labels], gap=0.45 * FONT)
        one.set_ticks(one.get_ticklocs(), [label if keep else '' for label, keep in zip(labels, kept, strict=True)])


def _svg(fig: figure.Figure, name: str) -> str:
    """The figure as one <svg> element in the page's colours and fonts, at any width up to that of readable letters."""
    out = io.StringIO()
    # The salt keeps the ids of several charts in one page apart.
    with matplotlib.rc_context({'svg.hashsalt': name}):
        fig.savefig(out, format='svg', transparent=True, metadata={'Date': None})
    text = out.getvalue()
    text = text[text.index('<svg') :]
    text = re.sub(r'<metadata>.*?</metadata>', '', text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"|\s(width|height)="[\d.]+pt"', '', text)
    text = re.sub(r'\sid="[\w.]+_\d+"', '', text)  # group names, which repeat from chart to chart
    text = re.sub(r'font: ([\d.]+)px [^;"]*', r'font-size: \1px', text)  # as older releases write it
    text = re.sub(r' font-family: [^;"]*;', '', text)
    for placeholder, css in _CSS.items():
        text = text.replace(placeholder, css)
    largest = round(ENLARGED * 72 * fig.get_figwidth())
    return text.replace('<svg', f'<svg style="max-width: {largest}px"', 1)
