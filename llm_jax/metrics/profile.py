"""Profile of a step: a trace for xprof, and its longest operations as a table."""

import collections
import dataclasses
import re
from typing import Any

from etils import epath
import jax
from jax.profiler import ProfileData

from llm_jax.config.schema import ConfigError

# 'fusion.12.remat.3' is one of many 'fusion': the compiler's numbers say nothing to a reader.
_NUMBER = re.compile(r'(\.\d+|\.remat\d*|\.clone)+$')


class Profiler:
    """Traces the steps first..last of a loop into a directory, for `xprof --logdir DIR`.

    Call `before(step)` ahead of dispatching a step and `after(step, outputs)` behind it.
    The device is waited for at the two ends, so that the trace holds these steps and no others.
    """

    def __init__(
        self, directory: epath.Path, steps: tuple[int, int] | None, taken: range, *, enabled: bool = True
    ) -> None:
        """Args: directory: where to; steps: first and last, or None; taken: those of the loop; enabled: here or not.

        Raises:
          ConfigError: the loop does not take these steps.
        """
        if steps and not (steps[0] in taken and steps[1] in taken):
            raise ConfigError(
                f'--profile {steps[0]}:{steps[1]} is not within the steps {taken.start} to {taken.stop - 1} of this run'
            )
        self._directory, self._enabled = directory, enabled and steps is not None
        self._first, self._last = steps or (0, 0)
        self._outputs: Any = None
        self._running = False

    def before(self, step: int) -> None:
        """Starts the trace if this is the first step of it."""
        if self._enabled and step == self._first:
            jax.block_until_ready(self._outputs)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # a trace of every Python call would be most of the file
            jax.profiler.start_trace(self._directory, profiler_options=options)
            self._running = True

    def after(self, step: int, outputs: Any) -> None:
        """Ends the trace if this was the last step of it; `outputs` are arrays that the step computes."""
        if self._enabled:
            self._outputs = outputs if step < self._first else None
            if step == self._last:
                jax.block_until_ready(outputs)
                self.close()

    def close(self) -> None:
        """Writes what there is of the trace."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()


@dataclasses.dataclass(frozen=True)
class Op:
    """All runs of one kind of operation, over all devices of this process.

    Attributes:
      name: as the compiler calls it, without its number.
      seconds: of all runs; on CPU, where operations run within others, a loop's time includes its body's.
      runs: how many.
    """

    name: str
    seconds: float
    runs: int


def top_ops(directory: epath.PathLike) -> list[Op]:
    """The operations in the newest trace below `directory`, the longest first.

    Raises:
      ConfigError: there is no trace.
    """
    files = sorted(epath.Path(directory).glob('plugins/profile/*/*.xplane.pb'), key=lambda file: str(file))
    if not files:
        raise ConfigError(f'{directory} holds no trace (plugins/profile/*/*.xplane.pb)')
    seconds, runs = collections.Counter(), collections.Counter()
    for plane in ProfileData.from_serialized_xspace(files[-1].read_bytes()).planes:
        device = plane.name.startswith('/device:')
        for line in plane.lines:
            # On TPU a line holds the operations of a core; on GPU a line is a stream of kernels.
            if device and line.name in ('Steps', 'XLA Modules', 'Framework Ops', 'Async XLA Ops', 'Source code'):
                continue
            for event in line.events:
                if line.name == 'XLA Ops' or any(key == 'hlo_op' for key, _ in event.stats):
                    name = _NUMBER.sub('', event.name.split(' = ')[0].lstrip('%'))
                    seconds[name] += event.duration_ns / 1e9
                    runs[name] += 1
    return [Op(name, spent, runs[name]) for name, spent in seconds.most_common()]


def table(ops: list[Op], steps: int, most: int = 15) -> list[list[str]]:
    """Rows of text, the first of them the header.

    Args:
      ops: from `top_ops`.
      steps: that were traced.
      most: rows at most.
    """
    total = sum(op.seconds for op in ops)
    rows = [['operation', 'ms a step', 'share', 'runs a step']]
    for op in ops[:most]:
        share = f'{op.seconds / total:.1%}'
        rows.append([op.name, f'{op.seconds / steps * 1e3:.3f}', share, f'{op.runs / steps:.1f}'])
    return rows
