"""Whether the sandbox holds on this machine, found by trying to get out of it."""

from collections.abc import Iterator
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import secrets
import signal
import socket
import subprocess
import tempfile
import threading
import time

from . import bwrap, run
from .limits import Limits, SandboxError

_INSIDE = pathlib.Path(__file__).parent / 'inside'
_LIMITS = Limits(timeout=20, memory=256, processes=12, files=8, output=0.1)
_FORKS = 40  # that the trial asks for


@dataclasses.dataclass(frozen=True)
class Finding:
    """One promise of the sandbox, whether it holds here, and what was seen."""

    promise: str
    holds: bool
    seen: str


@contextlib.contextmanager
def _outside() -> Iterator[dict]:
    """What a program should not reach: files, listeners, a process, a word in the environment; made for the trial."""
    secret = secrets.token_hex(8)
    with contextlib.ExitStack() as stack:
        directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix='llm_jax-sandbox-')))
        directory.chmod(0o777)
        (directory / 'file').write_text(secret)
        (directory / 'file').chmod(0o666)
        home = os.path.expanduser('~')
        files = ['/etc/passwd', '/etc/hosts', str(directory / 'file')]
        with contextlib.suppress(OSError):  # an ordinary user may have no home
            files.append(stack.enter_context(tempfile.NamedTemporaryFile(dir=home, prefix='.llm_jax-sandbox-')).name)
        listeners = [
            stack.enter_context(socket.socket(family, kind))
            for family, kind in (
                (socket.AF_INET, socket.SOCK_STREAM),
                (socket.AF_UNIX, socket.SOCK_STREAM),
                (socket.AF_UNIX, socket.SOCK_STREAM),
            )
        ]
        addresses = [('127.0.0.1', 0), f'\0llm_jax-{secrets.token_hex(8)}', str(directory / 'socket')]
        for listener, address in zip(listeners, addresses, strict=True):
            listener.bind(address)
            listener.listen()
        os.chmod(directory / 'socket', 0o666)
        helper = subprocess.Popen(['/bin/sleep', '60'])
        stack.callback(helper.wait)
        stack.callback(helper.kill)
        name = f'LLM_JAX_TRIAL_{secret}'
        os.environ[name] = secret
        stack.callback(os.environ.pop, name)
        yield {
            'terces': secret[::-1],  # so that the arguments, which it may see, do not show it
            'files': files,
            'directories': ['/etc', '/root', '/home', home, str(directory), '/sys', '/var'],
            'places': ['/', '/usr', '/usr/lib', '/dev', bwrap.PROGRAM, os.path.dirname(os.__file__), str(directory)],
            'port': listeners[0].getsockname()[1],
            'abstract': addresses[1][1:],
            'socket': str(directory / 'socket'),
            'pid': helper.pid,
            'memory': 2 * _LIMITS.memory,
            'forks': _FORKS,
        }


def _daemons(word: str) -> list[int]:
    """Processes whose command line has a word."""
    found = []
    for path in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
        with contextlib.suppress(OSError):  # has ended
            if word.encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def _judge_trial(found: dict, host: bwrap.Host) -> list[Finding]:
    """The findings of what the trial printed."""

    def nothing(promise: str, *keys: str) -> Finding:
        reached = {key: found[key] for key in keys if found[key]}
        return Finding(promise, not reached, ', '.join(f'{key}: {value}' for key, value in reached.items()))

    uid = found['uid']
    is_dropped = uid != 0 and (not host.is_root or host.uids[0] <= uid < sum(host.uids))
    findings = [
        nothing('files outside can neither be read nor written', 'files read', 'places written'),
        nothing('the environment of the caller is not there', 'secret seen'),
        nothing('there is no network', 'connections', 'interfaces'),
        nothing('processes outside are neither seen nor signalled', 'processes', 'signalled'),
        nothing('it has no capabilities and gets no namespaces', 'capabilities', 'new privileges', 'namespaces made'),
        nothing('no file of the caller is open', 'descriptors'),
        nothing('standard input is at its end', 'standard input'),
        Finding('it runs as another user', is_dropped and not found['became root'], f'uid {uid}'),
        Finding('system calls are filtered', found['filter'], ''),
        Finding('memory of a process is bounded', not found['memory taken'], f'{_LIMITS.memory} MiB asked for'),
        Finding('files are bounded', found['files filled'] <= 24, f'{found["files filled"]:.1f} MiB'),
        Finding('processes are bounded', found['forks'] <= _LIMITS.processes, f'{found["forks"]} of {_FORKS}'),
    ]
    listed = [path for path in found['directories listed'] if path not in ('/etc', *_parents(host.prefix))]
    return [*findings, Finding('no directory of users is there', not listed, ', '.join(listed))]


def _parents(path: str) -> list[str]:
    return [str(parent) for parent in pathlib.Path(path).parents] if path else []


def check_sandbox() -> list[Finding]:
    """Tries each promise.

    Raises:
      SandboxError: no sandbox can be started; says what would help.
    """
    host = bwrap.find_host()
    with _outside() as outside:
        argument = json.dumps(outside)
        try:
            result = run.run_program(host, (_INSIDE / 'trial.py').read_bytes(), _LIMITS, arguments=[argument])
        except SandboxError as e:
            raise SandboxError(f'{e}; {_hint(host, str(e))}') from None
        if result.status != 'ok':
            last = result.output.decode(errors='replace').strip().splitlines()[-1:]
            said = f'{result.status}: {" ".join(last)}'
            raise SandboxError(f'a trial program did not run in the sandbox ({said}); {_hint(host, said)}')
        left = _daemons(outside['terces'])
        findings = _judge_trial(json.loads(result.stdout), host)
        findings.append(Finding('nothing lives on after its end', not left, f'{len(left)} processes' if left else ''))
        for pid in left:
            with contextlib.suppress(OSError):  # has ended
                os.kill(pid, signal.SIGKILL)
    # Where the first trial got out, there is no second one.
    return [*findings, *(_try_together(host) if all(finding.holds for finding in findings) else [])]


def _try_together(host: bwrap.Host) -> list[Finding]:
    """Memory of several processes, then time."""
    limits = Limits(timeout=10, memory=96, processes=12, files=8)
    memory = run.run_program(host, (_INSIDE / 'together.py').read_bytes(), limits)
    started = time.monotonic()
    loop = run.run_program(host, 'while True: pass', Limits(timeout=0.2))
    how = 'by a control group' if host.groups else 'by looking at it every 20 ms'
    return [
        Finding('memory of all processes together is bounded', memory.status == 'memory', how),
        Finding('time is bounded', loop.status == 'timeout' and time.monotonic() - started < 3, ''),
    ]


def _hint(host: bwrap.Host, said: str) -> str:
    """What would help where bubblewrap does not start, or cannot make its namespaces."""
    if 'nknown option' in said:
        return 'bubblewrap 0.7 or newer is needed: apt-get install bubblewrap, or a newer release of the system'
    switches = {
        'kernel/unprivileged_userns_clone': ('0', '1'),
        'kernel/apparmor_restrict_unprivileged_userns': ('1', '0'),
        'user/max_user_namespaces': ('0', '10000'),
    }
    for name, (off, on) in switches.items():
        path = pathlib.Path('/proc/sys', name)
        if not host.is_root and path.exists() and path.read_text().strip() == off:
            name = name.replace('/', '.')
            return f'user namespaces of ordinary users are off here: sysctl -w {name}={on}, or run as root'
    return (
        'namespaces cannot be made here: in a container start it with --privileged, or with --security-opt '
        'seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined'
    )


_lock = threading.Lock()


@functools.cache
def _trusted_host() -> bwrap.Host:
    broken = [finding for finding in check_sandbox() if not finding.holds]
    if broken:
        what = '; '.join(f'{finding.promise} ({finding.seen})' for finding in broken)
        raise SandboxError(f'the sandbox does not hold on this machine, so nothing runs. Not true here: {what}')
    return bwrap.find_host()


def trusted_host() -> bwrap.Host:
    """What this machine has for sandboxes, after everything held once in this process.

    Raises:
      SandboxError: something does not hold; says what, and what would help.
    """
    with _lock:
        return _trusted_host()
