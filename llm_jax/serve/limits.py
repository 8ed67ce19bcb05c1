"""Limits of a server: bodies, rows and prompt tokens that wait."""

from collections.abc import Iterator
import contextlib
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
    """

    slots: int
    queue: int = 64
    queue_tokens: int = 65536
    body: int = 4 << 20
    seconds: float = 600.0


class Gate:
    """Counts what is under way, and refuses what is past the limits. Of the event loop alone.

    Attributes:
      rows: choices under way, waiting ones included.
      tokens: of prompts whose first new token is still to come.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.rows = self.tokens = 0

    def check(self, n_rows: int = 1, n_tokens: int = 0) -> None:
        """Raises: ApiError: there is no room for these; when to come again."""
        limits = self._limits
        if not self.rows and n_rows > limits.slots + limits.queue:
            raise ApiError(400, f'n asks for {n_rows} choices; the server takes {limits.slots + limits.queue}', 'n')
        if self.rows + n_rows > limits.slots + limits.queue or (
            self.tokens and self.tokens + n_tokens > limits.queue_tokens
        ):
            raise ApiError(503, 'the server is busy; try again later', code='overloaded', retry_after=1)

    @contextlib.contextmanager
    def enter(self, n_rows: int, n_tokens: int) -> Iterator['Entry']:
        """Holds the room of a request while it runs.

        Raises:
          ApiError: as `check`.
        """
        self.check(n_rows, n_tokens)
        entry = Entry(self, n_tokens)
        self.rows += n_rows
        self.tokens += n_tokens
        try:
            yield entry
        finally:
            self.rows -= n_rows
            entry.start()


class Entry:
    """The room of one request."""

    def __init__(self, gate: Gate, n_tokens: int) -> None:
        self._gate, self._n_tokens = gate, n_tokens

    def start(self) -> None:
        """Says that its prompts wait no more."""
        self._gate.tokens -= self._n_tokens
        self._n_tokens = 0


async def read_body(request: Request, limit: int) -> bytes:
    """Reads the body of a request.

    Raises:
      ApiError: it is larger than the limit; the rest is not read.
    """
    refusal = ApiError(413, f'the body is larger than {limit} bytes; send less', code='body_too_large')
    length = request.headers.get('content-length', '0')
    if not length.isdigit() or len(length) > 18 or int(length) > limit:
        raise refusal
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise refusal
        parts.append(part)
    return b''.join(parts)
