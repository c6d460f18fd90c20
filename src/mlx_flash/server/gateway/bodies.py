"""Makes request bodies what the routes expect: whole, unpacked, JSON, and not too large."""

import zlib

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .backend import RequestError
from .errors import error_response


class Bodies:
    """Reads a body before its route runs: a client that sends half of it holds up nobody.

    Many clients send JSON under another content type; it is read as JSON all the same.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection of the server."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read(Headers(scope=scope), receive)
        except RequestError as error:
            await error_response(scope["path"], error)(scope, receive, send)
            return
        if body is None:
            return  # the client has gone
        kept = (b"content-type", b"content-length", b"content-encoding")
        headers = [(name, value) for name, value in scope["headers"] if name not in kept]
        headers += [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_body() -> Message:
            return messages.pop() if messages else await receive()

        await self._app({**scope, "headers": headers}, receive_body, send)

    async def _read(self, headers: Headers, receive: Receive) -> bytes | None:
        """Return the body, unpacked; None when the client goes before its end."""
        encoding = headers.get("content-encoding", "identity").lower()
        if encoding not in ("identity", "gzip", "deflate"):
            raise RequestError("invalid", f"a body in {encoding!r} cannot be read: send gzip.")
        unpack = zlib.decompressobj(zlib.MAX_WBITS | 32) if encoding != "identity" else None
        parts: list[bytes] = []
        size = 0
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part, more = message.get("body", b""), message.get("more_body", False)
            if unpack is not None:
                part = self._unpacked(unpack, part)
            size += len(part)
            if size > self._max_bytes:
                raise RequestError(
                    "too_large", f"the body is larger than {self._max_bytes} bytes: send less."
                )
            parts.append(part)
        return b"".join(parts)

    def _unpacked(self, unpack: "zlib._Decompress", part: bytes) -> bytes:
        try:
            return unpack.decompress(part, self._max_bytes + 1)
        except zlib.error as error:
            raise RequestError("invalid", "the body is not what its encoding says.") from error
