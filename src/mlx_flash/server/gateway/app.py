"""The web application: which routes there are, and how their errors are worded."""

import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from ... import __version__
from ..options import AccessOptions
from . import anthropic, dashboard, health, llamacpp, metrics, models, ollama, openai, responses
from .access import Access
from .backend import STATUS, Backend, RequestError
from .bodies import Bodies
from .errors import error_response

_ROUTERS = (health, models, openai, responses, anthropic, ollama, llamacpp, metrics, dashboard)


def create_app(
    backend: Backend,
    access: AccessOptions,
    lifespan: Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]] | None = None,
) -> FastAPI:
    """Return the application that answers with `backend`, for those whom `access` lets in."""
    app = FastAPI(
        title="MLX-Flash",
        version=__version__,
        description="OpenAI, Anthropic and Ollama APIs of a model larger than memory.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan or _nothing,
    )
    app.state.backend = backend
    app.state.access = access
    app.state.started_s = time.monotonic()
    metrics.watch(app, backend)
    app.state.responses = responses.Store()
    for module in _ROUTERS:
        app.include_router(module.router)
    app.add_exception_handler(RequestError, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_body)
    app.add_exception_handler(HTTPException, _refuse_http)
    app.add_exception_handler(Exception, _fail)
    app.add_middleware(Bodies, max_bytes=access.max_body_bytes)
    app.add_middleware(Access, options=access)
    return app


@contextlib.asynccontextmanager
async def _nothing(app: FastAPI) -> AsyncIterator[None]:
    yield


def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error_response(request.url.path, error)


def _refuse_body(request: Request, error: Exception) -> Response:
    """Word what pydantic found wrong as one sentence about the first field."""
    assert isinstance(error, RequestValidationError)
    return error_response(request.url.path, invalid_body(error.errors()))


def invalid_body(problems: Any) -> RequestError:
    """Return the error that says which field of a body is wrong first, and how."""
    problem = problems[0]
    place = [str(part) for part in problem["loc"] if part not in ("body", "query", "path")]
    field = ".".join(place)
    if problem["type"] == "json_invalid" or (problem["type"] == "missing" and not field):
        return RequestError("invalid", "the body is not valid JSON: send a JSON object.")
    if not field and problem["type"] in ("model_attributes_type", "dict_type", "model_type"):
        return RequestError("invalid", "the body is no JSON object: send one.")
    what = str(problem["msg"]).removeprefix("Value error, ")
    where = field or "body"
    return RequestError("invalid", f"{where}: {what[:1].lower()}{what[1:]}.", where)


def _refuse_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 404:
        known = RequestError("not_found", f"there is nothing at {request.method} {path[:100]}.")
    elif error.status_code == 405:
        known = RequestError("not_allowed", f"{path[:100]} does not take {request.method}.")
    elif error.status_code == 400:  # JSON too deep to read, and the like
        known = RequestError("invalid", "the body cannot be read: send a JSON object.")
    else:
        kinds = [kind for kind, status in STATUS.items() if status == error.status_code]
        known = RequestError(kinds[0] if kinds else "invalid", str(error.detail))
    response = error_response(path, known)
    response.headers.update(error.headers or {})
    return response


def _fail(request: Request, error: Exception) -> Response:
    """Answer for a fault of ours; the server's log has the trace, the client has a sentence."""
    return error_response(
        request.url.path,
        RequestError("internal", "the server has a fault; its log says more."),
    )
