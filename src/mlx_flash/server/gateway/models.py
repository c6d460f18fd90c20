"""The model that is served: one object that holds what each client reads of it."""

from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel

from ..messages import ModelCard
from .backend import Backend, RequestError, backend_of
from .openai.replies import ERRORS

router = APIRouter(tags=["models"])

_UNKNOWN_TIME = "1970-01-01T00:00:00Z"
"""When a model was made is not known; the epoch is what APIs say then, and it stays the same."""

_STATUS: dict[str, Literal["loaded", "loading", "failed", "unloaded"]] = {
    "ready": "loaded",
    "loading": "loading",
    "failed": "failed",
    "stopping": "unloaded",
}


class Permission(BaseModel):
    """What may be done with a model, as vLLM tells it."""

    id: str
    object: Literal["model_permission"] = "model_permission"
    created: int = 0
    allow_create_engine: bool = False
    allow_sampling: bool = True
    allow_logprobs: bool = True
    allow_search_indices: bool = False
    allow_view: bool = True
    allow_fine_tuning: bool = False
    organization: str = "*"
    group: str | None = None
    is_blocking: bool = False


class Architecture(BaseModel):
    """What a model reads and writes, as llama.cpp tells it."""

    input_modalities: list[str] = ["text"]
    output_modalities: list[str] = ["text"]


class Meta(BaseModel):
    """A model's size, as llama.cpp tells it."""

    n_ctx: int
    n_ctx_train: int
    n_params: int
    size: int


class Status(BaseModel):
    """Whether a model answers, as llama.cpp tells it."""

    value: Literal["loaded", "loading", "failed", "unloaded"]


class Model(BaseModel):
    """A model: of OpenAI, with vLLM's root to permission, llama.cpp's meta to status, Anthropic's.

    `max_model_len`, `max_input_tokens` and `max_tokens` are what one request may have.
    """

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "mlx-flash"
    root: str
    parent: str | None = None
    max_model_len: int
    permission: list[Permission]
    meta: Meta
    architecture: Architecture = Architecture()
    status: Status
    type: Literal["model"] = "model"
    display_name: str
    created_at: str = _UNKNOWN_TIME
    lifecycle: Literal["active"] = "active"
    max_input_tokens: int
    max_tokens: int


class ModelList(BaseModel):
    """All models, with the marks of a single page."""

    object: Literal["list"] = "list"
    data: list[Model]
    has_more: bool = False
    first_id: str | None
    last_id: str | None


@router.get("/v1/models", responses=ERRORS)
@router.get("/models", include_in_schema=False)
async def list_models(request: Request) -> ModelList:
    """Return the model, under its name and its alias.

    While it is being loaded that is an error, which clients try again; they would keep an empty
    list.
    """
    models = _models(backend_of(request))
    return ModelList(data=models, first_id=models[0].id, last_id=models[-1].id)


@router.get("/v1/models/{model_id:path}", responses=ERRORS)
async def show_model(request: Request, model_id: str) -> Model:
    """Return the model, when it goes by this name."""
    for model in _models(backend_of(request)):
        if model.id == model_id:
            return model
    raise RequestError("not_found", f"there is no model {model_id[:100]!r} here.", "model")


def names_of(card: ModelCard) -> list[str]:
    """Return the names that a model goes by.

    Claude Code offers only models whose names begin with claude, so there is one of those.
    """
    return [card.name] if card.name.startswith("claude") else [card.name, f"claude-{card.name}"]


def _models(backend: Backend) -> list[Model]:
    """Return the model once for each of its names.

    Raises:
        RequestError: it has not been loaded yet.
    """
    card = backend.card
    if card is None:
        why = "is being loaded, ask again soon" if backend.state == "loading" else "is not there"
        raise RequestError("unavailable", f"the model {why}.")
    return [
        Model(
            id=name,
            root=card.name,
            max_model_len=card.context_tokens,
            permission=[Permission(id=f"modelperm-{name}")],
            meta=Meta(
                n_ctx=card.context_tokens,
                n_ctx_train=card.trained_context_tokens or card.context_tokens,
                n_params=card.num_parameters,
                size=card.size_bytes,
            ),
            status=Status(value=_STATUS[backend.state]),
            display_name=card.name,
            max_input_tokens=card.context_tokens,
            max_tokens=card.context_tokens,
        )
        for name in names_of(card)
    ]
