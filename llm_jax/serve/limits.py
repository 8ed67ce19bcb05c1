"""Limits of a server: bodies, rows and prompt tokens that wait."""

import asyncio
import dataclasses

from starlette.requests import Request

from llm_jax.serve.errors import ApiError


@dataclasses.dataclass(frozen=True)
class Limits:
    """Most of what a server takes.

    Attributes:
      slots: choices that are decoded together.
      queue: choices that wait for a slot.
      queue_tokens: tokens of the prompts that wait; one request is taken in any case.
      body: bytes.
      seconds: for an answer.
      body_seconds: until the whole body has come.
    """

    slots: int
    queue: int = 64
    queue_tokens: int = 65536
    body: int = 4 << 20
    seconds: float = 600.0
    body_seconds: float = 30.0


class Gate:
    """Counts what is under way, and refuses what is past the limits. Of the event loop alone.

    Attributes:
      rows: choices under way: those that wait, and one of each request whose body is still to come, included.
      tokens: of prompts whose first new token is still to come.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.rows = self.tokens = 0

    def enter(self) -> 'Entry':
        """Makes room for a request before anything of it is read: one choice.

        Raises:
          ApiError: there is none; when to come again.
        """
        self.check(1)
        self.rows += 1
        return Entry(self)

    def check(self, n_rows: int, n_tokens: int = 0) -> None:
        """Raises: ApiError: there is no room for so much more."""
        limits = self._limits
        if self.rows + n_rows > limits.slots + limits.queue or (
            self.tokens and self.tokens + n_tokens > limits.queue_tokens
        ):
            raise ApiError(503, 'the server is busy; try again later', code='overloaded', retry_after=1)

    def check_choices(self, n_rows: int) -> None:
        """Raises: ApiError: choices that there is never room for."""
        if n_rows > (most := self._limits.slots + self._limits.queue):
            raise ApiError(400, f'n asks for {n_rows} choices; the server takes {most}', 'n')


class Entry:
    """The room of one request."""

    def __init__(self, gate: Gate) -> None:
        self._gate, self._n_rows, self._n_tokens = gate, 1, 0

    def admit(self, n_rows: int, n_tokens: int) -> None:
        """Takes the room for all that the request asks for.

        Raises:
          ApiError: there is none.
        """
        gate = self._gate
        gate.check_choices(n_rows)
        gate.check(n_rows - self._n_rows, n_tokens)
        gate.rows += n_rows - self._n_rows
        gate.tokens += n_tokens
        self._n_rows, self._n_tokens = n_rows, n_tokens

    def start(self) -> None:
        """Says that its prompts wait no more."""
        self._gate.tokens -= self._n_tokens
        self._n_tokens = 0

    def close(self) -> None:
        """Gives the room back."""
        self.start()
        self._gate.rows -= self._n_rows
        self._n_rows = 0


async def read_body(request: Request, limits: Limits) -> bytes:
    """Reads the body of a request.

    Raises:
      ApiError: it is larger than the limit (the rest is not read), or takes too long to come.
    """
    refusal = ApiError(413, f'the body is larger than {limits.body} bytes; send less', code='body_too_large')
    length = request.headers.get('content-length', '0')
    if not length.isdigit() or len(length) > 18 or int(length) > limits.body:
        raise refusal
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                size += len(part)
                if size > limits.body:
                    raise refusal
                parts.append(part)
    except TimeoutError:
        message = f'the body did not come within {limits.body_seconds:g} s; send it at once'
        raise ApiError(408, message, code='body_too_slow', closes=True) from None
    return b''.join(parts)
