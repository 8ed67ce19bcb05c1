"""One training at a time in a run directory."""

import pathlib
import subprocess
import sys
import threading
import time

from etils import epath
import pytest

from llm_jax.config.schema import ConfigError
from llm_jax.metrics import Console
from llm_jax.train import lock as lock_lib
from llm_jax.train.lock import FILE_NAME, RunLock

QUIET = Console(0, enabled=False)


@pytest.fixture
def run_dir(tmp_path):
    return epath.Path(tmp_path / 'run')


def foreign_marker(run_dir):
    """Leaves the lock of a process on another host."""
    with RunLock(run_dir, QUIET, lease_seconds=0.8):
        marker = (run_dir / FILE_NAME).read_text()
        (run_dir / 'config.json').write_text('{}')
    lines = [line for line in marker.splitlines() if not line.startswith('start=')]
    text = '\n'.join('host=elsewhere' if line.startswith('host=') else line for line in lines)
    (run_dir / FILE_NAME).write_text(text + '\n')


def test_the_second_is_refused_and_the_first_keeps_it(run_dir):
    with RunLock(run_dir, QUIET) as first:
        with pytest.raises(ConfigError, match=r'run is in use: process \d+ on .* is training there.*--workdir'):
            RunLock(run_dir, QUIET).__enter__()
        first.check()
        (run_dir / 'config.json').write_text('{}')
    assert not (run_dir / FILE_NAME).exists()
    with RunLock(run_dir, QUIET):
        pass


def test_a_directory_that_nothing_was_written_to_is_removed(run_dir):
    with RunLock(run_dir, QUIET):
        pass
    assert not run_dir.exists()


def test_the_lock_of_a_killed_process_is_taken_over_at_once(run_dir):
    code = (
        'import os, sys; from etils import epath; from llm_jax.metrics import Console;'
        'from llm_jax.train.lock import RunLock;'
        'lock = RunLock(epath.Path(sys.argv[1]), Console(0, enabled=False)); lock.__enter__(); os._exit(9)'
    )
    assert subprocess.run([sys.executable, '-c', code, str(run_dir)]).returncode == 9
    assert (run_dir / FILE_NAME).exists()
    began = time.monotonic()
    with RunLock(run_dir, QUIET) as mine:
        mine.check()
    assert time.monotonic() - began < 5


def test_the_lock_of_another_host_is_taken_over_once_it_is_not_renewed(run_dir, capsys):
    foreign_marker(run_dir)
    with RunLock(run_dir, Console(0), lease_seconds=0.8) as mine:
        mine.check()
    assert 'is marked as in use by process' in capsys.readouterr().out


def test_the_lock_of_another_host_that_is_renewed_is_respected(run_dir):
    foreign_marker(run_dir)
    over = threading.Event()

    def renew():
        while not over.wait(0.2):
            (run_dir / FILE_NAME).write_text((run_dir / FILE_NAME).read_text())

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(ConfigError, match='in use: process .* on elsewhere'):
            RunLock(run_dir, QUIET, lease_seconds=0.8).__enter__()
    finally:
        over.set()
        thread.join()


def test_a_holder_that_lost_its_lock_is_told_before_it_writes(run_dir):
    with RunLock(run_dir, QUIET) as mine:
        (run_dir / FILE_NAME).unlink()
        with pytest.raises(ConfigError, match='has been taken over by'):
            mine.check()


class _Object(type(epath.Path())):
    """A file that is written whole or not at all, as an object in a bucket is."""

    def write_text(self, text):
        partial = pathlib.Path(f'{self}.{threading.get_ident()}')
        partial.write_text(text)
        partial.replace(self)


def test_a_lease_in_a_bucket(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_lib, '_SETTLE_SECONDS', 0.01)
    file = _Object(tmp_path / FILE_NAME)
    one, two = (lock_lib._BucketLease(file, 1.5) for _ in range(2))
    assert one.try_acquire()
    for _ in range(9):  # longer than the lease, which its holder renews
        assert not two.try_acquire()
        time.sleep(0.2)
    assert not one.lost()
    one._over.set()  # as if killed
    before = time.monotonic()
    while not two.try_acquire():
        assert time.monotonic() - before < 5
        time.sleep(0.05)
    assert one.lost()
    one.release()
    assert not two.lost()
    two.release()
    assert not file.exists()
