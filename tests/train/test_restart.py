"""Running a command again: real commands."""

import sys

from llm_jax.train.restart import supervise

# Counts its starts in a file and ends as the next of its arguments says.
CHILD = """
import os, pathlib, sys
file, *codes = sys.argv[1:]
path = pathlib.Path(file)
n = len(path.read_text()) if path.exists() else 0
path.write_text('x' * (n + 1))
code = int(codes[n])
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


def run(path, *codes, restarts, monkeypatch):
    monkeypatch.setattr('llm_jax.train.restart._PAUSE', 0.0)
    code = supervise([sys.executable, '-c', CHILD, str(path), *map(str, codes)], restarts)
    return code, len(path.read_text())


def test_crashes_kills_and_stops_are_started_again(tmp_path, monkeypatch):
    assert run(tmp_path / 'n', 1, -9, 75, 0, restarts=3, monkeypatch=monkeypatch) == (0, 4)


def test_a_mistake_is_not(tmp_path, monkeypatch):
    assert run(tmp_path / 'n', 2, restarts=3, monkeypatch=monkeypatch) == (2, 1)


def test_restarts_are_counted(tmp_path, monkeypatch):
    assert run(tmp_path / 'n', 1, 1, 1, 1, restarts=2, monkeypatch=monkeypatch) == (1, 3)
