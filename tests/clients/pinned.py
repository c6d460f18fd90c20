"""A proxy that makes a client's first question end in a tool call: `pinned.py TARGET TOOL [PORT]`.

The bundled model calls no tool of its own accord. The proxy adds a `tool_choice` to the first
request that offers `TOOL`, and bounds the texts in the tool's schema and the answer, for a small
model may write on for ever. All else passes through as it is, so that the client and the server
speak to each other.
"""

import contextlib
import json
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

_LETTERS = 24
_SHORT = {
    "type": "json_schema",
    "name": "short",
    "schema": {
        "type": "object",
        "properties": {"answer": {"type": "string", "maxLength": 60}},
        "required": ["answer"],
        "additionalProperties": False,
    },
}


class Pin:
    """Changes what passes on the way to a server; `seen` are the bodies as the client sent them."""

    def __init__(self, target: str, tool: str) -> None:
        self.target = target.rstrip("/")
        self.tool = tool
        self.pinned = False
        self.seen: list[dict[str, Any]] = []

    def changed(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the body to send on."""
        self.seen.append(json.loads(json.dumps(body)))
        if "max_tokens" in body:
            body["max_tokens"] = 160
        offered = next((t for t in body.get("tools") or () if t.get("name") == self.tool), None)
        if offered is not None and not self.pinned:
            self.pinned = True
            _bound(offered.get("input_schema") or offered.get("parameters"))
            kind = "tool" if "input_schema" in offered else "function"
            body["tool_choice"] = {"type": kind, "name": self.tool}
        elif "input" in body:
            body["text"] = {"format": _SHORT}
        return body

    async def handle(self, request: Request) -> StreamingResponse:
        """Pass one request on, and its answer back as it comes."""
        content = await request.body()
        if request.method == "POST" and content.startswith(b"{"):
            content = json.dumps(self.changed(json.loads(content))).encode()
        headers = {
            name: value
            for name, value in request.headers.items()
            if name not in ("host", "content-length", "accept-encoding", "content-encoding")
        }
        client = httpx.AsyncClient(timeout=None)
        url = f"{self.target}{request.url.path}?{request.url.query}"
        passed = client.build_request(request.method, url, headers=headers, content=content)
        response = await client.send(passed, stream=True)

        async def chunks() -> AsyncIterator[bytes]:
            try:
                async for chunk in response.aiter_raw():
                    yield chunk
            finally:
                await response.aclose()
                await client.aclose()

        kept = {
            name: response.headers[name] for name in ("content-type",) if name in response.headers
        }
        return StreamingResponse(chunks(), response.status_code, kept)


def _bound(schema: Any) -> None:
    """Bound every text in a schema, and leave out what is not required."""
    if not isinstance(schema, dict):
        return
    if schema.get("type") == "string" and "enum" not in schema:
        schema["maxLength"] = _LETTERS
    if schema.get("type") == "array":
        schema["maxItems"] = 1
    required = schema.get("required")
    if isinstance(schema.get("properties"), dict) and required is not None:
        schema["properties"] = {
            name: value for name, value in schema["properties"].items() if name in required
        }
    for value in (*schema.get("properties", {}).values(), schema.get("items")):
        _bound(value)


@contextlib.contextmanager
def pinning(target: str, tool: str) -> Iterator[tuple[str, Pin]]:
    """Yield the proxy's URL, and what it sees."""
    pin = Pin(target, tool)
    methods = ["GET", "POST", "HEAD"]
    app = Starlette(routes=[Route("/{path:path}", pin.handle, methods=methods)])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", pin
    finally:
        server.should_exit = True
        thread.join()


def main() -> None:
    """Pass requests on until it is interrupted."""
    target, tool = sys.argv[1:3]
    pin = Pin(target, tool)
    methods = ["GET", "POST", "HEAD"]
    app = Starlette(routes=[Route("/{path:path}", pin.handle, methods=methods)])
    uvicorn.run(app, port=int(sys.argv[3]) if len(sys.argv) > 3 else 8181, log_level="warning")


if __name__ == "__main__":
    main()
