"""Verdicts on programs: the tests run in one sandbox, the program in another, and literals alone pass between them."""

from collections.abc import Sequence
import dataclasses
import functools
import os
import pathlib
import select
import time

from . import bwrap
from .box import Box
from .inside import wire
from .limits import Limits, SandboxError

_INSIDE = pathlib.Path(__file__).parent / 'inside'
_TICK = 0.02  # seconds between two looks at memory


@dataclasses.dataclass(frozen=True)
class Suite:
    """Tests of a program, which come from a benchmark and are trusted.

    Attributes:
      names: functions and classes of the program that the tests call.
      setup: source that runs before the tests, in the same namespace, without the program.
      tests: source; it passes when it comes to its end.
    """

    names: Sequence[str]
    setup: str
    tests: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Verdict on one program.

    Attributes:
      status: 'passed', 'failed', or the limit that ended it: 'timeout', 'memory'.
      reason: of a failure: the exception, and the line of the tests.
      seconds: wall clock.
    """

    status: str
    reason: str
    seconds: float

    @property
    def passed(self) -> bool:
        return self.status == 'passed'


@functools.cache
def _program(name: str) -> dict[str, bytes]:
    """The files of a program for a sandbox: itself, and the literals' reader and writer."""
    return {'main.py': (_INSIDE / f'{name}.py').read_bytes(), 'wire.py': (_INSIDE / 'wire.py').read_bytes()}


def judge_program(host: bwrap.Host, program: str, tests: Suite, limits: Limits) -> Verdict:
    """Runs the tests on a program, each in a sandbox of its own.

    Raises:
      SandboxError: a sandbox could not start.
    """
    main = [f'{bwrap.PROGRAM}/main.py']
    solution_files = _program('solution') | {'solution.py': program.encode('utf-8', 'surrogatepass')}
    data = wire.encode((list(tests.names), tests.setup, tests.tests))
    test_files = _program('tests') | {'tests.bin': data}
    started = time.monotonic()
    boxes: list[Box] = []
    descriptors: list[int] = []
    try:
        null = os.open(os.devnull, os.O_RDWR)
        (requests_out, requests_in), (answers_out, answers_in), (verdict_out, verdict_in) = pipes = [
            os.pipe() for _ in range(3)
        ]
        descriptors += [null, *(fd for pipe in pipes for fd in pipe)]
        start = functools.partial(Box, host, limits, stderr=null)
        boxes.append(start(solution_files, main, stdin=requests_out, stdout=answers_in))
        arguments = [*main, str(verdict_in)]
        boxes.append(start(test_files, arguments, stdin=answers_out, stdout=requests_in, inherited=[verdict_in]))
        for fd in (requests_out, requests_in, answers_out, answers_in, verdict_in):  # the sandboxes hold them alone
            os.close(fd)
            descriptors.remove(fd)
        status, reason = _wait(boxes, verdict_out, limits)
    finally:
        for box in boxes:
            box.end()
        for fd in descriptors:
            os.close(fd)
    if status == 'failed' and any(box.failed for box in boxes):
        raise SandboxError('bubblewrap did not start a program: too little memory, or too many processes, for it')
    if status == 'failed' and boxes[0].out_of_memory():
        status = 'memory'
    return Verdict(status, reason, time.monotonic() - started)


def _wait(boxes: list[Box], verdict_out: int, limits: Limits) -> tuple[str, str]:
    """Status and reason of what the process of the tests reports, or of the limit that comes first."""
    deadline = boxes[-1].started_at + limits.timeout
    data = b''
    while (now := time.monotonic()) < deadline:
        ready, _, _ = select.select([verdict_out], [], [], min(_TICK, deadline - now))
        if ready:
            piece = os.read(verdict_out, 1 << 16)
            data += piece
            if not piece:
                break
        elif any(box.exceeds_memory() for box in boxes):
            return 'memory', f'more than {limits.memory} MiB of memory'
    else:
        return 'timeout', f'no verdict within {limits.timeout:g} s'
    if not data:
        return 'failed', 'the process of the tests has ended without a verdict'
    passed, reason = wire.decode(data[8:])
    return ('passed' if passed is True else 'failed'), reason
