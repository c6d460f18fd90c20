"""Asks the OpenAI API of a stand-in, and reads what comes back: JSON, or a stream's events."""

import asyncio
import functools
import json
from typing import Any

import httpx
import msgspec
from fastapi import FastAPI
from serving import FakeBackend, ScriptedAnswer, app_of

from mlx_flash.server.gateway.backend import RequestError
from mlx_flash.server.messages import Generate

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
HELLO = {"messages": [{"role": "user", "content": "hello"}]}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "Tells it.", "parameters": {"type": "object"}},
}


class Backend(FakeBackend):
    """Has a script for each answer, and takes only what can be told to a worker."""

    def __init__(self, *scripts: Any, places: int = 1000) -> None:
        super().__init__()
        self.scripts = scripts or (self.script,)
        self.places = places

    def submit(self, wanted: Generate) -> ScriptedAnswer:
        if len(self.asked) >= self.places:
            raise RequestError("overloaded", "the queue is full.")
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(wanted), type=Generate) == wanted
        self.script = list(self.scripts[len(self.asked) % len(self.scripts)])
        return super().submit(wanted)


@functools.cache
def _app() -> FastAPI:
    """Return one application for all tests: to make it takes longer than to ask it."""
    return app_of(FakeBackend())


def asked(backend: FakeBackend, path: str, body: Any, status: int = 200) -> Any:
    """Post a body; return the response's JSON, or its events when it was a stream."""

    async def ask() -> Any:
        app = _app()
        app.state.backend = backend
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            content = body if isinstance(body, bytes) else json.dumps(body)
            response = await client.post(path, content=content)
        assert response.status_code == status, response.text
        if response.headers["content-type"].startswith("text/event-stream"):
            return events_of(response.text)
        assert response.headers["content-type"] == "application/json"
        return response.json()

    return asyncio.run(ask())


def events_of(text: str) -> list[Any]:
    """Return what the events of a stream hold; a comment is a string that begins with a colon."""
    assert text.endswith("\n\n")
    events: list[Any] = []
    for event in text[:-2].split("\n\n"):
        if event.startswith(":"):
            events.append(event)
            continue
        assert event.startswith("data: ")
        data = event.removeprefix("data: ")
        assert "\n" not in data
        events.append(data if data == "[DONE]" else json.loads(data))
    return events


def refused(path: str, body: Any, status: int = 400) -> dict[str, Any]:
    """Return the error that a body is refused with; no answer was begun."""
    backend = Backend()
    reply = asked(backend, path, body, status)
    assert set(reply) == {"error"}
    assert set(reply["error"]) == {"message", "type", "param", "code"}
    assert not backend.asked
    error: dict[str, Any] = reply["error"]
    return error


def wanted(path: str, body: Any) -> Generate:
    """Return what the worker is asked for a body."""
    backend = Backend()
    asked(backend, path, body)
    return backend.asked[0]
