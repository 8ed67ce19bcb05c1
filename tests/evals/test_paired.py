"""Paired differences of runs, against theory and a count by hand; what cannot be compared."""

import gzip
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from llm_jax.config.schema import ConfigError
from llm_jax.evals import compare


def write(directory: pathlib.Path, values: list[float], **settings) -> pathlib.Path:
    folder = directory / 'evals' / 'own'
    folder.mkdir(parents=True)
    rows = [json.dumps({'id': i, 'metrics': {'acc': value}}) for i, value in enumerate(values)]
    (folder / 'items.jsonl.gz').write_bytes(gzip.compress('\n'.join(rows).encode()))
    entry = {'acc': {'value': sum(values) / len(values), 'stderr': 0.1}}
    results = {'form': 'q', 'shots': 0, 'main': ['acc'], 'metrics': entry, 'n': len(values)}
    (folder / 'results.json').write_text(json.dumps(results | settings))
    return directory


def test_the_interval_of_a_paired_difference_is_that_of_theory():
    rng = np.random.default_rng(1)
    a = rng.integers(0, 2, 400).astype(float)
    b = np.where(rng.random(400) < 0.1, 1 - a, a)
    found = compare.paired_difference(a.tolist(), b.tolist())
    differences = b - a
    assert found.value == pytest.approx(differences.mean())
    assert found.stderr == pytest.approx(differences.std(ddof=1) / 20)
    for bound, sign in zip(found.interval, (-1, 1), strict=True):
        assert bound == pytest.approx(found.value + sign * 1.96 * found.stderr, abs=0.006)
    assert (found.wins, found.losses) == (int((differences == 1).sum()), int((differences == -1).sum()))


def test_a_difference_that_pairs_show_and_intervals_hide_is_clear():
    a = [1.0] * 50 + [0.0] * 50
    found = compare.paired_difference(a, [1.0] * 58 + [0.0] * 42)
    assert found.value == pytest.approx(0.08) and found.is_clear and (found.wins, found.losses) == (8, 0)
    assert not compare.paired_difference(a, a).is_clear


def test_runs_side_by_side_on_the_command_line(tmp_path):
    a = write(tmp_path / 'a', [0, 0, 1, 1])
    b = write(tmp_path / 'b', [1, 0, 1, 1])
    command = [sys.executable, 'tools/compare.py', str(a), str(b)]
    shown = subprocess.run(command, capture_output=True, text=True, env={'COLUMNS': '300', 'PYTHONPATH': '.'})
    assert shown.returncode == 0, shown.stderr
    assert '+0.2500' in shown.stdout and '1 : 0' in shown.stdout


def test_runs_that_were_asked_otherwise_are_not_compared(tmp_path):
    a, b = write(tmp_path / 'a', [0, 1]), write(tmp_path / 'b', [1, 1], shots=5)
    with pytest.raises(ConfigError, match='own: .*b was asked with shots = 5, .*a with 0; evaluate both'):
        compare.compare_runs([a, b])
    (tmp_path / 'c').mkdir()
    with pytest.raises(ConfigError, match='c has no results of tasks; evaluate it first'):
        compare.compare_runs([a, tmp_path / 'c'])
