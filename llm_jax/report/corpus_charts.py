"""Charts of a corpus: lengths of documents, and the scores of those kept and dropped."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from llm_jax.metrics import format as fmt
from llm_jax.report import charts
from llm_jax.report.charts import DASHES, MAIN, SECOND, SERIES, Axis, Chart, Steps

_BINS = 30
_MOST_SIGNALS = 24
KEPT, DROPPED = 'kept', 'dropped'
Points = Mapping[str, Sequence[Mapping[str, Any]]]  # outcome -> points


def draw_all(tallies: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Chart]]:
    """'lengths': of documents; 'scores': of what stages measured, small.

    Args:
      tallies: source -> its tally.
    """
    points = {
        outcome: _without_ranks(tally['points'].get(outcome, []) for tally in tallies.values())
        for outcome in (KEPT, DROPPED)
    }
    lengths = [_lengths(tallies), _kept_and_dropped('Bytes of text', 'bytes', points, log=True)]
    names = sorted({name for some in points.values() for point in some for name in point['signals']})
    values_of = lambda name: {
        k: [{'v': p['signals'][name]} for p in some if name in p['signals']] for k, some in points.items()
    }
    measured = [(name, values_of(name)) for name in names if not name.startswith('scrub.')]
    many = sorted(measured, key=lambda item: -sum(map(len, item[1].values())))[:_MOST_SIGNALS]
    scores = [_kept_and_dropped(name, 'v', some, log=False) for name, some in sorted(many)]
    return {'lengths': [c for c in lengths if c], 'scores': [c for c in scores if c]}


def _without_ranks(lists: Iterable[Sequence[tuple[Any, dict[str, Any]]]]) -> list[dict[str, Any]]:
    return [point for some in lists for _, point in some]


def _sizes(values: Sequence[float]) -> list[str]:
    """Labels of bytes: 500 B, 1 kB, 1.5 MB."""
    parts = [fmt.size(value).split(' ') for value in values]
    return [f'{number.rstrip("0").rstrip(".") if "." in number else number} {unit}' for number, unit in parts]


def _percents(values: Sequence[float]) -> list[str]:
    return [f'{100 * value:.6g} %' for value in values]


def _lengths(tallies: Mapping[str, Mapping[str, Any]]) -> Chart | None:
    """Lengths of documents, by source."""
    counted = {source: tally['lengths'] for source, tally in tallies.items() if tally['lengths']}
    if not counted:
        return None
    places = [int(place) for lengths in counted.values() for place in lengths]
    low, high = min(places), max(places)
    marks = []
    for i, (source, lengths) in enumerate(sorted(counted.items())):
        values = np.array([lengths.get(str(place), 0) for place in range(low, high + 1)], float)
        dash = list(DASHES)[i // len(SERIES) % len(DASHES)]
        marks.append(
            Steps(values / values.sum(), 2.0 ** np.arange(low, high + 2), SERIES[i % len(SERIES)], source, dash)
        )
    note = 'Kept documents of each source, bytes of text.'
    return charts.draw('Length of documents', note, marks, x=Axis(log=True, format=_sizes), y=Axis(format=_percents))


def _kept_and_dropped(title: str, field: str, points: Points, *, log: bool) -> Chart | None:
    """Two histograms, each of its own total."""
    values = {name: np.array([point[field] for point in some], float) for name, some in points.items()}
    values = {name: some[np.isfinite(some)] for name, some in values.items()}
    everything = np.concatenate(list(values.values()))
    if len(everything) < 2 or everything.min() == everything.max():
        return None
    if log:
        edges = np.geomspace(max(everything.min(), 1), max(everything.max(), 2), _BINS + 1)
    else:
        low, high = np.percentile(everything, (0.5, 99.5))  # one outlier would squeeze all others into a bar
        if low == high:
            return None
        edges = np.linspace(low, high, _BINS + 1)
    marks = []
    for name, color in ((KEPT, MAIN), (DROPPED, SECOND)):
        if len(values[name]):
            counts, _ = np.histogram(np.clip(values[name], edges[0], edges[-1]), edges)
            marks.append(Steps(counts / len(values[name]), edges, color, name, filled=True))
    sizes = ', '.join(f'{len(some):,} {name}' for name, some in values.items())
    x = Axis(log=True, format=_sizes) if log else Axis()
    return charts.draw(
        title, f'Of a sample: {sizes}.', marks, x=x, y=Axis(format=_percents), height=195 if log else 137, small=not log
    )
