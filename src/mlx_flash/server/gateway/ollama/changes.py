"""What Ollama's clients would change: other models, which this server has none of."""

from collections.abc import AsyncGenerator

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel

from ..backend import RequestError, backend_of, card_of
from ..streams import encode, line_stream
from .asked import NameBody
from .catalog import ERRORS

router = APIRouter()


class Progress(BaseModel):
    """How far a download is."""

    status: str


@router.post(
    "/api/pull",
    response_model=None,
    responses={
        200: {
            "model": Progress,
            "content": {"application/x-ndjson": {"schema": {"type": "string"}}},
        },
        **ERRORS,
    },
)
async def pull(request: Request, body: NameBody) -> Response:
    """Say that the model is there already; others cannot be fetched by clients."""
    card = card_of(backend_of(request))
    name = body.model or ""
    if name.lower().removesuffix(":latest") != card.name.lower().removesuffix(":latest"):
        raise RequestError(
            "not_found",
            f"{name[:100]!r} is not here: this server has {card.name} alone; start another with "
            "mlx-flash serve MODEL.",
            "model",
        )
    if body.stream is False:
        return Response(encode({"status": "success"}), media_type="application/json")
    return line_stream(_pulled())


async def _pulled() -> AsyncGenerator[bytes, None]:
    for status in ("pulling manifest", "verifying sha256 digest", "writing manifest", "success"):
        yield encode({"status": status}) + b"\n"


@router.post("/api/embed", include_in_schema=False)
@router.post("/api/embeddings", include_in_schema=False)
async def embed() -> None:
    """Refuse: the model writes."""
    raise RequestError(
        "unsupported", "this model writes text: ask a server of an embedding model for embeddings."
    )


@router.post("/api/create", include_in_schema=False)
@router.post("/api/copy", include_in_schema=False)
@router.post("/api/push", include_in_schema=False)
@router.delete("/api/delete", include_in_schema=False)
async def change() -> None:
    """Refuse: clients cannot change which model there is."""
    raise RequestError(
        "unsupported",
        "models of this server cannot be made, copied, sent or deleted: start it with another by "
        "mlx-flash serve MODEL.",
    )
