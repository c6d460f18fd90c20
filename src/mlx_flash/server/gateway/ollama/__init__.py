"""The API of Ollama, under /api: what its clients list, ask and probe."""

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse

from . import catalog, changes, generation

router = APIRouter(tags=["ollama"])
router.include_router(catalog.router)
router.include_router(generation.router)
router.include_router(changes.router)


def running() -> PlainTextResponse:
    """Return what Ollama answers at `/`, by which its clients know that it is there."""
    return PlainTextResponse("Ollama is running")
