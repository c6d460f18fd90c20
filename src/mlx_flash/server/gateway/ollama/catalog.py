"""What Ollama's clients ask about models: which there are, what they can, which are loaded."""

import hashlib
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from ...messages import ModelCard
from ..backend import backend_of, card_of
from .answers import Problem, now
from .asked import NameBody

API_VERSION = "0.14.0"
"""The Ollama whose API is spoken here. Clients take 0.13.4 for the first with /v1/responses."""

_SINCE = now()  # nobody knows when the model was made: it is here since the server is
_FOREVER = "9999-12-31T23:59:59Z"
ERRORS: dict[int | str, dict[str, Any]] = {"4XX": {"model": Problem}, "5XX": {"model": Problem}}

router = APIRouter()


class Version(BaseModel):
    """A version of Ollama."""

    version: str


class Details(BaseModel):
    """What kind of model it is."""

    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class Listed(BaseModel):
    """A model that is there."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details


class Loaded(BaseModel):
    """A model in memory."""

    name: str
    model: str
    size: int
    digest: str
    details: Details
    expires_at: str
    size_vram: int
    context_length: int


class Tags(BaseModel):
    """The models that are there."""

    models: list[Listed]


class Processes(BaseModel):
    """The models in memory."""

    models: list[Loaded]


class Shown(BaseModel):
    """All about a model."""

    model_config = ConfigDict(protected_namespaces=())

    license: str
    modelfile: str
    parameters: str
    template: str
    details: Details
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str


class ShowBody(NameBody):
    """The body of /api/show."""

    verbose: bool | None = Field(None)


@router.head("/api/version", include_in_schema=False)
@router.get("/api/version")
async def version() -> Version:
    """Return the version of Ollama that this is like; /version has this server's own."""
    return Version(version=API_VERSION)


@router.head("/api/tags", include_in_schema=False)
@router.get("/api/tags")
async def tags(request: Request) -> Tags:
    """Return the model, once it is loaded."""
    card = backend_of(request).card
    if card is None:
        return Tags(models=[])
    listed = Listed(
        name=card.name,
        model=card.name,
        modified_at=_SINCE,
        size=card.size_bytes,
        digest=_digest(card),
        details=_details(card),
    )
    return Tags(models=[listed])


@router.get("/api/ps")
async def ps(request: Request) -> Processes:
    """Return the model with the memory that it takes, once it is loaded."""
    backend = backend_of(request)
    card = backend.card
    if card is None:
        return Processes(models=[])
    size = card.resident_bytes + card.slot_bytes
    if backend.snapshot is not None:
        size = backend.snapshot.model_bytes
    loaded = Loaded(
        name=card.name,
        model=card.name,
        size=size,
        digest=_digest(card),
        details=_details(card),
        expires_at=_FOREVER,
        size_vram=0 if card.backend == "cpu" else size,
        context_length=card.context_tokens,
    )
    return Processes(models=[loaded])


@router.post("/api/show", responses=ERRORS)
async def show(request: Request, body: ShowBody) -> Shown:
    """Return what is known of the model, by whatever name it is asked for."""
    card = card_of(backend_of(request))
    arch = card.model_type
    capabilities = ["completion"]
    if card.has_tools:
        capabilities.append("tools")
    if card.has_thinking:
        capabilities.append("thinking")
    info = {
        "general.architecture": arch,
        "general.basename": card.name,
        "general.parameter_count": card.num_parameters,
        f"{arch}.context_length": card.context_tokens,
        f"{arch}.expert_count": card.experts_per_layer,
        f"{arch}.expert_used_count": card.top_k,
    }
    return Shown(
        license="",
        modelfile=f"FROM {card.name}\n",
        parameters="",
        template=card.chat_template,
        details=_details(card),
        model_info=info,
        capabilities=capabilities,
        modified_at=_SINCE,
    )


def _details(card: ModelCard) -> Details:
    return Details(
        parent_model="",
        format="safetensors",
        family=card.model_type,
        families=[card.model_type],
        parameter_size=_short(card.num_parameters),
        quantization_level=card.quantization,
    )


def _digest(card: ModelCard) -> str:
    """Return what tells this model from others: clients expect a SHA-256, and show its start."""
    return hashlib.sha256(f"{card.name} {card.size_bytes}".encode()).hexdigest()


def _short(number: int) -> str:
    """Return a number of parameters as people say it, such as 30.5B."""
    for size, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return str(number)
