"""The engine's thread: requests go in through a queue, updates come back into the event loop."""

import asyncio
from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import queue
import threading
import traceback
from typing import Any, Protocol

from llm_jax.config.schema import ConfigError
from llm_jax.generate.requests import Finish, Request, Row
from llm_jax.generate.stops import StopText

Around = Callable[[], contextlib.AbstractContextManager]


class RowEngine(Protocol):
    """What the server needs of `generate.engine.Engine`; see there."""

    context: int

    @property
    def is_idle(self) -> bool: ...

    def submit(self, request: Request) -> Row: ...

    def cancel(self, row: Row) -> None: ...

    def step(self) -> list[Row]: ...


@dataclasses.dataclass(frozen=True)
class Update:
    """What a choice got since the last one.

    Attributes:
      index: of the choice in its job.
      text: new text.
      tokens: new tokens, with (log-probability, likeliest tokens) of each.
      finish: why it ended; None while it has not.
      error: of Finish.ERROR.
      n_tokens: all that it has, the stop id included.
      n_reused: tokens of its prompt that were there already.
    """

    index: int
    text: str
    tokens: Sequence[tuple[int, float, Sequence[tuple[int, float]]]]
    finish: Finish | None = None
    error: str = ''
    n_tokens: int = 0
    n_reused: int = 0


class Job:
    """The rows of one HTTP request: iterate over `updates` in the event loop."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.updates: asyncio.Queue[Update | Exception] = asyncio.Queue()
        self.rows: list[Row] = []
        self.sent = [0] * len(requests)


class Worker:
    """Owns the engine; only its thread touches it.

    Attributes:
      error: why the thread ended before `close`; None while it runs.
    """

    def __init__(self, engine: RowEngine, loop: asyncio.AbstractEventLoop, around: Around) -> None:
        """Args:
        engine: decodes.
        loop: where updates go.
        around: makes the context that the engine decodes in, such as its mesh, which belongs to a thread.
        """
        self._engine, self._loop, self._around = engine, loop, around
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._of_row: dict[int, tuple[Job, int]] = {}
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name='engine', daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self.error is None and self._thread.is_alive()

    def submit(self, requests: Sequence[Request]) -> Job:
        """Queues rows; their updates come in `Job.updates`: an exception there ends the job.

        A request out of its range is such an exception: ConfigError.
        """
        job = Job(requests)
        self._inbox.put(lambda: self._start(job))
        if not self.is_alive:  # it may have ended before it saw the job
            job.updates.put_nowait(RuntimeError(f'the engine has stopped: {self.error}'))
        return job

    def cancel(self, job: Job) -> None:
        """Ends the rows of a job; their slots are free for the next program."""
        self._inbox.put(lambda: self._cancel(job))

    async def close(self) -> None:
        """Ends the thread after the program that runs."""
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        try:
            with self._around():
                while self._take_inbox():
                    if not self._engine.is_idle:
                        self._send([self._describe(row) for row in self._engine.step() if id(row) in self._of_row])
        except Exception as error:  # every client has to hear of it, whatever it is
            traceback.print_exc()
            self.error = error
            failed = RuntimeError(f'the engine has stopped: {error}')
            self._send([(job, failed) for job in {id(job): job for job, _ in self._of_row.values()}.values()])

    def _take_inbox(self) -> bool:
        """Does what was asked for; waits while there is nothing to decode. False at the end."""
        wait = self._engine.is_idle
        while wait or not self._inbox.empty():
            command, wait = self._inbox.get(), False
            if command is None:
                return False
            command()
        return True

    def _start(self, job: Job) -> None:
        try:
            for request in job.requests:
                job.rows.append(row := self._engine.submit(request))
                self._of_row[id(row)] = job, len(job.rows) - 1
        except ConfigError as error:
            self._cancel(job)
            self._send([(job, error)])

    def _cancel(self, job: Job) -> None:
        for row in job.rows:
            self._engine.cancel(row)
            self._of_row.pop(id(row), None)

    def _describe(self, row: Row) -> tuple[Job, Update]:
        job, index = self._of_row[id(row)]
        start, job.sent[index] = job.sent[index], len(row.tokens)
        top = row.top[start:] if row.request.alternatives else [()] * (len(row.tokens) - start)
        tokens = list(zip(row.tokens[start:], row.log_probs[start:], top, strict=True))
        watcher: Any = row.request.watcher
        text = watcher.take() if isinstance(watcher, StopText) else ''
        if row.finish is not None:
            text += watcher.close() if isinstance(watcher, StopText) else ''
            del self._of_row[id(row)]
        n_tokens = len(row.tokens) + (row.finish == Finish.STOP_ID)
        return job, Update(index, text, tokens, row.finish, row.error, n_tokens, row.n_reused)

    def _send(self, messages: Sequence[tuple[Job, Update | Exception]]) -> None:
        def deliver() -> None:
            for job, message in messages:
                job.updates.put_nowait(message)

        if messages and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(deliver)
