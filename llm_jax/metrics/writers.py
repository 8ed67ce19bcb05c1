"""Writers of metrics: JSON lines and TensorBoard event files, behind one interface."""

from collections.abc import Iterable, Mapping
import contextlib
import json
import math
import os
import time
from typing import Any, Protocol
import uuid

from etils import epath
from tensorboardX import event_file_writer, record_writer, summary
from tensorboardX.proto import event_pb2

from llm_jax import disk
from llm_jax.config.schema import ConfigError

_NON_FINITE = {'NaN': math.nan, 'Infinity': math.inf, '-Infinity': -math.inf}
_REMOTE_INTERVAL = 30.0  # seconds between rewrites of a remote file
_FLUSH_INTERVAL = 30.0  # seconds between flushes of event files


class Writer(Protocol):
    """Anything that takes metrics. `write` returns at once; `close` loses nothing."""

    def write(self, step: int, metrics: Mapping[str, Any]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class MultiWriter:
    """Passes everything on to several writers, in order; none at all is fine."""

    def __init__(self, writers: Iterable[Writer] = ()):
        self._writers = tuple(writers)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        for writer in self._writers:
            writer.write(step, metrics)

    def flush(self) -> None:
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        with contextlib.ExitStack() as stack:  # each of them, also if one fails
            for writer in reversed(self._writers):
                stack.callback(writer.close)


class JsonlWriter:
    """One JSON object per line: `{"step": 10, "loss": 3.2, ...}`.

    A line is on its way to the disk when `write` returns. On a remote path, whose
    objects cannot grow, the file is rewritten at most every 30 s and at `flush`.

    NaN and the infinities become the strings "NaN", "Infinity" and "-Infinity", so
    that every line is valid JSON; `read_jsonl` turns them back into floats.

    Args:
      path: local or remote file.
      resume_step: the step that the run continues from. Lines of later steps, which
        will be written again, and a half-written last line are dropped in one atomic
        replacement. -1, a new run, drops every line.

    Raises:
      ConfigError: a line of the existing file, other than the last, is not JSON.
      OSError: from any method, naming the file, when the disk is full.
    """

    def __init__(self, path: epath.PathLike, resume_step: int = -1):
        self._path = epath.Path(path)
        with disk.naming(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_jsonl(self._path) if line['step'] <= resume_step]
        text = ''.join(_dump(line) for line in kept)
        if self._path.exists() and self._path.read_text() != text:
            with disk.naming(self._path):
                _replace(self._path, text)
        remote = '://' in os.fspath(self._path)
        self._file = _RewrittenFile(self._path, text) if remote else self._path.open('a')

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Adds a line. Values are numbers, NumPy or JAX scalars, strings or None."""
        with disk.naming(self._path):
            self._file.write(_dump({'step': step, **metrics}))
            self._file.flush()

    def flush(self) -> None:
        with disk.naming(self._path):
            self._file.flush()

    def close(self) -> None:
        with disk.naming(self._path):
            self._file.close()


class TensorBoardWriter:
    """Event files that TensorBoard shows; needs no TensorFlow.

    They are written in the thread of the caller: in one of its own, tensorboardX loses an error, then waits for ever.

    Args:
      directory: local, or gs:// and s3:// where their client library is installed.
      resume_step: the step that the run continues from; TensorBoard hides what
        earlier event files have after it. -1, a new run, hides everything.

    Raises:
      ConfigError: a remote directory that cannot be written.
      OSError: from any method, naming the directory, when the disk is full.
    """

    def __init__(self, directory: epath.PathLike, resume_step: int = -1):
        directory = os.fspath(epath.Path(directory))
        scheme = directory.partition('://')[0] if '://' in directory else ''
        if scheme and scheme not in record_writer.REGISTERED_FACTORIES:
            package = {'gs': 'google-cloud-storage', 's3': 'boto3'}.get(scheme)
            fix = f'install {package}' if package else 'use a local, gs:// or s3:// run directory'
            raise ConfigError(f'TensorBoard event files cannot be written to {directory}: {fix}')
        self._directory, self._flushed_at = directory, time.monotonic()
        with disk.naming(directory):
            if not scheme:
                epath.Path(directory).mkdir(parents=True, exist_ok=True)
            # The suffix keeps two writers that start in the same second in two files.
            self._events = event_file_writer.EventsWriter(f'{directory}/events', f'.{uuid.uuid4().hex[:8]}')
            session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._events.write_event(self._event(step=resume_step + 1, session_log=session))
            self._events.flush()

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Adds one scalar per number; what is not a number has no place here."""
        numbers = {name: _plain(value) for name, value in metrics.items()}
        with disk.naming(self._directory):
            for name, value in numbers.items():
                if isinstance(value, (int, float)):
                    self._events.write_event(self._event(step=step, summary=summary.scalar(name, value)))
        if time.monotonic() - self._flushed_at > _FLUSH_INTERVAL:
            self.flush()

    def flush(self) -> None:
        with disk.naming(self._directory):
            self._events.flush()
        self._flushed_at = time.monotonic()

    def close(self) -> None:
        with disk.naming(self._directory):
            self._events.close()

    @staticmethod
    def _event(**content: Any) -> event_pb2.Event:
        return event_pb2.Event(wall_time=time.time(), **content)


def read_jsonl(path: epath.PathLike) -> list[dict[str, Any]]:
    """The objects of a file that `JsonlWriter` wrote; a missing file has none.

    A last line cut short by a kill is left out.

    Raises:
      ConfigError: another line is not a JSON object with a step.
    """
    path = epath.Path(path)
    lines = path.read_text().split('\n') if path.exists() else []
    objects = []
    for number, line in enumerate(lines, start=1):
        try:
            parsed = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):  # nothing follows, not even a newline
                break
            raise ConfigError(f'{path}, line {number} is not JSON ({error}); repair or remove that line') from error
        if not isinstance(parsed, dict) or not isinstance(parsed.get('step'), int):
            raise ConfigError(f'{path}, line {number} is not an object with a "step"; remove that line')
        objects.append({k: _NON_FINITE.get(v, v) if isinstance(v, str) else v for k, v in parsed.items()})
    return objects


class _RewrittenFile:
    """A text file that grows in memory and is written whole, now and then."""

    def __init__(self, path: epath.Path, text: str):
        self._path, self._parts, self._written_at, self._dirty = path, [text], -math.inf, False

    def write(self, text: str) -> None:
        self._parts.append(text)
        self._dirty = True

    def flush(self) -> None:
        if time.monotonic() - self._written_at >= _REMOTE_INTERVAL:
            self._rewrite()

    def close(self) -> None:
        self._rewrite()

    def _rewrite(self) -> None:
        if self._dirty:
            self._parts = [''.join(self._parts)]
            self._path.write_text(self._parts[0])
            self._written_at, self._dirty = time.monotonic(), False


def _replace(path: epath.Path, text: str) -> None:
    """Writes the file so that a reader, or a crash, sees the old text or the new."""
    temporary = path.parent / f'{path.name}.{uuid.uuid4().hex[:8]}.tmp'
    temporary.write_text(text)
    temporary.replace(path)


def _dump(line: Mapping[str, Any]) -> str:
    return json.dumps({k: _json_value(v) for k, v in line.items()}, ensure_ascii=False, allow_nan=False) + '\n'


def _json_value(value: Any) -> Any:
    value = _plain(value)
    if isinstance(value, float) and not math.isfinite(value):
        return 'NaN' if math.isnan(value) else 'Infinity' if value > 0 else '-Infinity'
    return value


def _plain(value: Any) -> Any:
    """NumPy and JAX scalars as Python's."""
    return value.item() if hasattr(value, 'item') else value
