"""One training at a time in a run directory: a lease that its holder renews, and that a killed holder loses.

On a disk, also one that several hosts share, the lease is a file that `filelock` creates exclusively: that of a process
of this host that is gone is taken over at once, that of another host once it has not been renewed for a while. A bucket
has no exclusive creation through epath, so there the last writer of an object holds the lease, and each looks again
after it has written. Ages are measured with this host's monotonic clock alone: the clocks of hosts differ.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from typing import Protocol

from etils import epath
import filelock

from llm_jax.config.schema import ConfigError
from llm_jax.metrics import Console

LEASE_SECONDS = 30.0
_POLL_SECONDS = 0.25
# Time for another host's write of the same moment to arrive.
_SETTLE_SECONDS = 1.0
FILE_NAME = '.lock'


class _Lease(Protocol):
    """A lease on one run directory."""

    def try_acquire(self) -> bool:
        """Takes the lease if it is free or has expired, which only repeated calls can tell."""
        ...

    def holder(self) -> tuple[str, object]:
        """(holder in words, a value that changes with each renewal)."""
        ...

    def holder_is_here(self) -> bool:
        """Whether the holder is a live process of this host."""
        ...

    def lost(self) -> bool:
        """Whether another holder has taken the lease since."""
        ...

    def release(self) -> None: ...


class RunLock(contextlib.AbstractContextManager):
    """While active, no other `train` writes to the run directory."""

    def __init__(self, run_dir: epath.Path, console: Console, lease_seconds: float = LEASE_SECONDS) -> None:
        """Args:
        run_dir: local, shared by several hosts, or in a bucket; made if it is not there.
        console: told when a lease of another host has to be waited for.
        lease_seconds: time without a renewal after which a lease counts as abandoned; the same for all hosts.
        """
        self._run_dir, self._console, self._seconds = run_dir, console, lease_seconds
        remote = '://' in os.fspath(run_dir)
        self._lease: _Lease = (_BucketLease if remote else _FileLease)(run_dir / FILE_NAME, lease_seconds)

    def __enter__(self) -> 'RunLock':
        """Takes the lease.

        Raises:
          ConfigError: another process holds it and is alive.
        """
        self._run_dir.mkdir(parents=True, exist_ok=True)
        seen: object = None
        while not self._lease.try_acquire():
            holder, renewal = self._lease.holder()
            if self._lease.holder_is_here() or (seen is not None and renewal is not None and renewal != seen):
                raise ConfigError(
                    f'{self._run_dir} is in use: {holder} is training there. Wait until it ends or stop it, or train '
                    'elsewhere: --workdir DIR'
                )
            if seen is None and renewal is not None:
                seen = renewal
                self._console.event(
                    f'{self._run_dir} is marked as in use by {holder}; waiting up to {self._seconds:.0f} s to see '
                    'whether that is still at work'
                )
            time.sleep(_POLL_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        """Gives the lease back; a directory that nothing was written to is removed."""
        self._lease.release()
        with contextlib.suppress(OSError):  # in use, as it should be
            if not any(self._run_dir.iterdir()):
                self._run_dir.rmdir()

    def check(self) -> None:
        """Raises ConfigError if the lease is lost, as to a process that took this one for dead while it was suspended.

        To be called before something is written that another training would overwrite.
        """
        if self._lease.lost():
            raise ConfigError(
                f'{self._run_dir} has been taken over by {self._lease.holder()[0]}, as this process did not renew its '
                f'lock for {self._seconds:.0f} s (suspended, or a file system that did not answer). Nothing more is '
                'written there; see that only one process trains in it'
            )


class _FileLease:
    """A lease on a disk."""

    def __init__(self, file: epath.Path, seconds: float) -> None:
        self._file = os.fspath(file)
        self._lock = filelock.SoftFileLease(
            self._file, lease_duration=seconds, heartbeat_interval=seconds / 3, timeout=0, thread_local=False
        )

    def try_acquire(self) -> bool:
        for _ in range(2):  # the first may only clear away what a process that is gone has left
            with contextlib.suppress(filelock.Timeout):
                self._lock.acquire(poll_interval=0.01)
                return True
        return False

    def holder(self) -> tuple[str, object]:
        owner = self._lock.owner
        try:
            renewed = os.stat(self._file).st_mtime_ns
        except FileNotFoundError:
            renewed = None
        return (f'process {owner.pid} on {owner.hostname}' if owner else 'another process'), renewed

    def holder_is_here(self) -> bool:
        owner = self._lock.owner  # of this host and gone, it would have been cleared away
        return owner is not None and owner.hostname == socket.gethostname()

    def lost(self) -> bool:
        return self._lock.compromise is not None or not self._lock.is_lock_held_by_us

    def release(self) -> None:
        self._lock.release()


class _BucketLease:
    """A lease in a bucket: an object that names its holder."""

    def __init__(self, file: epath.Path, seconds: float) -> None:
        self._file, self._seconds = file, seconds
        self._token = secrets.token_hex(8)
        self._beat = 0
        self._seen: tuple[str, float] | None = None  # content, and since when it has not changed
        self._over = threading.Event()

    def try_acquire(self) -> bool:
        content = self._read()
        if content:
            if self._seen is None or self._seen[0] != content:
                self._seen = content, time.monotonic()
            if time.monotonic() - self._seen[1] < self._seconds:
                return False
        self._write()
        self._over.wait(min(_SETTLE_SECONDS, self._seconds / 3))
        if self.lost():
            return False
        threading.Thread(target=self._renew, daemon=True).start()
        return True

    def holder(self) -> tuple[str, object]:
        content = self._read()
        if not content:
            return 'another process', None
        said = json.loads(content)
        return f'process {said["pid"]} on {said["host"]}', content

    def holder_is_here(self) -> bool:
        return False  # a process number says nothing in a container, where buckets are used most

    def lost(self) -> bool:
        content = self._read()
        return not content or json.loads(content)['token'] != self._token

    def release(self) -> None:
        self._over.set()
        if not self.lost():
            self._file.unlink()

    def _read(self) -> str:
        return self._file.read_text() if self._file.exists() else ''

    def _write(self) -> None:
        self._beat += 1
        said = {'token': self._token, 'host': socket.gethostname(), 'pid': os.getpid(), 'beat': self._beat}
        self._file.write_text(json.dumps(said))

    def _renew(self) -> None:
        while not self._over.wait(self._seconds / 3):
            if self.lost():
                return  # `check` says so
            self._write()
