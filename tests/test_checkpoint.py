"""Which checkpoints are kept, and what a full disk or a bad one comes to."""

import errno
import math
import subprocess
import sys

import numpy as np
from orbax.checkpoint._src.path import temporary_paths
import pytest

from llm_jax.checkpoint import Checkpoints, _disk_errors
from llm_jax.config import schema
from llm_jax.config.schema import ConfigError


def save(checkpoints, *steps):
    for step in steps:
        checkpoints.save(step, {'params': {'w': np.full(2, step, np.float32)}}, {'step': step})
    checkpoints.wait()


def test_resumes_keep_no_more_than_one_start_does(tmp_path):
    for first in (1, 4, 7):
        checkpoints = Checkpoints(tmp_path, schema.Checkpoint(keep=2))
        save(checkpoints, first, first + 1, first + 2)
        assert checkpoints.steps() == [first + 1, first + 2]
        checkpoints.close()


def test_until_the_newest_is_confirmed_there_is_another(tmp_path):
    checkpoints = Checkpoints(tmp_path, schema.Checkpoint(keep=1, keep_best=False))
    save(checkpoints, 1, 2, 3)
    assert checkpoints.steps() == [2, 3]
    checkpoints.confirm(3)
    assert checkpoints.steps() == [3]
    checkpoints.close()


def test_what_is_not_finite_is_never_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, schema.Checkpoint(keep=1))
    for step, loss in ((1, math.nan), (2, 3.0), (3, math.nan), (4, math.inf), (5, 4.0)):
        save(checkpoints, step)
        checkpoints.record_evaluation(step, {'val/loss': loss})
    assert checkpoints.steps() == [2, 5]
    checkpoints.close()


def test_a_bad_checkpoint_is_moved_and_the_one_before_is_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path, schema.Checkpoint())
    save(checkpoints, 1, 2)
    aside = checkpoints.set_aside(2)
    assert (aside / 'params').exists() and checkpoints.latest_step == 1
    assert checkpoints.set_aside(2) is None
    save(checkpoints, 2)  # a later start gets there again
    assert checkpoints.steps() == [1, 2]
    assert checkpoints.set_aside(2) == aside
    checkpoints.close()


def test_a_directory_without_checkpoints_goes(tmp_path):
    Checkpoints(tmp_path, schema.Checkpoint()).close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('grouped', [False, True])
def test_a_full_disk_is_told_with_its_reason_and_place(tmp_path, grouped):
    quoted = ValueError('NOT_FOUND: ' + 'a long way down ' * 40 + '[source locations] No space left on device')
    error = ExceptionGroup('several', [ValueError('other'), quoted]) if grouped else quoted
    match = f'written to {tmp_path}: No space left on device. .*make room'
    with pytest.raises(ConfigError, match=match), _disk_errors(tmp_path):
        raise RuntimeError('saving failed') from error
    with pytest.raises(ConfigError, match='Permission denied'), _disk_errors(tmp_path):
        raise PermissionError(errno.EACCES, 'Permission denied', 'x')
    with pytest.raises(RuntimeError), _disk_errors(tmp_path):
        raise RuntimeError('something else')


def test_a_new_directory_can_go_at_once_and_an_old_one_is_cleaned(tmp_path, monkeypatch):
    """Orbax looks for half-written checkpoints in a thread that would still read a directory that has gone."""
    looked = []
    theirs = temporary_paths.cleanup_temporary_paths
    monkeypatch.setattr(
        temporary_paths, 'cleanup_temporary_paths', lambda path, **kw: (looked.append(path), theirs(path, **kw))[1]
    )
    Checkpoints(tmp_path / 'new', schema.Checkpoint()).close()
    assert not looked and not (tmp_path / 'new' / 'checkpoints').exists()
    (tmp_path / 'old' / 'checkpoints' / '3.partial').mkdir(parents=True)
    checkpoints = Checkpoints(tmp_path / 'old', schema.Checkpoint())
    save(checkpoints, 4)
    checkpoints.close()
    assert len(looked) == 1


_FULL = """
import os, sys
import jax.numpy as jnp
from llm_jax.checkpoint import Checkpoints
from llm_jax.config import cli, schema

def main(argv):
    checkpoints = Checkpoints(argv[0], schema.Checkpoint())
    tree = {str(i): jnp.arange(4000.0) + i for i in range(40)}
    checkpoints.save(1, {'params': tree}, {})
    checkpoints.wait()
    # From here on a file of more than 4 kB is as on a disk without room.
    import resource, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
    checkpoints.save(2, {'params': tree}, {})
    checkpoints.close()

cli.run(main, sys.argv[1:])
"""


def test_a_save_that_fails_in_orbax_threads_has_no_traceback(tmp_path):
    done = subprocess.run([sys.executable, '-c', _FULL, tmp_path], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ''
    # Orbax may warn besides: of a wait, and of a write that it did not get to.
    assert 'Traceback' not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
    assert line.startswith(f'error: no checkpoint could be written to {tmp_path}/checkpoints: File too large. ')
    assert [path.name for path in (tmp_path / 'checkpoints').iterdir() if path.name.isdigit()] == ['1']
