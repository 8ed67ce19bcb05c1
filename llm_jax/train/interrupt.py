"""Stopping cleanly when asked to: SIGTERM, SIGINT, or a cloud's preemption notice."""

import signal
import types

import jax
from jax.experimental import multihost_utils


class Interrupt:
    """While active, signals are noted instead of ending the process.

    Every host must stop after the same step, or the others would wait for it forever;
    with several, JAX's coordination service agrees on the step.
    """

    def __init__(self) -> None:
        self.signal = ''
        self._before: dict[int, object] = {}

    def __enter__(self) -> 'Interrupt':
        for number in (signal.SIGTERM, signal.SIGINT):
            # The coordination service listens for SIGTERM itself.
            if jax.process_count() == 1 or number == signal.SIGINT:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: types.FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice
        self.signal = signal.Signals(number).name

    def asked(self, step: int) -> bool:
        """Whether to stop after this step; the same answer on every host."""
        if jax.process_count() == 1:
            return bool(self.signal)
        reached = multihost_utils.reached_preemption_sync_point(step)
        self.signal = self.signal or ('SIGTERM' if reached else '')
        return reached
