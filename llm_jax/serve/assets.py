"""The chat page: files that are served as they are, with headers that hold the browser to this origin."""

import pathlib

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

PAGE = pathlib.Path(__file__).parent / 'page'
_TYPES = {'.html': 'text/html', '.css': 'text/css', '.js': 'text/javascript', '.svg': 'image/svg+xml'}
# Nothing from elsewhere is loaded, nothing is evaluated, and no text becomes markup: a model's least of all.
_POLICY = "default-src 'none'; " + '; '.join(
    (
        "script-src 'self'", "style-src 'self'", "img-src 'self'", "connect-src 'self'", "base-uri 'none'",
        "form-action 'none'", "frame-ancestors 'none'", "require-trusted-types-for 'script'", "trusted-types 'none'",
    )
)  # fmt: skip
_HEADERS = {
    'Content-Security-Policy': _POLICY,
    'Referrer-Policy': 'no-referrer',
    'X-Content-Type-Options': 'nosniff',
    'Cache-Control': 'no-cache',
}


def page_routes() -> list[Route]:
    """Returns a route for each file of the page; index.html is at /."""
    files = sorted(file for file in PAGE.iterdir() if file.suffix in _TYPES)
    return [Route('/' if file.name == 'index.html' else f'/{file.name}', _sender(file)) for file in files]


def _sender(file: pathlib.Path):
    async def send(request: Request) -> Response:
        return FileResponse(file, headers=_HEADERS, media_type=_TYPES[file.suffix])

    return send
