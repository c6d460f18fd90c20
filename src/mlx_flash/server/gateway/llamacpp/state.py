"""GET /props and /slots: what the server runs, and how busy it is.

A slot is a place in the batch here, not a place for an expert.
"""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel

from .... import __version__
from ...messages import ModelCard
from ..backend import RequestError, backend_of, card_of

RANDOM_SEED = 2**32 - 1
"""What llama.cpp's clients send for no seed of their own, as they do -1."""

router = APIRouter()


class Fault(BaseModel):
    """What went wrong."""

    code: int
    message: str
    type: str


class Problem(BaseModel):
    """An error."""

    error: Fault


ERRORS: dict[int | str, dict[str, Any]] = {"4XX": {"model": Problem}, "5XX": {"model": Problem}}


class Slot(BaseModel):
    """A place in the batch."""

    id: int
    id_task: int
    n_ctx: int
    speculative: bool
    is_processing: bool
    params: dict[str, Any]


class Modalities(BaseModel):
    """What else the model takes."""

    vision: bool
    audio: bool


class Props(BaseModel):
    """What the server runs."""

    default_generation_settings: Slot
    total_slots: int
    model_alias: str
    model_path: str
    chat_template: str
    chat_template_caps: dict[str, bool]
    modalities: Modalities
    bos_token: str
    eos_token: str
    build_info: str
    is_sleeping: bool


@router.get("/props", responses=ERRORS)
async def props(request: Request) -> Props:
    """Return what the server runs; `model_path` is the model's name, never a path."""
    card = card_of(backend_of(request))
    return Props(
        default_generation_settings=_slot(card, 0, False),
        total_slots=card.max_batch,
        model_alias=card.name,
        model_path=card.name,
        chat_template=card.chat_template,
        chat_template_caps={
            "supports_tools": card.has_tools,
            "supports_tool_calls": card.has_tools,
            "supports_system_role": True,
        },
        modalities=Modalities(vision=False, audio=False),
        bos_token="",
        eos_token="",
        build_info=f"mlx-flash {__version__}",
        is_sleeping=False,
    )


@router.get("/slots", responses=ERRORS)
async def slots(request: Request, fail_on_no_slot: str = "") -> list[Slot]:
    """Return the places in the batch; 503 when none is free and `fail_on_no_slot` asks for it."""
    backend = backend_of(request)
    card = card_of(backend)
    running = min(backend.snapshot.running if backend.snapshot else 0, card.max_batch)
    if fail_on_no_slot not in ("", "0", "false") and running == card.max_batch:
        raise RequestError("unavailable", "no slot is free: try again in a while.")
    return [_slot(card, number, number < running) for number in range(card.max_batch)]


def _slot(card: ModelCard, number: int, is_busy: bool) -> Slot:
    """Return a slot; its params say what holds for a request that says nothing of them."""
    params = {
        "n_predict": -1,
        "max_tokens": -1,
        "seed": RANDOM_SEED,
        "repeat_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop": [],
        "stream": False,
        "n_probs": 0,
        "grammar": "",
        "samplers": ["penalties", "top_p", "min_p", "top_k", "temperature"],
    }
    return Slot(
        id=number,
        id_task=-1,
        n_ctx=card.context_tokens,
        speculative=False,
        is_processing=is_busy,
        params=params,
    )
