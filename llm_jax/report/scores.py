"""Benchmarks on a run's page: scores with intervals beside chance and landmarks, the items that decide them, and texts.

They are read from what `evaluate` left under RUN/evals: NAME/results.json, and NAME/items.jsonl.gz.
"""

from collections.abc import Mapping, Sequence
import gzip
import json
from typing import Any, NamedTuple

from etils import epath

from llm_jax.report import charts
from llm_jax.report.charts import MAIN, SECOND, THIRD, Axis, Bar, Chart, Dots
from llm_jax.report.tables import Table

_ITEMS, _TEXTS, _LONGEST = 3, 3, 700  # of a task on the page, letters of a text


class Example(NamedTuple):
    """An item on the page.

    Attributes:
      label: which one, and how it went.
      prompt: its end, if it is long.
      answer: of the model.
      gold: the right one.
    """

    label: str
    prompt: str
    answer: str
    gold: str


class Examples(NamedTuple):
    """Items of a task: of choices, those that the model is surest of and most wrong about; of texts, some."""

    task: str
    note: str
    items: list[Example]


def read_scores(directory: epath.Path) -> list[dict[str, Any]]:
    """The results of each task, groups first; those that are parts of a group come last, with 'group'."""
    files = sorted((directory / 'evals').glob('*/results.json'), key=str)
    found = {file.parent.name: json.loads(file.read_text()) for file in files}
    groups = {name: one for name, one in found.items() if 'tasks' in one}
    part_of = {part: name for name, one in groups.items() for part in one['tasks']}
    alone = [one for name, one in found.items() if name not in groups and name not in part_of]
    parts = [one | {'group': part_of[name]} for name, one in found.items() if name in part_of]
    return [*groups.values(), *alone, *parts]


def tabulate(results: Sequence[Mapping[str, Any]]) -> Table | None:
    """Score, interval, chance, landmarks and conditions of each task."""
    rows = []
    for one in results:
        for metric in one['main']:
            entry = one['metrics'][metric]
            marks = ', '.join(f'{name} {value:g}' for name, value in one.get('anchors', {}).get(metric, {}).items())
            rows.append((
                one['task'], metric, marks, _conditions(one), f'{entry["value"]:.4g}', _interval(entry),
                '' if one.get('chance') is None or not _is_share(metric) else f'{one["chance"]:.3g}', f'{one["n"]:,}',
            ))  # fmt: skip
    header = ('task', 'metric', 'landmarks', 'asked', 'score', '95 %', 'chance', 'items')
    return Table('', header, rows, texts=4) if rows else None


def draw(results: Sequence[Mapping[str, Any]]) -> Chart | None:
    """Shares, a row each: the score in its interval, chance, landmarks. Parts of groups are left out."""
    rows = [
        (one, metric, one['metrics'][metric])
        for one in results
        if 'group' not in one
        for metric in one['main']
        if _is_share(metric)
    ]
    if not rows:
        return None
    places = [float(i) for i in range(len(rows))]
    marks: list[charts.Mark] = []
    for place, (_, _, entry) in zip(places, rows, strict=True):
        if 'interval' in entry:
            low, high = entry['interval']
            marks.append(Bar(place, low, high - low, alpha=0.3))
    marks.append(Dots([entry['value'] for _, _, entry in rows], places, MAIN, 'score, 95 % interval'))
    chance = [(one['chance'], place) for place, (one, _, _) in zip(places, rows, strict=True) if one.get('chance')]
    if chance:
        marks.append(Dots([x for x, _ in chance], [y for _, y in chance], SECOND, 'chance', shape='|', size=9))
    anchors = [
        (value, place)
        for place, (one, metric, _) in zip(places, rows, strict=True)
        for value in one.get('anchors', {}).get(metric, {}).values()
    ]
    if anchors:
        x, y = zip(*anchors, strict=True)
        marks.append(Dots(x, y, THIRD, 'landmarks, named in the table', filled=False, shape='D'))
    ticks = {place: f'{one["task"]} {metric}' for place, (one, metric, _) in zip(places, rows, strict=True)}
    return charts.draw(
        'Benchmarks', 'Shares; prompts of a landmark may differ.', marks, height=80 + 17 * len(rows),
        x=Axis(), y=Axis(ticks=ticks, reverse=True, limits=(-0.7, len(rows) - 0.3), grid=False),
    )  # fmt: skip


def pick_examples(directory: epath.Path, results: Sequence[Mapping[str, Any]]) -> list[Examples]:
    """Items of each task that are worth reading; none where their file is missing."""
    out = []
    for one in results:
        file = directory / 'evals' / one['task'] / 'items.jsonl.gz'
        if 'group' in one or not file.exists():
            continue
        rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).decode().splitlines()]
        if 'generations' in rows[0]:
            out.append(Examples(one['task'], 'what it wrote', _texts(rows, one['main'][0])))
        elif margins := _margins(rows):
            order = sorted(range(len(rows)), key=margins.__getitem__)
            hardest = [_choice(rows[i], f'hardest {rank + 1}', margins[i]) for rank, i in enumerate(order[:_ITEMS])]
            easiest = order[::-1][: min(_ITEMS, len(rows) - len(hardest))]
            chosen = hardest + [_choice(rows[i], f'easiest {k + 1}', margins[i]) for k, i in enumerate(easiest)]
            out.append(Examples(one['task'], 'by how much likelier the right choice is than the best other', chosen))
    return out


def _margins(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Log-likelihood of the right choice over that of the best other; of one request alone, its log-likelihood."""
    if isinstance(rows[0]['gold'], list):
        return []
    out = []
    for row in rows:
        values = [request['loglikelihood'] for request in row['requests']]
        others = [value for i, value in enumerate(values) if i != row['gold']]
        out.append(values[row['gold']] - max(others) if isinstance(row['gold'], int) else values[0])
    return out


def _choice(row: Mapping[str, Any], label: str, margin: float) -> Example:
    requests = row['requests']
    best = max(range(len(requests)), key=lambda i: requests[i]['loglikelihood'])
    shown = lambda i: requests[i]['continuation'] if _same_context(requests) else requests[i]['context'][-_LONGEST:]
    right = row['gold'] if isinstance(row['gold'], int) else 0
    context = requests[0]['context'] if _same_context(requests) else requests[0]['continuation']
    answer = shown(best) if isinstance(row['gold'], int) else ''
    return Example(f'{label}: item {row["id"]}, {margin:+.2f} nats', _end(context), answer, shown(right))


def _same_context(requests: Sequence[Mapping[str, Any]]) -> bool:
    return all(request['context'] == requests[0]['context'] for request in requests)


def _texts(rows: Sequence[Mapping[str, Any]], metric: str) -> list[Example]:
    """The first right ones and the first wrong ones, as many of each as there is room for."""
    right = [row for row in rows if row['metrics'][metric] > 0]
    wrong = [row for row in rows if row['metrics'][metric] == 0]
    chosen = [*right[:_TEXTS], *wrong[: max(_TEXTS, 2 * _TEXTS - len(right))]][: 2 * _TEXTS]
    return [
        Example(
            f'item {row["id"]}, {metric} {row["metrics"][metric]:.3g}', _end(row['prompt']),
            row['generations'][0][:_LONGEST], str(row['gold'])[:_LONGEST],
        )
        for row in sorted(chosen, key=lambda row: row['id'])
    ]  # fmt: skip


def _end(text: str) -> str:
    return text if len(text) <= _LONGEST else f'…{text[-_LONGEST:]}'


def _conditions(one: Mapping[str, Any]) -> str:
    """How a task was asked, where that is not plain."""
    if 'tasks' in one:
        missing = len(one.get('missing', []))
        return f'{len(one["tasks"])} tasks' + (f', {missing} missing' if missing else '')
    parts = [f'{one["shots"]} examples'] if one.get('shots') else []
    if one.get('samples', 1) > 1:
        parts.append(f'{one["samples"]} samples at {one["temperature"]:g}')
    if one.get('truncated'):
        parts.append(f'{one["truncated"]} cut')
    return ', '.join(parts)


def _interval(entry: Mapping[str, Any]) -> str:
    if 'interval' not in entry:
        return '' if entry.get('stderr') is None else f'± {1.96 * entry["stderr"]:.3g}'
    return ' to '.join(f'{bound:.3f}' for bound in entry['interval'])


def _is_share(metric: str) -> bool:
    return not metric.startswith(('perplexity', 'bits', 'log_likelihood'))
