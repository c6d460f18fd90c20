"""POST /api/chat and /api/generate."""

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from ...messages import Finished, Generate, Piece, Prefilled, ToolCall
from ..backend import Answer, Backend, RequestError, backend_of
from ..collected import collect
from ..errors import ollama_error
from ..streams import ACCEPT_S, KEEP_ALIVE_S, begun, encode, line_stream, unless_gone
from .answers import ChatPart, GeneratePart, Lines, Problem
from .asked import Asked, GenerateBody, OllamaChatBody
from .prompts import chat_prompt, text_prompt, wanted

router = APIRouter()

_LINES = {"schema": {"type": "string", "description": "Such an object on each line."}}


def _described(part: type[ChatPart] | type[GeneratePart]) -> dict[int | str, dict[str, Any]]:
    return {
        200: {"model": part, "content": {"application/x-ndjson": _LINES}},
        "4XX": {"model": Problem},
        "5XX": {"model": Problem},
    }


@router.post("/api/chat", response_model=None, responses=_described(ChatPart))
async def chat(request: Request, body: OllamaChatBody) -> Response:
    """Answer a conversation, line by line or, with `stream` false, at once."""
    backend = backend_of(request)
    lines = Lines(_name(body, backend), "chat")
    if not body.messages:
        return _no_answer(body, backend, lines)
    prompt = chat_prompt(body, backend.card)
    return await _answer(request, body, wanted(body, prompt), lines)


@router.post("/api/generate", response_model=None, responses=_described(GeneratePart))
async def generate(request: Request, body: GenerateBody) -> Response:
    """Answer a prompt, line by line or, with `stream` false, at once."""
    backend = backend_of(request)
    lines = Lines(_name(body, backend), "generate")
    if not body.prompt and not body.suffix:
        return _no_answer(body, backend, lines)
    prompt = text_prompt(body, backend.card)
    return await _answer(request, body, wanted(body, prompt), lines)


def _name(body: Asked, backend: Backend) -> str:
    return body.model or (backend.card.name if backend.card else "")


def _no_answer(body: Asked, backend: Backend, lines: Lines) -> Response:
    """Answer a request to load or unload the model, which is there as long as the server is."""
    if backend.state != "ready":
        raise RequestError("unavailable", "the model is not loaded: try again in a while.")
    return _json(lines.no_answer("unload" if body.wants_unload else "load"))


async def _answer(request: Request, body: Asked, ask: Generate, lines: Lines) -> Response:
    answer = backend_of(request).submit(ask)
    if body.stream is False:
        return _json(lines.whole(await unless_gone(request, collect(answer))))
    return line_stream(await begun(request, _stream(answer, lines)))


async def _stream(answer: Answer, lines: Lines) -> AsyncGenerator[bytes, None]:
    """Yield nothing when the request is accepted, then line by line."""
    async with answer:
        await answer.accepted(ACCEPT_S)
        yield b""
        try:
            async for event in answer.events(KEEP_ALIVE_S):
                if isinstance(event, Piece):
                    yield _line(lines.piece(event))
                elif isinstance(event, ToolCall):
                    yield _line(lines.call(event))
                elif isinstance(event, Finished):
                    yield _line(lines.end(event))
                elif event is None or isinstance(event, Prefilled):
                    yield _line(lines.nothing())
        except RequestError as error:
            yield _line(ollama_error(error))


def _line(body: dict[str, Any]) -> bytes:
    return encode(body) + b"\n"


def _json(body: dict[str, Any]) -> Response:
    return Response(encode(body), media_type="application/json")
