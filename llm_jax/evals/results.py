"""Files of a task: items as they are scored, so that a killed evaluation resumes, and its results."""

from collections.abc import Mapping, Sequence
import gzip
import json
import math
import pathlib
from typing import Any

from llm_jax.checkpoint import write_atomically
from llm_jax.evals import metrics
from llm_jax.evals.answers import samples

Row = dict[str, Any]


class Journal:
    """Items of a task on disk: `items.jsonl.part` while it runs, `items.jsonl.gz` and `results.json` when it is done.

    Attributes:
      rows: items so far, those of an earlier run with the same settings included.
      results: of an earlier run with the same settings that came to its end; None without one.
    """

    def __init__(self, folder: pathlib.Path, settings: Mapping[str, Any]) -> None:
        """Args:
        folder: of the task.
        settings: all that the scores depend on; items of others are dropped.
        """
        self._folder, self._part = folder, folder / 'items.jsonl.part'
        self.settings = json.loads(json.dumps(settings))
        self.rows: list[Row] = []
        self.results = self._read_results()
        if self.results is None:
            self._resume()

    def append(self, rows: Sequence[Row]) -> None:
        """Adds items, and writes them."""
        with open(self._part, 'a') as file:
            file.writelines(json.dumps(row) + '\n' for row in rows)
        self.rows += rows

    def finish(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the items as a whole and the results, and returns these."""
        lines = ''.join(json.dumps(row) + '\n' for row in self.rows)
        whole = self._folder / 'items.jsonl.gz.part'
        whole.write_bytes(gzip.compress(lines.encode(), mtime=0))
        whole.rename(self._folder / 'items.jsonl.gz')
        return self.write_results(results)

    def write_results(self, results: Mapping[str, Any]) -> dict[str, Any]:
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._folder / 'results.json', json.dumps(self.settings | results, indent=1) + '\n')
        self._part.unlink(missing_ok=True)
        return json.loads((self._folder / 'results.json').read_text())

    def _read_results(self) -> dict[str, Any] | None:
        file = self._folder / 'results.json'
        if not file.exists():
            return None
        old = json.loads(file.read_text())
        return old if all(old.get(key) == value for key, value in self.settings.items()) else None

    def _resume(self) -> None:
        """Reads the items of a killed run with the same settings, up to a line that was not written whole."""
        self._folder.mkdir(parents=True, exist_ok=True)
        lines = self._part.read_text().split('\n')[:-1] if self._part.exists() else []
        if lines and _parse(lines[0]) == self.settings:
            self.rows = [json.loads(line) for line in lines[1:]]
        kept = [self.settings, *self.rows]
        write_atomically(self._part, ''.join(json.dumps(line) + '\n' for line in kept))


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def summarise(rows: Sequence[Row], *, chance: float | None, is_centred: bool) -> dict[str, dict[str, Any]]:
    """Metrics of a task from those of its items: value, standard error, 95 % interval.

    Args:
      rows: items.
      chance: score of a guess.
      is_centred: whether accuracies above chance are wanted, as of DCLM CORE: (acc - chance) / (1 - chance).
    """
    found = {key: summarise_metric([row['metrics'][key] for row in rows]) for key in rows[0]['metrics']}
    if 'log_likelihood' in found:
        found['perplexity'] = metrics.perplexity([row['metrics']['log_likelihood'] for row in rows])
    if is_centred and chance is not None:
        found['centred'] = metrics.rescale(found['acc'], chance)
    return found


def summarise_metric(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard error, and Wilson's interval of a share, else mean -+ 1.96 standard errors."""
    value, stderr = metrics.mean(values), metrics.standard_error(values)
    entry: dict[str, Any] = {'value': value, 'stderr': stderr}
    if all(one in (0, 1) for one in values):
        entry['interval'] = metrics.wilson_interval(values)
    elif stderr is not None:
        entry['interval'] = (value - metrics.Z * stderr, value + metrics.Z * stderr)
    return entry


def sample_metrics(graded: Sequence[Mapping[str, Any]], passing: str, *, votes: bool) -> dict[str, float]:
    """Metrics of an item from those of its samples: the means, pass@k for k = 1, 2, 4, ... and all, maj@k likewise.

    Args:
      graded: {'metrics', 'answer'} of each sample.
      passing: the metric that says whether a sample is right.
      votes: whether samples have answers to vote with.
    """
    found = {key: metrics.mean([one['metrics'][key] for one in graded]) for key in graded[0]['metrics']}
    n, right = len(graded), sum(one['metrics'][passing] >= 1 for one in graded)
    if n == 1:
        return found
    sizes = [*(1 << i for i in range(n.bit_length()) if 1 << i < n), n]
    found |= {f'pass@{k}': samples.pass_at_k(n, right, k) for k in sizes}
    if votes:
        is_right = {one['answer']: one['metrics'][passing] >= 1 for one in graded}
        answers = [one['answer'] for one in graded]
        found |= {f'maj@{k}': samples.majority_at_k(answers, is_right.__getitem__, k) for k in sizes}
    return found


def combine(results: Mapping[str, Mapping[str, Any]], metric: str, *, by_item: bool) -> dict[str, Any]:
    """The mean of a metric over tasks, and the standard error of this mean.

    Args:
      results: of each task.
      metric: its name.
      by_item: True weights tasks by their items, False all alike.
    """
    entries = [one['metrics'][metric] for one in results.values()]
    sizes = [one['n'] if by_item else 1 for one in results.values()]
    weights = [size / sum(sizes) for size in sizes]
    value = sum(weight * entry['value'] for weight, entry in zip(weights, entries, strict=True))
    if any(entry['stderr'] is None for entry in entries):
        return {'value': value, 'stderr': None}
    stderr = math.sqrt(sum((weight * entry['stderr']) ** 2 for weight, entry in zip(weights, entries, strict=True)))
    return {'value': value, 'stderr': stderr, 'interval': (value - metrics.Z * stderr, value + metrics.Z * stderr)}
