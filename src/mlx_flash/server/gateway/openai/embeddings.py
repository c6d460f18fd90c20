"""The route of embeddings, which the models served here do not give."""

from typing import NoReturn

from fastapi import APIRouter

from ..backend import RequestError

router = APIRouter()


@router.post("/v1/embeddings", include_in_schema=False, response_model=None)
@router.post("/embeddings", include_in_schema=False, response_model=None)
async def embeddings() -> NoReturn:
    """Say that there are none."""
    raise RequestError(
        "unsupported", "this model writes text and gives no embeddings: ask an embedding model."
    )
