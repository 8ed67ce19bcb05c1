"""Running one program in a sandbox, to its end or to a limit."""

from collections.abc import Sequence
import os
import select
import time

from . import bwrap
from .box import Box, memory_file
from .limits import Limits, Result, SandboxError

_TICK = 0.02  # seconds between two looks at memory
_CHUNK = 1 << 16


class _Pipe:
    """The reading end of a pipe, and the writing end until the program has it."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.fchmod(self.writer, 0o222)  # another user opens /dev/stdout
        self.ended = False

    def read(self) -> bytes:
        """What is there; b'' where nothing is there yet, and at the end, when `ended` is set."""
        try:
            data = os.read(self.reader, _CHUNK)
        except BlockingIOError:
            return b''
        self.ended = not data
        return data


def run_program(
    host: bwrap.Host, program: str | bytes, limits: Limits, *, stdin: bytes = b'', arguments: Sequence[str] = ()
) -> Result:
    """Runs a Python program in a new sandbox.

    Args:
      program: its source.
      stdin: what it can read there; then, and by default at once, the end.
      arguments: its sys.argv[1:].

    Raises:
      SandboxError: the sandbox could not start.
    """
    program = program.encode('utf-8', 'surrogatepass') if isinstance(program, str) else program
    out, err = _Pipe(), _Pipe()
    inside = memory_file(stdin) if stdin else os.open(os.devnull, os.O_RDONLY)
    try:
        box = Box(
            host,
            limits,
            {'main.py': program},
            [f'{bwrap.PROGRAM}/main.py', *arguments],
            stdin=inside,
            stdout=out.writer,
            stderr=err.writer,
        )
        for fd in (out.writer, err.writer):
            os.close(fd)
        out.writer = err.writer = -1
        try:
            return _collect(box, out, err, limits)
        finally:
            box.end()
    except SandboxError as e:
        said = err.read().decode(errors='replace').strip()
        raise SandboxError(f'{e}: {said}' if said else str(e)) from None
    finally:
        for fd in (inside, out.reader, err.reader, out.writer, err.writer):
            if fd >= 0:
                os.close(fd)


def _collect(box: Box, out: _Pipe, err: _Pipe, limits: Limits) -> Result:
    """Reads both pipes until the program has ended or a limit is reached; ends the sandbox."""
    pieces: list[tuple[_Pipe, bytes]] = []
    left, status = int(limits.output * (1 << 20)), ''
    deadline, tick = box.started_at + limits.timeout, box.started_at + _TICK
    open_pipes = {out.reader: out, err.reader: err}
    poll = select.poll()
    for fd in (*open_pipes, box.exit_fd):
        poll.register(fd, select.POLLIN)
    while not status and not box.has_exited():
        now = time.monotonic()
        if now >= deadline:
            status = 'timeout'
        elif now >= tick:
            tick = now + _TICK
            if box.exceeds_memory():
                status = 'memory'
        elif ready := poll.poll(max(0.0, min(deadline, tick) - now) * 1000):
            for fd, _ in ready:
                if fd in open_pipes:
                    left -= _take(open_pipes[fd], pieces, left)
                    if open_pipes[fd].ended:
                        poll.unregister(fd)
            if left < 0:
                status = 'output'
            if any(fd == box.exit_fd for fd, _ in ready):
                break
    seconds = time.monotonic() - box.started_at
    box.end()
    for pipe in open_pipes.values():  # nobody writes any more
        while left >= 0 and (taken := _take(pipe, pieces, left)):
            left -= taken
    if box.failed and not status:
        said = b''.join(data for pipe, data in pieces if pipe is err).decode(errors='replace').strip()
        raise SandboxError(f'bubblewrap did not start the program: {said}')
    if not status and left < 0:
        status = 'output'
    if not status and box.returncode and box.out_of_memory():
        status = 'memory'
    return Result(
        status=status or ('error' if box.returncode else 'ok'),
        exit_code=None if status else box.returncode,
        stdout=b''.join(data for pipe, data in pieces if pipe is out),
        stderr=b''.join(data for pipe, data in pieces if pipe is err),
        output=b''.join(data for _, data in pieces),
        seconds=seconds,
    )


def _take(pipe: _Pipe, pieces: list[tuple[_Pipe, bytes]], left: int) -> int:
    """Reads once, keeps as much as `left` allows, and returns how much was there."""
    data = pipe.read()
    pieces.append((pipe, data[:left]))
    return len(data)
