"""Console of a run: one live line, and news above it."""

from collections.abc import Mapping
import sys
import time
from typing import Any, TextIO

import rich.box
import rich.console
import rich.live
import rich.table
import rich.text

from llm_jax.config.printable import visible
from llm_jax.metrics import format as fmt

_PLAIN_INTERVAL = 5.0  # seconds between progress lines where there is no terminal
_REFRESH_PER_SECOND = 2
_BAR_WIDTH = 24


class Console:
    """The progress of one run; a `Writer` that is fed the same metrics as the others.

    On a terminal one line is redrawn in place, by a thread of its own, twice a second.
    Elsewhere (a file, a pipe, a notebook's log) the same line is printed at most every
    five seconds, and at every evaluation and the last step, without control characters.
    `write` only stores what it is given, so a step never waits for the screen.

    Args:
      total_steps: where the run ends.
      enabled: False prints nothing at all; for processes other than 0.
      file: where to print; standard output by default.
    """

    def __init__(self, total_steps: int, *, enabled: bool = True, file: TextIO | None = None):
        self._total = total_steps
        self._enabled = enabled
        self._file = file or sys.stdout
        self._encoding = getattr(self._file, 'encoding', None) or 'utf-8'
        self._dot, self._rule = ('·', '│') if 'utf' in self._encoding.lower() else ('|', '|')
        self._step = 0
        self._metrics: dict[str, Any] = {}  # since the last printed line; all of them where one line is redrawn
        self._evaluated = 0  # step of the newest evaluation
        self._first: tuple[float, int] | None = None  # time and step of the first write
        self._printed_at = float('-inf')
        self._rich = rich.console.Console(file=self._file, highlight=False, markup=False, emoji=False)
        self._live: rich.live.Live | None = None
        if enabled and self._rich.is_terminal:
            self._live = rich.live.Live(
                console=self._rich,
                get_renderable=self._live_line,
                refresh_per_second=_REFRESH_PER_SECOND,
                transient=True,
            )
            self._live.start()

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Shows the newest numbers; `metrics` has the names of metrics.jsonl, any of them."""
        now = time.monotonic()
        self._first = self._first or (now, step)
        self._step = step
        self._metrics.update(metrics)
        is_evaluation = 'val/loss' in metrics
        self._evaluated = step if is_evaluation else self._evaluated
        if self._live or not self._enabled:
            return
        if is_evaluation or step >= self._total or now - self._printed_at >= _PLAIN_INTERVAL:
            self._printed_at = now
            self._print(f' {self._dot} '.join([f'step {self._step}/{self._total}', *self._fields()]))
            self._metrics = {}

    def event(self, message: str) -> None:
        """Prints a line that stays, e.g. 'saved a checkpoint at step 100'."""
        self._print(message)

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Prints a completion: the prompt stands out, the text follows it."""
        body = rich.text.Text.assemble((self._clean(prompt), 'bold'), self._clean(text))
        lines = [rich.text.Text.assemble((f'  {self._rule} ', 'dim'), line) for line in body.split('\n')]
        head = rich.text.Text(f'sample at step {step}', style='dim')
        self._print(rich.text.Text('\n').join([head, *lines]))

    def table(self, title: str, rows: Mapping[str, str]) -> None:
        """Prints a table of names and values, such as the results at the end."""
        table = rich.table.Table(title=self._clean(title), box=rich.box.ROUNDED, show_header=False, title_style='bold')
        table.add_column(style='dim')
        table.add_column(justify='right')
        for name, text in rows.items():
            table.add_row(rich.text.Text(self._clean(name)), rich.text.Text(self._clean(text)))
        self._print(table)

    def flush(self) -> None:
        if self._enabled:
            self._file.flush()

    def close(self) -> None:
        """Takes the live line away; `event` and `table` still print after it."""
        if self._live:
            self._live.stop()

    def __enter__(self) -> 'Console':
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _print(self, item: Any) -> None:
        if not self._enabled:
            return
        if isinstance(item, str):
            item = rich.text.Text(self._clean(item))
        # Lines of a log are not broken at a width that nobody chose.
        self._rich.print(item, soft_wrap=isinstance(item, rich.text.Text))
        self._file.flush()

    def _clean(self, text: str) -> str:
        """Control characters, and what the output's encoding lacks, spelled out."""
        return visible(text).encode(self._encoding, 'backslashreplace').decode(self._encoding)

    def _fields(self) -> list[str]:
        """The line's parts, most wanted first: a narrow terminal cuts off the end."""
        m = self._metrics
        fields = []
        if 'loss' in m:
            fields.append(f'loss {fmt.decimal(m["loss"])}')
        if 'val/loss' in m:
            bits = m.get('val/bits_per_byte')
            at = f' at {self._evaluated}' if self._evaluated < self._step else ''
            fields.append(f'val {fmt.decimal(m["val/loss"])}' + (f' ({bits:.3f} bits/byte)' if bits else '') + at)
        if (seconds := self._seconds_left()) is not None:
            fields.append(f'ETA {fmt.clock(seconds)}')
        if 'tokens_per_second' in m:
            fields.append(f'{fmt.count(m["tokens_per_second"])} tok/s')
        if m.get('mfu') is not None:
            fields.append(f'MFU {fmt.percent(m["mfu"])}')
        if 'learning_rate' in m:
            fields.append(f'lr {fmt.learning_rate(m["learning_rate"])}')
        return fields

    def _seconds_left(self) -> float | None:
        """From the mean pace since the first write, so evaluations are counted, compiling is not."""
        if self._first is None or self._step <= self._first[1]:
            return None
        begun, first_step = self._first
        pace = (time.monotonic() - begun) / (self._step - first_step)
        return pace * max(self._total - self._step, 0)

    def _live_line(self) -> rich.text.Text:
        done = self._step / self._total if self._total else 1.0
        filled = round(_BAR_WIDTH * min(done, 1.0))
        line = rich.text.Text(no_wrap=True, overflow='ellipsis')
        line.append('━' * filled, style='green')
        line.append('━' * (_BAR_WIDTH - filled), style='bright_black')
        line.append(f' {self._step}/{self._total}', style='bold')
        line.append(''.join(f' {self._dot} {field}' for field in self._fields()) or ' starting')
        return line
