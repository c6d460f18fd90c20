"""The route of embeddings, which the models served here do not give."""

from typing import NoReturn

from fastapi import APIRouter

from ..backend import RequestError
from .replies import ERRORS

router = APIRouter()


@router.post("/v1/embeddings", status_code=501, response_model=None, responses=ERRORS)
@router.post("/embeddings", include_in_schema=False, response_model=None)
async def embeddings() -> NoReturn:
    """Say that there are none."""
    raise RequestError(
        "unsupported", "this model writes text and gives no embeddings: ask an embedding model."
    )
