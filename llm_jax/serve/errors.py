"""Errors of a request, in the form that OpenAI's clients read."""

from typing import Any

_TYPES = {401: 'authentication_error', 404: 'not_found_error', 429: 'rate_limit_error'}


class ApiError(Exception):
    """A request that is refused or fails.

    Attributes:
      status: of HTTP.
      message: what is wrong, and the fix.
      param: the field; None where it is none.
      code: a word for programs; None where there is none.
      retry_after: seconds after which to try again; None where that is of no use.
      closes: whether the connection is of no use any more.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        closes: bool = False,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after, self.closes = retry_after, closes

    def body(self) -> dict[str, Any]:
        """Returns the JSON of the answer."""
        kind = _TYPES.get(self.status, 'server_error' if self.status >= 500 else 'invalid_request_error')
        return {'error': {'message': self.message, 'type': kind, 'param': self.param, 'code': self.code}}

    def headers(self) -> dict[str, str]:
        """Returns the headers of the answer."""
        again = {} if self.retry_after is None else {'Retry-After': str(self.retry_after)}
        return again | ({'Connection': 'close'} if self.closes else {})
