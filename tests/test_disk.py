"""What a disk without room comes to."""

import errno
import json

from etils import epath
import pytest

from llm_jax import disk
from llm_jax.checkpoint import write_atomically


def test_a_write_that_failed_names_its_file_and_what_helps(tmp_path):
    with pytest.raises(OSError, match=r"No space left on device; make room, .* again: 'x'") as found, disk.naming('x'):
        raise OSError(errno.ENOSPC, 'No space left on device')
    assert found.value.errno == errno.ENOSPC and found.value.filename == 'x'
    # Of several around a write, the outermost knows best what helps.
    with (
        pytest.raises(OSError, match="exceeded; buy a disk: 'outer'$"),
        disk.naming('outer', 'buy a disk'),
        disk.naming('x'),
    ):
        raise OSError(errno.EDQUOT, 'Disk quota exceeded; try this')
    with pytest.raises(OSError, match="Input/output error: 'x'$"), disk.naming('x'):
        raise OSError(errno.EIO, 'Input/output error')


def test_other_errors_stay_as_they_are():
    with pytest.raises(FileNotFoundError, match="'mine'"), disk.naming('x'):
        raise FileNotFoundError(errno.ENOENT, 'No such file or directory', 'mine')
    with pytest.raises(OSError, match='^no number$'), disk.naming('x'):
        raise OSError('no number')


def test_the_reason_is_found_in_what_an_error_came_from():
    error = ExceptionGroup('several', [ValueError('other'), ValueError('deep down: Disk quota exceeded [28]')])
    try:
        raise RuntimeError('saving failed') from error
    except RuntimeError as wrapped:
        assert disk.reason(wrapped) == 'Disk quota exceeded'
    assert disk.reason(PermissionError(errno.EACCES, 'Permission denied', 'x')) == 'Permission denied'
    assert disk.reason(ValueError('No space is left for doubt')) is None and disk.reason(None) is None


def test_a_file_that_could_not_be_replaced_stays_whole(tmp_path, monkeypatch):
    file = epath.Path(tmp_path) / 'run.json'
    write_atomically(file, json.dumps({'status': 'running'}))

    def full(self, text):
        with open(self, 'w') as stream:
            stream.write(text[:3])
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(type(file), 'write_text', full)
    with pytest.raises(OSError, match='No space left on device; make room.*run.json'):
        write_atomically(file, 'new')
    assert [path.name for path in tmp_path.iterdir()] == ['run.json'] and json.loads(file.read_text())
