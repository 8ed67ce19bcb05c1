"""A sandbox for programs that a model wrote: it shows by trying that it holds on this machine, or refuses.

    from llm_jax.evals.sandbox import Limits, Sandbox, Suite

    sandbox = Sandbox()                                    # SandboxError: what does not hold, and what would help
    sandbox.run('print(1)', Limits(timeout=5))             # status, exit code, output, seconds
    sandbox.judge('def add(a, b): return a + b', Suite(['add'], '', 'assert add(2, 3) == 5'))

It needs nothing but Python, bubblewrap and util-linux, and imports nothing else of llm_jax.
"""

from collections.abc import Sequence

from . import judge as _judge
from . import probe as _probe
from . import run as _run
from .judge import Suite, Verdict
from .limits import Limits, Result, SandboxError
from .probe import Finding, check_sandbox

__all__ = ['Finding', 'Limits', 'Result', 'Sandbox', 'SandboxError', 'Suite', 'Verdict', 'check_sandbox']


class Sandbox:
    """Sandboxes on this machine; each program gets a new one. Threads may share it."""

    def __init__(self) -> None:
        """Tries once in a process whether it holds.

        Raises:
          SandboxError: it does not.
        """
        self._host = _probe.trusted_host()

    def run(
        self, program: str | bytes, limits: Limits | None = None, *, stdin: bytes = b'', arguments: Sequence[str] = ()
    ) -> Result:
        """Runs a Python program; see `run.run_program`."""
        return _run.run_program(self._host, program, limits or Limits(), stdin=stdin, arguments=arguments)

    def judge(self, program: str, tests: Suite, limits: Limits | None = None) -> Verdict:
        """Runs tests on a Python program; see `judge.judge_program`."""
        return _judge.judge_program(self._host, program, tests, limits or Limits())
