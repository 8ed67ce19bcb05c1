"""The HTTP application: routes, keys, errors."""

import asyncio
from collections.abc import AsyncIterator, Callable
import contextlib
import hmac
import time
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_jax.serve.assets import page_routes
from llm_jax.serve.errors import ApiError
from llm_jax.serve.generation import GONE, Generation
from llm_jax.serve.limits import Gate, Limits, read_body
from llm_jax.serve.metrics import Metrics
from llm_jax.serve.protocol import parse_body, parse_chat, parse_completion
from llm_jax.serve.service import Service, Work
from llm_jax.serve.worker import Around, RowEngine, Worker

# A larger body is parsed and encoded beside the event loop.
_LARGE = 16384


class Server:
    """The endpoints of one model.

    Attributes:
      app: of ASGI.
      service: encodes requests.
      engine: decodes; once the app runs, only the worker may touch it.
      gate: what is under way.
      worker: the engine's thread; made when the app starts.
    """

    def __init__(
        self,
        service: Service,
        engine: RowEngine,
        limits: Limits,
        api_key: str = '',
        around: Around = contextlib.nullcontext,
    ) -> None:
        """Args:
        service: encodes requests.
        engine: decodes them.
        limits: what is too much.
        api_key: that clients have to send; '' is none.
        around: makes the context that the engine decodes in, as of `Worker`.
        """
        self._around = around
        self.service, self.engine, self._limits, self._api_key = service, engine, limits, api_key
        self.gate = Gate(limits)
        self._metrics = Metrics(lambda: self.gate.rows, lambda: self.gate.tokens)
        self.worker: Worker | None = None
        self._started = int(time.time())
        routes = [
            Route('/v1/chat/completions', self._chat, methods=['POST']),
            Route('/v1/completions', self._complete, methods=['POST']),
            Route('/v1/models', self._list_models),
            Route('/v1/models/{name:path}', self._show_model),
            Route('/tokenize', self._tokenize, methods=['POST']),
            Route('/health', self._health),
            Route('/metrics', self._write_metrics),
            *page_routes(),
        ]
        self._paths = {route.path for route in routes}
        handlers: dict[Any, Any] = {
            ApiError: _answer_error,
            ClientDisconnect: _answer_nobody,
            HTTPException: _answer_http,
            Exception: _answer_bug,
        }
        app = Starlette(routes=routes, exception_handlers=handlers, lifespan=self._live)
        self.app = self._count(app)

    @contextlib.asynccontextmanager
    async def _live(self, app: Starlette) -> AsyncIterator[None]:
        self.worker = Worker(self.engine, asyncio.get_running_loop(), self._around)
        yield
        await self.worker.close()

    def _count(self, app: ASGIApp) -> ASGIApp:
        """Counts requests by the status that was sent."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope['type'] != 'http':
                await app(scope, receive, send)
                return
            status = 499

            async def watch(message: Message) -> None:
                nonlocal status
                status = message.get('status', status)
                await send(message)

            try:
                await app(scope, receive, watch)
            finally:
                path = scope['path'] if scope['path'] in self._paths else 'other'
                self._metrics.requests.labels(path, str(499 if scope.get(GONE) else status)).inc()

        return counted

    def _check_key(self, request: Request) -> None:
        given = request.headers.get('authorization', '').removeprefix('Bearer ').encode()
        if self._api_key and not hmac.compare_digest(given, self._api_key.encode()):
            raise ApiError(
                401, 'the API key is missing or wrong; send Authorization: Bearer KEY', code='invalid_api_key'
            )

    async def _chat(self, request: Request) -> Generation:
        return await self._generate(request, lambda values: self.service.open_chat(parse_chat(values)))

    async def _complete(self, request: Request) -> Generation:
        return await self._generate(request, lambda values: self.service.open_completion(parse_completion(values)))

    async def _generate(self, request: Request, open_work: Callable[[dict[str, Any]], Work]) -> Generation:
        arrived = time.monotonic()
        self._check_key(request)
        if self.worker is None or not self.worker.is_alive:
            raise ApiError(503, 'the engine has stopped; restart the server', code='engine_stopped')
        entry = self.gate.enter()  # before anything is read
        try:
            body = await read_body(request, self._limits)
            await asyncio.sleep(0)  # those that came meanwhile are refused before this one is encoded
            work = await _beside(len(body), lambda: open_work(parse_body(body)))
            entry.admit(len(work.requests), work.n_prompt)
        except BaseException:
            entry.close()
            raise
        return Generation(work, self.worker, entry, self._metrics, self._limits.seconds, arrived)

    async def _list_models(self, request: Request) -> Response:
        self._check_key(request)
        return JSONResponse({'object': 'list', 'data': [self._model()]})

    async def _show_model(self, request: Request) -> Response:
        self._check_key(request)
        if (name := request.path_params['name']) != self.service.name:
            raise ApiError(
                404, f'there is no model {name!r}; there is {self.service.name!r}', 'model', 'model_not_found'
            )
        return JSONResponse(self._model())

    def _model(self) -> dict[str, Any]:
        model = {'id': self.service.name, 'object': 'model', 'created': self._started, 'owned_by': 'llm_jax'}
        return model | {'max_model_len': self.service.context}

    async def _tokenize(self, request: Request) -> Response:
        self._check_key(request)
        body = await read_body(request, self._limits)
        return JSONResponse(await _beside(len(body), lambda: self.service.tokenize(parse_body(body))))

    async def _health(self, request: Request) -> Response:
        is_well = self.worker is not None and self.worker.is_alive
        return JSONResponse({'status': 'ok' if is_well else 'engine_stopped'}, 200 if is_well else 503)

    async def _write_metrics(self, request: Request) -> Response:
        return Response(self._metrics.write(), media_type='text/plain; version=0.0.4')


async def _beside(size: int, function: Callable[[], Any]) -> Any:
    """Calls a function, in a thread if the body is large."""
    return await asyncio.to_thread(function) if size > _LARGE else function()


def _write_error(error: ApiError) -> Response:
    return JSONResponse(error.body(), error.status, error.headers())


async def _answer_error(request: Request, error: ApiError) -> Response:
    return _write_error(error)


async def _answer_http(request: Request, error: HTTPException) -> Response:
    message = {404: f'there is nothing at {request.url.path}', 405: f'{request.url.path} takes no {request.method}'}
    return _write_error(ApiError(error.status_code, message.get(error.status_code, str(error.detail))))


async def _answer_nobody(request: Request, error: ClientDisconnect) -> Response:
    """Ends a request whose client went away before its body had come."""
    return Response(status_code=499)


async def _answer_bug(request: Request, error: Exception) -> Response:
    return _write_error(ApiError(500, f'the server failed: {type(error).__name__}'))
