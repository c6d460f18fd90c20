"""POST /tokenize, /detokenize and /apply-template, as llama.cpp and, for two of them, vLLM ask."""

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from ...messages import Prompt, TextPrompt
from ..backend import Backend, RequestError, backend_of
from ..bounds import Count
from ..streams import unless_gone
from .chats import Chat, chat_prompt
from .state import ERRORS

router = APIRouter()


class TokenizeBody(Chat):
    """`content` as llama.cpp has it, or `prompt` or `messages` as vLLM has them."""

    content: str | None = None
    prompt: str | None = None
    add_special: bool | None = None
    add_special_tokens: bool | None = None
    with_pieces: bool | None = None
    return_token_strs: bool | None = None


class Token(BaseModel):
    """A token; its piece is bytes where these are no text of their own."""

    id: int
    piece: str | list[int]


class Tokens(BaseModel):
    """Tokens, with what vLLM's clients want to know, too."""

    tokens: list[int] | list[Token]
    count: int
    max_model_len: int | None
    token_strs: list[str] | None


class DetokenizeBody(BaseModel):
    """Tokens whose text is wanted."""

    model_config = ConfigDict(extra="allow")

    tokens: Annotated[list[Count], Field(validation_alias=AliasChoices("tokens", "token_ids"))]


class Text(BaseModel):
    """The text of tokens, as llama.cpp and as vLLM name it."""

    content: str
    prompt: str


class Applied(BaseModel):
    """A chat as the model reads it."""

    prompt: str


@router.post("/tokenize", responses=ERRORS)
async def tokenize(request: Request, body: TokenizeBody) -> Tokens:
    """Return the tokens of a text or of a chat."""
    backend = backend_of(request)
    prompt, add_special = _asked(body)
    got = await unless_gone(request, backend.tokenize(prompt, add_special))
    tokens: list[int] | list[Token] = got.tokens
    if body.with_pieces:
        tokens = [
            Token(id=i, piece=_piece(data)) for i, data in zip(got.tokens, got.pieces, strict=True)
        ]
    texts = [data.decode("utf-8", "replace") for data in got.pieces]
    return Tokens(
        tokens=tokens,
        count=len(got.tokens),
        max_model_len=_context(backend),
        token_strs=texts if body.return_token_strs else None,
    )


@router.post("/detokenize", responses=ERRORS)
async def detokenize(request: Request, body: DetokenizeBody) -> Text:
    """Return the text of tokens."""
    got = await unless_gone(request, backend_of(request).detokenize(body.tokens))
    return Text(content=got.text, prompt=got.text)


@router.post("/apply-template", responses=ERRORS)
async def apply_template(request: Request, body: Chat) -> Applied:
    """Return a chat as the model reads it, without an answer."""
    got = await unless_gone(request, backend_of(request).render(chat_prompt(body)))
    return Applied(prompt=got.text)


def _asked(body: TokenizeBody) -> tuple[Prompt, bool]:
    """Return what is to be tokenized, and whether special tokens go first.

    llama.cpp leaves those out, vLLM puts them before a text; templates write their own.
    """
    if body.content is not None:
        return TextPrompt(text=body.content), bool(body.add_special)
    if body.prompt is not None:
        return TextPrompt(text=body.prompt), body.add_special_tokens is not False
    if body.messages is not None:
        return chat_prompt(body), bool(body.add_special_tokens)
    raise RequestError("invalid", "content: there is none, send a text.", "content")


def _piece(data: bytes) -> Any:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


def _context(backend: Backend) -> int | None:
    return backend.card.context_tokens if backend.card else None
