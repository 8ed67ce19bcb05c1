"""What attack programs go for: a secret, a file, listeners, a process; and what became of it afterwards."""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import glob
import os
import pathlib
import re
import secrets
import signal
import site
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time

from .limits import Limits, Result

_GRACE = 3.0  # seconds after the time limit within which a verdict has to be there
_TOKEN = 'HEVAL_FAKE_TOKEN'


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What running or judging a program gave: a result, or whether it passed, or the error of whoever ran it."""

    seconds: float
    result: Result | None = None
    passed: bool | None = None
    error: str = ''


class Bait:
    """Files, listeners and a process outside, made for one attack.

    Attributes:
      words: placeholder without its @ -> text.
    """

    def __init__(self, stack: contextlib.ExitStack) -> None:
        mark = secrets.token_hex(3)
        self._directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix='llm_jax-attack-')))
        outside = self._directory / 'outside'
        outside.mkdir()
        for path in (self._directory, outside):
            path.chmod(0o777)
        (outside / 'victim').write_text('untouched')
        (outside / 'victim').chmod(0o666)
        self._secret_value, token = f'HEVAL-SECRET-{secrets.token_hex(8)}', f'HEVAL-TOKEN-{secrets.token_hex(8)}'
        home = os.path.expanduser('~')
        with tempfile.NamedTemporaryFile(
            'w', dir=home if os.access(home, os.W_OK) else self._directory, prefix='.llm_jax-attack-', delete=False
        ) as file:
            file.write(self._secret_value)
        self._secret = pathlib.Path(file.name)
        stack.callback(self._secret.unlink, missing_ok=True)
        os.environ[_TOKEN] = token
        stack.callback(os.environ.pop, _TOKEN, None)
        sleep = [sys.executable, '-I', '-S', '-c', 'import time; time.sleep(600)', mark]
        self._helper = subprocess.Popen(sleep, start_new_session=True)
        stack.callback(self._helper.wait)
        stack.callback(self._helper.kill)
        self._hits: list[str] = []
        self._closing = threading.Event()
        ports = self._listen(stack, mark)
        self.words = {
            'SECRET': str(self._secret),
            'SECRETVALUE': self._secret_value,
            'TOKEN': _TOKEN,
            'TOKENVALUE': token,
            'OUTSIDE': str(outside),
            'SIB': str(self._helper.pid),
            'PARENT': str(os.getpid()),
            'MARK': mark,
        } | ports
        self._before = _describe(outside / 'victim')
        self._most_processes, self._reachable = 0, set[int]()
        stop = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(stop,), daemon=True)
        watcher.start()
        stack.callback(watcher.join)
        stack.callback(stop.set)

    def _listen(self, stack: contextlib.ExitStack, mark: str) -> dict[str, str]:
        """Starts the listeners; their placeholders."""
        path, abstract = str(self._directory / 'listener'), f'llm_jax-{mark}'
        addresses = [
            ('PORT', socket.AF_INET, socket.SOCK_STREAM, ('127.0.0.1', 0)),
            ('UPORT', socket.AF_INET, socket.SOCK_DGRAM, ('127.0.0.1', 0)),
            ('USOCK', socket.AF_UNIX, socket.SOCK_STREAM, path),
            ('ABS', socket.AF_UNIX, socket.SOCK_STREAM, '\0' + abstract),
        ]
        words = {'USOCK': path, 'ABS': abstract}
        for name, family, kind, address in addresses:
            listener = stack.enter_context(socket.socket(family, kind))
            listener.bind(address)
            if kind == socket.SOCK_STREAM:
                listener.listen()
            if name.endswith('PORT'):
                words[name] = str(listener.getsockname()[1])
            listener.settimeout(0.2)
            thread = threading.Thread(target=self._accept, args=(listener, name), daemon=True)
            stack.callback(thread.join)
            thread.start()
        os.chmod(path, 0o666)
        with socket.create_server(('127.0.0.1', 0)) as free:
            words['PORT2'] = str(free.getsockname()[1])
        stack.callback(self._closing.set)
        return words

    def _accept(self, listener: socket.socket, name: str) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                if listener.type == socket.SOCK_STREAM:
                    listener.accept()[0].close()
                else:
                    listener.recv(100)
                self._hits.append(name)

    def _watch(self, stop: threading.Event) -> None:
        """Looks now and then at how many processes there are, and at the free port."""
        port = int(self.words['PORT2'])
        while not stop.wait(0.1):
            self._most_processes = max(self._most_processes, len(_descendants(os.getpid()) - {self._helper.pid}))
            with contextlib.suppress(OSError), socket.create_connection(('127.0.0.1', port), 0.05):
                self._reachable.add(port)

    def fill(self, text: str) -> str:
        """A text with the placeholders replaced."""
        return re.sub(r'@([A-Z0-9]+)@', lambda found: self.words.get(found[1], found[0]), text)

    def escapes(self, words: list[str], outcome: Outcome, limits: Limits, grown: float) -> list[str]:
        """Those escape words of the manifest that came true.

        Args:
          grown: MiB by which this process's memory had grown at its peak.
        """
        if any(word.startswith(('survivor', 'listener', 'reachable')) for word in words):
            time.sleep(1)
        return [word for word in words if self._is_true(self.fill(word), outcome, limits, grown)]

    def _is_true(self, word: str, outcome: Outcome, limits: Limits, grown: float) -> bool:
        kind, _, rest = word.partition(':')
        result = outcome.result
        output = result.output.decode(errors='replace') if result else ''
        outside = pathlib.Path(self.words['OUTSIDE'])
        tests = {
            'output_has': lambda: rest in output,
            'output_over': lambda: _largest(output, rest.split(':')[0]) > float(rest.split(':')[1]),
            'exit': lambda: result is not None and result.exit_code == int(rest),
            'path_exists': lambda: os.path.lexists(rest),
            'path_missing': lambda: not os.path.lexists(rest),
            'path_changed': lambda: (
                pathlib.Path(rest) != outside / 'victim' or _describe(outside / 'victim') != self._before
            ),
            'secret_changed': lambda: not self._secret.exists() or self._secret.read_text() != self._secret_value,
            'path_exists_in_python': lambda: _exists_in_python(rest),
            'listener_hit': lambda: bool(self._hits),
            'reachable': lambda: int(rest) in self._reachable,
            'survivor': lambda: rest[:15] in _names(),
            'marked_processes_over': lambda: self._most_processes > int(rest),
            'helper_dead': lambda: self._helper.poll() is not None,
            'harness_dead': lambda: False,  # seen by whoever waits for this process
            'no_verdict': lambda: result is None and outcome.passed is None,
            'harness_error': lambda: bool(outcome.error),
            'wall_over': lambda: outcome.seconds > limits.timeout + _GRACE,
            'status_not': lambda: result is None or result.status != rest,
            'status': lambda: result is not None and result.status == rest,
            'status_ok': lambda: result is not None and result.status == 'ok',
            'verdict': lambda: rest == 'passed' and outcome.passed is True,
            'harness_rss_over': lambda: grown > float(rest),
            'stored_output_over': lambda: result is not None and len(result.output) > float(rest) * (1 << 20),
        }
        if kind not in tests:
            raise ValueError(f'the manifest has an escape word that is unknown: {word!r}; known: {", ".join(tests)}')
        return tests[kind]()


@contextlib.contextmanager
def lay_bait() -> Iterator[Bait]:
    """Makes what attacks go for, and removes it."""
    with contextlib.ExitStack() as stack:
        yield Bait(stack)


def remove_planted(name: str) -> None:
    """Removes files that an attack has planted in this Python."""
    for path in _planted(name):
        os.unlink(path)


def _planted(name: str) -> list[str]:
    places = {sys.prefix, sys.base_prefix, *site.getsitepackages(), site.getusersitepackages()}
    places |= {sysconfig.get_paths()[kind] for kind in ('stdlib', 'purelib')}
    return [path for place in places for path in glob.glob(f'{glob.escape(place)}/{glob.escape(name)}*')]


def _exists_in_python(name: str) -> bool:
    return bool(_planted(name))


def _describe(path: pathlib.Path) -> tuple[bytes, int] | None:
    return (path.read_bytes(), path.stat().st_mode) if path.exists() else None


def _largest(output: str, word: str) -> float:
    return max((float(number) for number in re.findall(rf'{re.escape(word)}\s+(\d+(?:\.\d+)?)', output)), default=0.0)


def _status() -> Iterator[tuple[int, Mapping[str, str]]]:
    """Process id and the fields of /proc/PID/status of every process."""
    for path in pathlib.Path('/proc').glob('[0-9]*/status'):
        with contextlib.suppress(OSError):  # has ended
            lines = path.read_text().splitlines()
            yield int(path.parent.name), dict(line.split(':\t', 1) for line in lines if ':\t' in line)


def _names() -> set[str]:
    return {fields['Name'] for _, fields in _status() if not fields['State'].startswith('Z')}


def _descendants(root: int) -> set[int]:
    parents = {pid: int(fields['PPid']) for pid, fields in _status()}
    found, more = set[int](), {root}
    while more:
        more = {pid for pid, parent in parents.items() if parent in more}
        found |= more
    return found


def end_descendants() -> None:
    """Kills every process that this one has started, in whatever session."""
    for pid in _descendants(os.getpid()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
