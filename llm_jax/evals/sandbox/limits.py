"""Limits of a program in the sandbox, the result of running it, and the sandbox's own error."""

import dataclasses


class SandboxError(Exception):
    """The sandbox does not hold on this machine, or could not start; one line that says what would help."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of one program.

    Attributes:
      timeout: seconds of wall clock.
      memory: MiB of all its processes together, files in memory included; each process may map as much.
      processes: processes and threads at once.
      files: MiB that its files may have in all.
      output: MiB of standard output and standard error together.
    """

    timeout: float = 5.0
    memory: int = 1024
    processes: int = 64
    files: int = 256
    output: float = 1.0

    def __post_init__(self) -> None:
        for field, least in (('timeout', 0.01), ('memory', 32), ('processes', 4), ('files', 1), ('output', 0.001)):
            value = getattr(self, field)
            if not least <= value < float('inf'):
                raise ValueError(f'{field} = {value}: it must be a number from {least}')


@dataclasses.dataclass(frozen=True)
class Result:
    """Result of one program.

    Attributes:
      status: 'ok' (exit code 0), 'error' (another one), or the limit that ended it: 'timeout', 'memory', 'output'.
      exit_code: of the program; 128 + n after signal n; None where the sandbox ended it.
      stdout, stderr: as far as `Limits.output` reaches.
      output: both, in the order of arrival.
      seconds: wall clock, the start of the interpreter included.
    """

    status: str
    exit_code: int | None
    stdout: bytes
    stderr: bytes
    output: bytes
    seconds: float

    def as_json(self) -> dict[str, str | int | float | None]:
        """The fields as JSON values: bytes become text, what is no UTF-8 in it U+FFFD."""
        text = {name: getattr(self, name).decode(errors='replace') for name in ('stdout', 'stderr', 'output')}
        return {'status': self.status, 'exit_code': self.exit_code, 'seconds': round(self.seconds, 4)} | text
