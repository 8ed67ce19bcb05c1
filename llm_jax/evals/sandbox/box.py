"""One running sandbox: starting it, looking at its memory, and ending it with everything in it."""

from collections.abc import Mapping, Sequence
import contextlib
import ctypes
import functools
import json
import os
import pathlib
import platform
import select
import signal
import subprocess
import threading
import time

from . import bwrap, cgroup, seccomp
from .limits import Limits, SandboxError

_START = 20.0  # seconds that bubblewrap may need under load
_FILES = 20_000  # files at once in a sandbox: each takes 1 KiB of the kernel, and time to remove
_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37


class _Subreaper:
    """While a sandbox runs, this process inherits orphans, so that none stays behind as a zombie of process 1.

    Bubblewrap ends before the first process of its namespace does, which is nobody's child then.
    """

    def __init__(self) -> None:
        self._lock, self._users, self._before = threading.Lock(), 0, 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                libc, before = ctypes.CDLL(None), ctypes.c_int()
                libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
                self._before = before.value
                libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, self._before, 0, 0, 0)


_subreaper = _Subreaper()


@functools.cache
def _filter() -> bytes:
    return seccomp.build_filter(platform.machine())


def memory_file(data: bytes) -> int:
    """A descriptor that reads these bytes; nobody who inherits it can change or enlarge them."""
    import fcntl  # not there on Windows, which find_host refuses

    descriptor = os.memfd_create('program', os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(descriptor, 'wb', closefd=False) as file:
        file.write(data)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


class Box:
    """A sandbox whose program runs, from the constructor to `end`.

    Attributes:
      returncode: bubblewrap's, which is the program's, after `end`.
      failed: whether, after `end`, bubblewrap turns out to have ended by itself without having run the program.
      started_at: time.monotonic() at the program's start.
    """

    def __init__(
        self,
        host: bwrap.Host,
        limits: Limits,
        files: Mapping[str, bytes],
        arguments: Sequence[str],
        *,
        stdin: int,
        stdout: int,
        stderr: int,
        inherited: Sequence[int] = (),
    ) -> None:
        """Starts the interpreter in a new sandbox.

        Args:
          files: name -> content, in the read-only directory /program.
          arguments: of the interpreter, such as ['/program/main.py'].
          stdin, stdout, stderr: descriptors; the caller closes its own.
          inherited: further descriptors that the program gets, under the same numbers.

        Raises:
          SandboxError: it did not start; says what bubblewrap said.
        """
        self.returncode: int | None = None
        self.failed = False
        self._limits, self._group, self._pidfd, self._init = limits, None, -1, 0
        self._memory_exceeded = self._ended = False
        self._process: subprocess.Popen | None = None
        with contextlib.ExitStack() as stack:
            descriptors = {name: memory_file(content) for name, content in files.items()}
            filter_fd = memory_file(_filter())
            block_inside, block = os.pipe()
            self._status, status_inside = os.pipe()
            for fd in (*descriptors.values(), filter_fd, status_inside, block_inside, block):
                stack.callback(os.close, fd)
            command = bwrap.build_command(
                host,
                limits,
                descriptors,
                arguments,
                seccomp_fd=filter_fd,
                status_fd=status_inside,
                block_fd=block_inside,
            )
            _subreaper.__enter__()
            on_error = stack.enter_context(contextlib.ExitStack())
            on_error.callback(self.end)
            self._process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env={},
                pass_fds=(*descriptors.values(), filter_fd, status_inside, block_inside, *inherited),
            )
            if host.groups:
                self._group = cgroup.make_group(host.groups, limits)
            self._init = self._read_pid()
            self._pidfd = os.pidfd_open(self._init)
            if self._group:
                self._group.add(self._init)
            self.started_at = time.monotonic()
            os.write(block, b'x')
            on_error.pop_all()

    def _read_pid(self) -> int:
        """The process id of the first process inside, as bubblewrap reports it, while it waits."""
        deadline, text = time.monotonic() + _START, b''
        while b'\n' not in text:
            ready, _, _ = select.select([self._status], [], [], 0.05)
            if ready:
                text += os.read(self._status, 4096)
            elif self._process.poll() is not None or time.monotonic() > deadline:
                raise SandboxError(f'bubblewrap did not start (exit code {self._process.returncode})')
        return json.loads(text.split(b'\n')[0])['child-pid']

    def _has_ended(self) -> bool:
        """Whether bubblewrap, or the first process inside, has ended by itself."""
        if self._pidfd >= 0 and select.select([self._pidfd], [], [], 0)[0]:
            return True
        return self._process.poll() is not None

    def _has_reported_exit(self) -> bool:
        """Whether bubblewrap has reported the program's exit code, as it does once the program has begun."""
        os.set_blocking(self._status, False)
        try:
            return b'exit-code' in os.read(self._status, 4096)
        except BlockingIOError:
            return False

    @property
    def exit_fd(self) -> int:
        """A descriptor that becomes readable when everything in the sandbox has ended."""
        return self._pidfd

    def has_exited(self) -> bool:
        """Whether the program has ended; what it started may run on until `end`."""
        return self._process.poll() is not None

    def exceeds_memory(self) -> bool:
        """Whether its processes and files together take more than they may; asked for now and then.

        With a control group the kernel has then killed one of them at once; without, this is what bounds the sum.
        """
        file_bytes, file_count = self._count_files()
        if self._group:
            self._memory_exceeded |= self._group.out_of_memory()
        else:
            self._memory_exceeded |= self._process_bytes() + file_bytes > self._limits.memory << 20
        self._memory_exceeded |= file_count > _FILES
        return self._memory_exceeded

    def _count_files(self) -> tuple[int, int]:
        """Bytes and number of the files in /tmp inside."""
        with contextlib.suppress(OSError):  # the sandbox has ended
            files = os.statvfs(f'/proc/{self._init}/root/tmp')
            if files.f_blocks * files.f_frsize == self._limits.files << 20:  # not the machine's, as before the start
                return (files.f_blocks - files.f_bfree) * files.f_frsize, files.f_files - files.f_ffree
        return 0, 0

    def _process_bytes(self) -> int:
        """Memory of all processes inside, pages that several share counted once."""
        pids, used = [self._init], 0
        for pid in pids:  # grows while it is read
            for children in pathlib.Path(f'/proc/{pid}/task').glob('*/children'):
                with contextlib.suppress(OSError):  # the process has ended
                    pids += map(int, children.read_text().split())
        for pid in pids:
            with contextlib.suppress(OSError, StopIteration):  # as above
                lines = pathlib.Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines()
                used += next(int(line.split()[1]) for line in lines if line.startswith('Pss:')) << 10
        return used

    def out_of_memory(self) -> bool:
        """Whether its memory was the reason that it, or a part of it, was ended."""
        return self._memory_exceeded or bool(self._group and self._group.out_of_memory())

    def end(self) -> None:
        """Kills what is left, and returns when nothing is."""
        if self._ended:
            return
        self._ended = True
        process = self._process
        has_exited = process is not None and self._has_ended()
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        elif process:
            process.kill()  # its child goes with it
        if process:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self.returncode = process.returncode
        if self._pidfd >= 0:
            select.select([self._pidfd], [], [], 5)
            with contextlib.suppress(ChildProcessError):  # bubblewrap has seen to it
                os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
            os.close(self._pidfd)
            self._pidfd = -1
        if self._group:
            self._memory_exceeded = self.out_of_memory()
            self._group.remove()
            self._group = None
        self.failed = has_exited and not self._memory_exceeded and not self._has_reported_exit()
        os.close(self._status)
        _subreaper.__exit__()
