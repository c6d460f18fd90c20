"""The page at `/` that shows what the server is doing, and the events that keep it up to date."""

import asyncio
import time
from collections.abc import AsyncIterator
from importlib import resources

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from .backend import Backend, RequestError, backend_of
from .dashboard_state import state_of
from .ollama import running
from .request_metrics import RequestMetrics
from .streams import event_stream, sse

router = APIRouter(include_in_schema=False)

PERIOD_S = 1.0

STATIC = {
    "app.js": "text/javascript; charset=utf-8",
    "charts.js": "text/javascript; charset=utf-8",
    "numbers.js": "text/javascript; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
"""The names below /dashboard/, and what they are. No other name reaches the file system."""

_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@router.head("/")
@router.get("/")
async def page(request: Request) -> Response:
    """Return the page for a browser, and what Ollama answers here for anything else."""
    if request.method == "HEAD" or "text/html" not in request.headers.get("accept", ""):
        return running()
    return _static("index.html", "text/html; charset=utf-8")


@router.get("/dashboard/events")
async def events(request: Request) -> StreamingResponse:
    """Return the state as server-sent events, one a second."""
    app = request.app.state
    return event_stream(updates(backend_of(request), app.requests, app.started_s))


@router.get("/dashboard/{name}")
async def static(name: str) -> Response:
    """Return a file that the page needs."""
    if name not in STATIC:
        raise RequestError("not_found", f"there is nothing at GET /dashboard/{name[:100]}.")
    return _static(name, STATIC[name])


async def updates(
    backend: Backend,
    requests: RequestMetrics,
    started_s: float,
    period_s: float = PERIOD_S,
) -> AsyncIterator[bytes]:
    """Yield the state as events; ends when the server stops, so that it need not wait for pages."""
    sent_s = 0.0
    while True:
        state = state_of(backend, requests, time.monotonic() - started_s, sent_s)
        if state.points:
            sent_s = state.points[-1].time_s
        yield sse(msgspec.json.encode(state).decode())
        if state.state == "stopping":
            return
        await asyncio.sleep(period_s)


def _static(name: str, media_type: str) -> Response:
    data = (resources.files("mlx_flash.assets") / "dashboard" / name).read_bytes()
    return Response(data, headers={**_PAGE_HEADERS, "Content-Type": media_type})
