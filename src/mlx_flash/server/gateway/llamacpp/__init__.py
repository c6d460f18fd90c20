"""The API of llama.cpp's server, outside /v1: its state, tokens and completions of text."""

from fastapi import APIRouter

from . import completion, state, tokens

router = APIRouter(tags=["llama.cpp"])
router.include_router(state.router)
router.include_router(tokens.router)
router.include_router(completion.router)
