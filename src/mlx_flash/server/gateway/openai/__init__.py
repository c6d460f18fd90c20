"""The OpenAI API: chats, completions, and a refusal of embeddings."""

from fastapi import APIRouter

from . import chat, completions, embeddings

router = APIRouter(tags=["openai"])
for _module in (chat, completions, embeddings):
    router.include_router(_module.router)
