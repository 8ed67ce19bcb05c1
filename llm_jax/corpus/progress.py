"""What a person sees while a corpus is built: the step, how far it is, and when it will be done."""

from collections.abc import Iterator
import contextlib
import sys
import time
from typing import TextIO

import rich.console
import rich.progress

from llm_jax.corpus.engines import Progress
from llm_jax.metrics import format as fmt

_PLAIN_INTERVAL = 5.0  # seconds between lines where there is no terminal


class Console:
    """Progress on a terminal as one line redrawn in place, elsewhere as a line every five seconds."""

    def __init__(self, *, enabled: bool = True, file: TextIO | None = None):
        """Args:
        enabled: False prints nothing at all.
        file: where to print; standard output by default.
        """
        self._enabled = enabled
        self._rich = rich.console.Console(file=file or sys.stdout, highlight=False, markup=False, emoji=False)
        self.seconds: dict[str, float] = {}

    def event(self, message: str) -> None:
        """A line that stays."""
        if self._enabled:
            self._rich.print(message, soft_wrap=True)
            self._rich.file.flush()

    @contextlib.contextmanager
    def step(self, name: str, known: int = 0, unit: str = '') -> Iterator[Progress]:
        """Shows one step while the block runs; the block tells how much of it is done.

        Args:
          name: of the step.
          known: parts that were done before.
          unit: what the parts are; they go without saying where it is empty.
        """
        start, printed, last = time.monotonic(), time.monotonic(), [0, 0]
        redraw = self._enabled and self._rich.is_terminal
        bar = rich.progress.Progress(
            rich.progress.TextColumn('{task.description}'),
            rich.progress.BarColumn(24),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeRemainingColumn(),
            console=self._rich,
            transient=True,
            disable=not redraw,
        )
        task = bar.add_task(name, total=None)

        def update(done: int, total: int) -> None:
            nonlocal printed
            last[:] = done, total
            bar.update(task, completed=known + done, total=known + total)
            now = time.monotonic()
            if not redraw and done and now - printed >= _PLAIN_INTERVAL:
                printed = now
                left = (now - start) / done * (total - done)
                self.event(f'{name}: {known + done} of {known + total} · ETA {fmt.clock(left)}')

        with bar:
            yield update
        seconds = time.monotonic() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        parts = [f'{known + last[1]}{unit and " "}{unit}', *([f'{known} of them before'] if known else [])]
        self.event(f'{name}: {", ".join(parts)}; {fmt.duration(seconds)}')
