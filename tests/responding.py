"""Asks the Responses API of a stand-in, and takes its streams apart."""

import asyncio
import json
from typing import Any

from serving import FakeBackend, client_of

PATH = "/v1/responses"


def respond(backend: FakeBackend, *bodies: Any, path: str = PATH) -> list[Any]:
    """Return the httpx responses to bodies, JSON or text of it, posted one after the other."""

    async def post() -> list[Any]:
        async with client_of(backend) as client:
            texts = [body if isinstance(body, str) else json.dumps(body) for body in bodies]
            return [await client.post(path, content=text) for text in texts]

    return asyncio.run(post())


def answered(backend: FakeBackend, **body: Any) -> dict[str, Any]:
    """Return the response object that answers a body."""
    (response,) = respond(backend, {"input": "Hi", **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def refused(backend: FakeBackend, **body: Any) -> dict[str, Any]:
    """Return the error that a body gets, which no worker was asked for."""
    (response,) = respond(backend, body)
    assert response.status_code in (400, 404), response.text
    assert not backend.asked
    error: dict[str, Any] = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


def streamed(backend: FakeBackend, **body: Any) -> list[dict[str, Any]]:
    """Return the events that answer a body, checked to be named and numbered."""
    (response,) = respond(backend, {"input": "Hi", "stream": True, **body})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    events = []
    for chunk in response.text.removesuffix("\n\n").split("\n\n"):
        name, data = chunk.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events
