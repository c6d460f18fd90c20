"""Errors in the words of each API: the same `RequestError` has four shapes."""

import uuid
from typing import Any

from fastapi.responses import JSONResponse

from .backend import ErrorKind, RequestError

_OPENAI: dict[ErrorKind, tuple[str, str | None]] = {
    "invalid": ("invalid_request_error", None),
    "context_length": ("invalid_request_error", "context_length_exceeded"),
    "unauthorized": ("authentication_error", "invalid_api_key"),
    "forbidden": ("permission_error", None),
    "not_found": ("invalid_request_error", "not_found"),
    "not_allowed": ("invalid_request_error", "method_not_allowed"),
    "too_large": ("invalid_request_error", "request_too_large"),
    "overloaded": ("rate_limit_error", "rate_limit_exceeded"),
    "internal": ("server_error", None),
    "unsupported": ("not_supported_error", None),
    "unavailable": ("unavailable_error", None),
    "timeout": ("timeout_error", None),
}

_ANTHROPIC: dict[ErrorKind, str] = {
    "unauthorized": "authentication_error",
    "forbidden": "permission_error",
    "not_found": "not_found_error",
    "too_large": "request_too_large",
    "overloaded": "rate_limit_error",
    "internal": "api_error",
    "unsupported": "invalid_request_error",
    "unavailable": "overloaded_error",
    "timeout": "timeout_error",
}

_OPENAI_PATHS = ("/chat/completions", "/completions", "/embeddings", "/models", "/responses")
"""Those without /v1 before them."""


def openai_error(error: RequestError) -> dict[str, Any]:
    """Return the body of an error under /v1."""
    kind, code = _OPENAI[error.kind]
    if error.kind == "not_found" and error.param == "model":
        code = "model_not_found"
    return {
        "error": {"message": error.message, "type": kind, "param": error.param, "code": code},
    }


def anthropic_error(error: RequestError) -> dict[str, Any]:
    """Return the body of an error under /v1/messages."""
    kind = _ANTHROPIC.get(error.kind, "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def ollama_error(error: RequestError) -> dict[str, Any]:
    """Return the body of an error under /api."""
    return {"error": error.message}


def llamacpp_error(error: RequestError) -> dict[str, Any]:
    """Return the body of an error elsewhere, as llama.cpp's server words it."""
    kind, _ = _OPENAI[error.kind]
    return {"error": {"code": error.status, "message": error.message, "type": kind}}


def error_response(path: str, error: RequestError) -> JSONResponse:
    """Return the response for an error on a path, in the shape of the API that it belongs to."""
    if path.startswith("/v1/messages"):
        body = anthropic_error(error)
    elif path.startswith("/api/"):
        body = ollama_error(error)
    elif path.startswith("/v1/") or path in _OPENAI_PATHS:
        body = openai_error(error)
    else:
        body = llamacpp_error(error)
    headers = {}
    if path.startswith("/v1/messages"):
        headers["request-id"] = f"req_{uuid.uuid4().hex[:24]}"
    if error.kind == "unauthorized":
        headers["WWW-Authenticate"] = "Bearer"
    if error.kind in ("overloaded", "unavailable"):
        headers["Retry-After"] = "5"
    return JSONResponse(body, status_code=error.status, headers=headers)
