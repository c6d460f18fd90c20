"""Answers as HTTP responses: server-sent events, and cancelling when the client has gone."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse

from .backend import RequestError

T = TypeVar("T")

KEEP_ALIVE_S = 8.0
"""Seconds without an event after which a stream sends something: clients give up later."""

ACCEPT_S = 5.0
"""Seconds to wait for a refusal, which has an HTTP status, before a stream begins with a 200."""


def encode(body: Any) -> bytes:
    """Return a body as compact JSON."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def sse(body: Any, event: str | None = None) -> bytes:
    """Return one server-sent event; `body` is JSON, or a string that is sent as it is."""
    data = body.encode() if isinstance(body, str) else encode(body)
    name = f"event: {event}\n".encode() if event else b""
    return name + b"data: " + data + b"\n\n"


def comment(text: str) -> bytes:
    """Return a comment of an event stream, which clients skip."""
    return f": {text}\n\n".encode()


def event_stream(chunks: AsyncIterator[bytes]) -> StreamingResponse:
    """Return the response that sends server-sent events; `chunks` is closed when it ends."""
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(_closing(chunks), headers=headers, media_type="text/event-stream")


def line_stream(chunks: AsyncIterator[bytes]) -> StreamingResponse:
    """Return the response that sends lines of JSON, as Ollama does."""
    return StreamingResponse(_closing(chunks), media_type="application/x-ndjson")


async def begun(request: Request, chunks: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    """Run a stream to its first chunk, which is dropped: it says that the request is accepted.

    The stream has then entered its `async with answer`, and leaves it when it is closed or
    forgotten: nothing is computed for a client that goes before the first line.

    Raises:
        RequestError: the request is refused, in time for an HTTP status.
    """
    await unless_gone(request, chunks.__anext__())
    return chunks


async def _closing(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the chunks; close their source as soon as the client has gone, not some time later."""
    async with aclosing(chunks) as open_chunks:  # type: ignore[type-var]
        async for chunk in open_chunks:
            yield chunk


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Return what `work` returns; cancel it when the client hangs up before.

    Raises:
        RequestError: the client has gone; nobody will read it.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise RequestError("invalid", "the client closed the connection.")
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
