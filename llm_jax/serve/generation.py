"""An answer on its way to a client: JSON or events, until it ends, time is up, or the client goes away."""

import asyncio
from collections.abc import AsyncIterator
import contextlib
import json
import time
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from llm_jax.config.schema import ConfigError
from llm_jax.generate.requests import Finish
from llm_jax.serve.errors import ApiError
from llm_jax.serve.limits import Entry
from llm_jax.serve.metrics import Metrics
from llm_jax.serve.service import Work
from llm_jax.serve.worker import Update, Worker

# Key of an ASGI scope of which the client has gone away.
GONE = 'llm_jax.gone'
_HEADERS = [
    (b'content-type', b'text/event-stream; charset=utf-8'),
    (b'cache-control', b'no-cache'),
    (b'x-accel-buffering', b'no'),
]

_encode = json.JSONEncoder(separators=(',', ':')).encode


def write_event(value: Any) -> bytes:
    """Returns an event of server-sent events. JSON in ASCII has no line break that a client would split at."""
    return b'data: ' + _encode(value).encode() + b'\n\n'


class Generation:
    """The response to one request, as an ASGI application."""

    def __init__(
        self, work: Work, worker: Worker, entry: Entry, metrics: Metrics, seconds: float, arrived: float
    ) -> None:
        """Args:
        work: rows and their answer.
        worker: decodes them.
        entry: their room, which is given back at the end.
        metrics: count them.
        seconds: most that they may take.
        arrived: when the request came, of the monotonic clock.
        """
        self._work, self._worker, self._entry, self._metrics = work, worker, entry, metrics
        self._seconds, self._arrived = seconds, arrived

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers; a client that goes away ends its rows, whether it streams or not."""
        answering = asyncio.create_task(self._answer(scope, receive, send))
        answering.add_done_callback(lambda _: self._entry.close())
        leaving = asyncio.create_task(_wait_for_disconnect(receive))
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
            scope[GONE] = not answering.done()
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.wait((answering, leaving))
        if not answering.cancelled():
            answering.result()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = self._work
        async with contextlib.aclosing(self._updates()) as updates:
            if work.options.stream:
                await self._stream(updates, send)
                return
            async for update in updates:
                work.answer.add(update)
        whole = work.answer.whole()
        for choice in whole['choices'] if work.echoes else ():
            choice['text'] = work.echoes[choice['index']] + choice['text']
        self._metrics.add_usage(work.answer.usage)
        await JSONResponse(whole)(scope, receive, send)

    async def _updates(self) -> AsyncIterator[Update]:
        """Yields updates until every choice has ended.

        Raises:
          ApiError: a request that the engine refuses, a row that failed, an engine that stopped, or time is up.
        """
        job = self._worker.submit(self._work.requests)
        waiting = set(range(len(self._work.requests)))
        running = set(waiting)
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + self._seconds):
                while running:
                    update = await job.updates.get()
                    if isinstance(update, ConfigError):
                        raise ApiError(400, str(update))
                    if isinstance(update, Exception):
                        raise ApiError(500, str(update), code='engine_stopped')
                    if update.finish == Finish.ERROR:
                        raise ApiError(500, update.error)
                    if len(waiting) == len(self._work.requests):
                        self._metrics.first_token.observe(time.monotonic() - self._arrived)
                    waiting.discard(update.index)
                    if not waiting:
                        self._entry.start()
                    if update.finish is not None:
                        running.discard(update.index)
                    yield update
        except TimeoutError:
            raise ApiError(
                504, f'the answer took longer than {self._seconds:g} s; ask for less', code='timeout'
            ) from None
        finally:
            self._worker.cancel(job)
            self._metrics.duration.observe(time.monotonic() - self._arrived)

    async def _stream(self, updates: AsyncIterator[Update], send: Send) -> None:
        work, is_begun = self._work, False

        async def write(data: bytes, *, more: bool = True) -> None:
            await send({'type': 'http.response.body', 'body': data, 'more_body': more})

        try:
            async for update in updates:
                chunks = work.answer.add(update)
                if not is_begun:  # an error before the first token has a status of its own
                    await send({'type': 'http.response.start', 'status': 200, 'headers': _HEADERS})
                    is_begun = True
                    chunks = [*work.answer.begin(), *work.answer.echo_chunks(work.echoes), *chunks]
                if work.options.include_usage:
                    chunks = [chunk | {'usage': None} for chunk in chunks]
                if chunks:
                    await write(b''.join(map(write_event, chunks)))
        except ApiError as error:
            if not is_begun:
                raise
            await write(write_event(error.body()), more=False)
            return
        self._metrics.add_usage(work.answer.usage)
        last = [work.answer.usage_chunk()] if work.options.include_usage else []
        await write(b''.join(map(write_event, last)) + b'data: [DONE]\n\n', more=False)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())['type'] != 'http.disconnect':
        pass
