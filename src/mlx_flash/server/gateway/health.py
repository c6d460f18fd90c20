"""Whether the server answers, and what it is. Needs nothing of the worker."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from ... import __version__
from .backend import backend_of

router = APIRouter(tags=["health"])

_WHY = {
    "loading": "Loading model",
    "failed": "The model cannot be loaded; the server's log says why",
    "stopping": "The server is stopping",
}


@router.get("/health", response_model=None)
@router.get("/v1/health", response_model=None)
async def health(request: Request) -> JSONResponse:
    """Return 200 when answers can be given, 503 while the model is being loaded."""
    state = backend_of(request).state
    if state == "ready":
        return JSONResponse({"status": "ok"})
    error = {"code": 503, "message": _WHY[state], "type": "unavailable_error"}
    return JSONResponse({"status": state, "error": error}, status_code=503)


@router.get("/version", response_model=None)
async def version() -> JSONResponse:
    """Return the version of this server."""
    return JSONResponse({"version": __version__})
