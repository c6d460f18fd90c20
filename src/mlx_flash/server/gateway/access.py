"""Who may ask: API keys, and the checks that keep web pages of others away from this server."""

import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..options import AccessOptions
from .backend import RequestError
from .errors import error_response

_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
_OPEN_PATHS = (
    *("/health", "/v1/health"),
    # the page; what it shows needs a key
    *("/", "/dashboard/app.js", "/dashboard/charts.js", "/dashboard/numbers.js"),
    *("/dashboard/style.css", "/dashboard/icon.svg"),
)


class Access:
    """Lets a request through when its key, its host and its origin are right.

    The Host check keeps out pages whose name was made to point here (DNS rebinding); the Origin
    check keeps out other people's pages in this user's browser.
    """

    def __init__(self, app: ASGIApp, options: AccessOptions) -> None:
        self._app = app
        self._options = options
        self._hosts = {*_LOCAL_NAMES, options.host.lower(), *(h.lower() for h in options.hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection of the server."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        try:
            self._check_host(headers.get("host", ""))
            self._check_origin(origin, headers.get("host", ""))
        except RequestError as error:
            await error_response(scope["path"], error)(scope, receive, send)
            return

        async def send_with_cors(message: Message) -> None:
            if message["type"] == "http.response.start" and origin:
                _allow(MutableHeaders(scope=message), origin)
            await send(message)

        if scope["method"] == "OPTIONS" and origin:
            await self._answer_preflight(headers, scope, receive, send_with_cors)
            return
        try:
            self._check_key(headers, scope["path"])
        except RequestError as error:
            await error_response(scope["path"], error)(scope, receive, send_with_cors)
            return
        await self._app(scope, receive, send_with_cors)

    def _check_host(self, host: str) -> None:
        """Check the name by which the client reached this server; any, where a key is asked for."""
        if self._options.api_keys and not self._options.hosts:
            return
        if _name_of(host) not in self._hosts:
            raise RequestError(
                "forbidden",
                f"this server does not go by the name {host[:100]!r}: start it with "
                "--allow-host NAME to let it.",
            )

    def _check_origin(self, origin: str | None, host: str) -> None:
        if origin is None or origin in self._options.origins or "*" in self._options.origins:
            return
        try:
            name = urlsplit(origin).hostname
        except ValueError:
            name = None
        if name in _LOCAL_NAMES or (name and name == _name_of(host)):
            return
        raise RequestError(
            "forbidden",
            f"pages of {origin[:100]!r} may not ask this server: start it with "
            "--allow-origin ORIGIN to let them.",
        )

    def _check_key(self, headers: Headers, path: str) -> None:
        """Compare with every key, in constant time."""
        if not self._options.api_keys or path in _OPEN_PATHS:
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        found = False
        for key in self._options.api_keys:
            found |= hmac.compare_digest(given.encode(), key.encode())
        if not found:
            what = "knows no such key" if given else "asks for a key"
            raise RequestError(
                "unauthorized",
                f"this server {what}: send Authorization: Bearer KEY, or x-api-key: KEY.",
            )

    async def _answer_preflight(
        self, headers: Headers, scope: Scope, receive: Receive, send: Send
    ) -> None:
        wanted = headers.get("access-control-request-headers", "*")
        allowed = {
            "Access-Control-Allow-Methods": "GET, HEAD, POST, DELETE, OPTIONS",
            "Access-Control-Allow-Headers": wanted,
            "Access-Control-Max-Age": "600",
        }
        await Response(status_code=204, headers=allowed)(scope, receive, send)


def _allow(headers: MutableHeaders, origin: str) -> None:
    headers["Access-Control-Allow-Origin"] = origin
    headers.add_vary_header("Origin")


def _name_of(host: str) -> str | None:
    """Return the name in a Host header, without the port; None when there is none."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
