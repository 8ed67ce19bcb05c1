"""Two models on the same items: paired differences, which see what two separate intervals hide."""

from collections.abc import Mapping, Sequence
import dataclasses
import gzip
import json
import pathlib
from typing import Any

import numpy as np

from llm_jax.config.schema import ConfigError
from llm_jax.evals import metrics

_DRAWS, _SEED = 2000, 0
# What may differ between two runs of a task whose items are the same.
_SAME = ('form', 'shots', 'limit', 'data_sha256', 'seeds')


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference of two means over the same n items, b - a.

    Attributes:
      value: of it.
      stderr: of it, from the differences of items; None of one item.
      interval: of 95 %, by 2000 paired bootstrap draws of items.
      n: items.
      wins, losses: items on which b is better, and worse.
    """

    value: float
    stderr: float | None
    interval: tuple[float, float]
    n: int
    wins: int
    losses: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return not self.interval[0] <= 0 <= self.interval[1]


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Difference:
    """The difference of the means of two models' metrics of the same items, in the same order.

    Raises:
      ValueError: the numbers of items differ.
    """
    differences = np.array(b, np.float64) - np.array(a, np.float64)
    n = len(differences)
    rng = np.random.default_rng(_SEED)
    means = np.array([differences[rng.integers(0, n, n)].mean() for _ in range(_DRAWS)])
    low, high = np.quantile(means, [0.025, 0.975])
    return Difference(
        float(differences.mean()), metrics.standard_error(differences.tolist()), (float(low), float(high)), n,
        int((differences > 0).sum()), int((differences < 0).sum()),
    )  # fmt: skip


def read_results(directory: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The results of each task under a run directory, or a directory that evaluate wrote (`--out`).

    Raises:
      ConfigError: there are none.
    """
    root = directory / 'evals' if (directory / 'evals').is_dir() else directory
    found = {file.parent.name: json.loads(file.read_text()) for file in sorted(root.glob('*/results.json'))}
    if not found:
        raise ConfigError(f'{directory} has no results of tasks; evaluate it first: evaluate {directory} --tasks ...')
    return found


def read_items(directory: pathlib.Path, task: str) -> list[dict[str, Any]]:
    """The items of a task; none of a group, which has only its tasks'."""
    root = directory / 'evals' if (directory / 'evals').is_dir() else directory
    file = root / task / 'items.jsonl.gz'
    return [json.loads(line) for line in gzip.open(file, 'rt')] if file.exists() else []


def compare_runs(
    directories: Sequence[pathlib.Path],
) -> dict[tuple[str, str], list[tuple[Mapping[str, Any], Difference | None]]]:
    """For each task and main metric that all have: the entry of each run, and its difference to the first run.

    Raises:
      ConfigError: a run without results, no task in common, or a task that was asked in another way.
    """
    results = [read_results(directory) for directory in directories]
    common = [name for name in results[0] if all(name in one for one in results)]
    if not common:
        names = '; '.join(f'{path}: {", ".join(one)}' for path, one in zip(directories, results, strict=True))
        raise ConfigError(f'the runs have no task in common ({names}); evaluate them with the same --tasks')
    out = {}
    for name in common:
        ours = [one[name] for one in results]
        for directory, other in zip(directories, ours, strict=True):
            for key in _SAME:
                if other.get(key) != ours[0].get(key):
                    raise ConfigError(
                        f'{name}: {directory} was asked with {key} = {other.get(key)!r}, {directories[0]} with '
                        f'{ours[0].get(key)!r}; evaluate both in the same way'
                    )
        items = [read_items(directory, name) for directory in directories]
        for metric in ours[0]['main']:
            if all(metric in one['metrics'] for one in ours):
                out[name, metric] = [
                    (one['metrics'][metric], _difference(items[0], its, metric) if i else None)
                    for i, (one, its) in enumerate(zip(ours, items, strict=True))
                ]
    return out


def _difference(
    first: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], metric: str
) -> Difference | None:
    """None where items have no such metric of their own, as perplexity."""
    if not first or any(metric not in row['metrics'] for row in (*first, *other)):
        return None
    return paired_difference([row['metrics'][metric] for row in first], [row['metrics'][metric] for row in other])
