"""The page of a plan: memory against the limit, the time of a step, and of a search all that was tried."""

from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

from etils import epath

from llm_jax.report import charts
from llm_jax.report.charts import INK, MAIN, SECOND, STRONG, THIRD, Axis, Bar, Chart, Dots, Line, Rule, Value
from llm_jax.report.page import Card, encode, render
from llm_jax.report.tables import Table

_GIB = 2**30


class Part(NamedTuple):
    """A part of a device's memory; `kept` between steps, or needed within one."""

    name: str
    bytes: float
    kept: bool


class Lane(NamedTuple):
    """A resource that is busy within a step: seconds from `start`, the first `exposed` of them hidden by nothing."""

    name: str
    start: float
    seconds: float
    exposed: float = 0.0
    transfer: bool = False


class Point(NamedTuple):
    """A configuration of a search; `role` is 'best', 'as it stands' or ''."""

    bytes: float
    seconds: float
    fits: bool
    source: str
    role: str = ''


class Fact(NamedTuple):
    name: str
    value: str
    source: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that the page shows.

    Attributes:
      name: of the experiment.
      machine: it is planned for.
      verdict: whether it fits, as the end of a sentence that begins with the name.
      cards: the numbers beside the headline.
      parts: of a device's memory at the peak of a step.
      limit: bytes of a device.
      source: of `parts`: 'compiled' or 'analytic'.
      lanes: what is busy within a step.
      seconds: of a step.
      bound: what bounds it.
      tried: configurations of a search, fastest first; may be empty.
      facts: (title, rows), each number with where it comes from.
      tables: wider ones.
      notes: for readers of the numbers.
      command: that makes the page again, as a shell takes it.
    """

    name: str
    machine: str
    verdict: str
    cards: list[Card]
    parts: list[Part]
    limit: float
    source: str
    lanes: list[Lane]
    seconds: float
    bound: str
    tried: list[Point]
    facts: list[tuple[str, list[Fact]]]
    tables: list[Table]
    notes: list[str]
    command: str

    @property
    def total(self) -> float:
        return sum(part.bytes for part in self.parts)

    @property
    def fits(self) -> bool:
        return self.total <= self.limit


def write(path: epath.PathLike, plan: Plan) -> None:
    """Writes the page, and makes its directory if needed."""
    drawn = [_memory(plan), _timeline(plan)] + ([_search(plan)] if plan.tried else [])
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(render('plan.html.jinja', plan=plan, share=plan.total / plan.limit, charts=drawn)))


def _memory(plan: Plan) -> Chart:
    """A waterfall: each part begins where the one before ended, up to the total."""
    parts = [part for part in plan.parts if part.bytes > 0.002 * plan.total]
    limit, total = plan.limit / _GIB, plan.total / _GIB
    marks, at, names = [], 0.0, {}
    for row, part in enumerate(parts):
        size = part.bytes / _GIB
        marks += [Bar(row, at, size, MAIN if part.kept else SECOND), Value(at + size, row, _gib(part.bytes))]
        names[float(row)] = part.name
        at += size
    marks += [Bar(len(parts), 0, total, INK, 0.6), Value(total, len(parts), _gib(plan.total))]
    names[float(len(parts))] = 'total'
    note = (
        f'GiB at the peak of a step ({plan.source}). Blue stays between steps, orange is needed within one; '
        f'the line is the limit, {_gib(plan.limit)}.'
    )
    return charts.draw(
        'Memory of one device',
        note,
        [*marks, Rule(limit, dash='solid')],
        height=45 + 21 * len(names),
        x=Axis('GiB', limits=(0, 1.04 * max(limit, total))),
        y=Axis(ticks=names, reverse=True, grid=False),
    )


def _gib(n_bytes: float) -> str:
    value = n_bytes / _GIB
    return f'{value:,.2f} GiB' if value < 10 else f'{value:,.1f} GiB'


def _timeline(plan: Plan) -> Chart:
    """Busy times of the resources within one step."""
    unit, scale = ('ms', 1e3) if plan.seconds < 1 else ('s', 1)
    marks, names = [], {}
    for row, lane in enumerate(plan.lanes):
        names[float(row)] = lane.name
        start, length, exposed = (scale * value for value in (lane.start, lane.seconds, lane.exposed))
        color = SECOND if lane.transfer else MAIN
        marks += [Bar(row, start, exposed, color), Bar(row, start + exposed, length - exposed, color, 0.4)]
        marks.append(Value(start + length, row, f'{length:,.1f} {unit}' if lane.seconds else 'idle'))
    end = max(plan.seconds, *(lane.start + lane.seconds for lane in plan.lanes)) * scale
    note = (
        f'{"Milliseconds" if unit == "ms" else "Seconds"} at the peak rates of the chip; the dashed line is the end, '
        f'{plan.seconds * scale:,.1f} {unit}. Operations follow each other, each bound by compute or HBM. '
        'Solid orange: collectives that nothing hides.'
    )
    return charts.draw(
        f'One step, bound by {plan.bound}',
        note,
        [*marks, Rule(plan.seconds * scale)],
        height=45 + 21 * len(names),
        x=Axis(unit, limits=(0, 1.04 * end)),
        y=Axis(ticks=names, reverse=True, grid=False),
    )


def stairs(points: Sequence[Point], limit: float) -> tuple[list[float], list[float]]:
    """The Pareto front as a line: the least time with so much memory, up to the limit.

    Memory grows and time falls along it, and no point of `points` lies to the left of it or below.

    Returns:
      bytes and seconds of its corners; empty without points.
    """
    x, y = [], []
    for point in sorted(points, key=lambda point: (point.bytes, point.seconds)):
        if not y or point.seconds < y[-1]:
            if y:  # along to the next that is faster, then down to it
                x.append(point.bytes)
                y.append(y[-1])
            x.append(point.bytes)
            y.append(point.seconds)
    return ([*x, max(limit, x[-1])], [*y, y[-1]]) if x else ([], [])


def _search(plan: Plan) -> Chart:
    """Every configuration by memory and time, and the front of those that no other beats in both."""
    # Estimates that are far too large or slow would squeeze the rest into a corner.
    some = [point for point in plan.tried if point.bytes < 1.5 * plan.limit]
    fastest = min((point.seconds for point in some), default=0.0)
    sure = lambda point: point.role or point.source == 'compiled'
    known = [point for point in plan.tried if sure(point) or (point in some and point.seconds < 2 * fastest)]
    x = lambda points: [point.bytes / _GIB for point in points]
    y = lambda points: [point.seconds for point in points]
    corners, times = stairs([point for point in known if point.fits], plan.limit)
    marks = [Rule(plan.limit / _GIB, 'limit', dash='solid')]
    if corners:
        marks.append(Line([corner / _GIB for corner in corners], times, THIRD, 'Pareto front', width=1.2))
    for source in dict.fromkeys(point.source for point in known):
        for fits, color in ((True, MAIN), (False, SECOND)):
            dots = [point for point in known if (point.source, point.fits) == (source, fits)]
            if dots:
                label = f'{"fits" if fits else "does not fit"}, {source}'
                marks.append(Dots(x(dots), y(dots), color, label, filled=source == 'compiled', size=5))
    for role, shape in (('best', '*'), ('as it stands', 'D'), ('best, as it stands', '*')):
        if named := [point for point in known if point.role == role]:
            marks.append(Dots(x(named), y(named), STRONG, role, shape=shape, size=9 if shape == '*' else 6))
    low, high = min(y(known), default=0.0), max(y(known), default=1.0)
    margin = 0.12 * (high - low) + 0.02 * high
    note = (
        f'Seconds of a step at the roofline by GiB of a device: {len(known)} of {len(plan.tried)} configurations, '
        'of estimates those below 1.5 times the limit and twice the shortest step. Down and to the left is better; '
        'nothing that fits is below the front.'
    )
    return charts.draw(
        'Search',
        note,
        marks,
        height=250,
        x=Axis('GiB a device', limits=(0, 1.04 * max([plan.limit / _GIB, *x(known)]))),
        y=Axis(limits=(low - margin, high + margin)),
    )
