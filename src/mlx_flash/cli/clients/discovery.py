"""Ask a server what it is: over HTTP, the named host alone."""

import json
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from email.message import Message
from http.client import HTTPException
from typing import IO, Any
from urllib.parse import urlsplit

from ...errors import OptionError
from .server import DEFAULT_URL, PROVIDER, Server

_DEFAULT_CONTEXT = 32768
_TIMEOUT_S = 2.0
_MAX_ANSWER_BYTES = 1 << 20


@dataclass(frozen=True)
class Discovery:
    """A server, whether it runs, and what to tell the user about that.

    `refused`: it asks for another key, and so did not say what it serves.
    """

    server: Server
    running: bool
    note: str
    refused: bool = False


def discover(
    url: str, api_key: str | None = None, model: str | None = None, context: int | None = None
) -> Discovery:
    """Return the server at `url`, with what it says where `model` and `context` are not given.

    Raises:
        OptionError: `url`, the key or the model is none that a client could use.
    """
    for name, value in (("--api-key", api_key), ("--model", model)):
        if value is not None and (not value or not value.isprintable() or value != value.strip()):
            raise OptionError(f"{name} is empty, or has spaces around it or control characters.")
    base = _base_url(url)
    fallback = Server(base, model or PROVIDER, context or _DEFAULT_CONTEXT, api_key)
    try:
        answer = _get_models(base, api_key)
    except urllib.error.HTTPError as error:
        with error:
            refused = error.code in (401, 403)
        why = "wants another --api-key" if refused else f"answers with status {error.code}"
        return Discovery(
            fallback, False, _assuming(f"the server at {base} {why}", fallback), refused
        )
    except (OSError, HTTPException, ValueError):
        note = _assuming(f"no server is running at {base}", fallback)
        return Discovery(fallback, False, f"{note}: mlx-flash serve starts one.")
    found = _choose(answer, model)
    if found is None and model is None:
        note = _assuming(f"the server at {base} lists no model", fallback)
        return Discovery(fallback, False, note)
    name, window = found or (fallback.model, None)
    server = replace(fallback, model=model or name, context=context or window or fallback.context)
    note = f"the server at {base} runs {name}" if found else f"the server at {base} runs"
    return Discovery(server, True, f"{note}, set up with {server.context} tokens of context.")


def _assuming(what: str, server: Server) -> str:
    return f"{what}; assuming model {server.model} with {server.context} tokens of context"


def _base_url(url: str) -> str:
    """Return `url` without what clients add to it.

    Raises:
        OptionError: it is none.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.username is not None or parts.query or parts.fragment:
        raise OptionError(f"--url {url!r} is no address such as {DEFAULT_URL}.")
    if not url.isprintable() or any(sign in url for sign in " \"'`$\\"):
        raise OptionError(f"--url {url!r} has signs that no address has.")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Leaves a redirect an error: the key is for the host that the user named."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Message,
        newurl: str,
    ) -> None:
        """Return nothing: follow nowhere."""


def _get_models(base: str, api_key: str | None) -> Any:
    """Return what the server answers to GET /v1/models, parsed; ask no proxy and no other host.

    Raises:
        OSError, HTTPException: it does not answer.
        ValueError: the answer is no JSON.
    """
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    request = urllib.request.Request(f"{base}/v1/models", headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects)
    with opener.open(request, timeout=_TIMEOUT_S) as response:
        return json.loads(response.read(_MAX_ANSWER_BYTES))


def _choose(answer: Any, wanted: str | None) -> tuple[str, int | None] | None:
    """Return a model that the server lists, the wanted one or the first, and its context."""
    listed = answer.get("data") if isinstance(answer, dict) else None
    models: list[tuple[str, int | None]] = []
    for entry in listed if isinstance(listed, list) else []:
        name = entry.get("id") if isinstance(entry, dict) else None
        if isinstance(name, str) and name.strip() and name.isprintable():
            window = entry.get("max_model_len")
            sensible = isinstance(window, int) and not isinstance(window, bool) and window > 0
            models.append((name.strip(), window if sensible else None))
    named = [model for model in models if model[0] == wanted]
    return next(iter(named or models), None)
