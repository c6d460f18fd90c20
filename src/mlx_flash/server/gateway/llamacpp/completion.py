"""POST /completion: text that goes to the model as it is, and on."""

import time
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel

from ...messages import Finished, Piece, Prefilled, Started, TokenLogprob
from ..backend import Answer, RequestError, backend_of, card_of
from ..collected import collect
from ..errors import llamacpp_error
from ..streams import (
    ACCEPT_S,
    KEEP_ALIVE_S,
    begun,
    comment,
    encode,
    event_stream,
    sse,
    unless_gone,
)
from ..timings import Timings, timings_of
from .asked import LlamaCompletionBody, wanted
from .state import ERRORS

router = APIRouter()

_LEAST_LOGPROB = -9999.0
_EVENTS: dict[str, Any] = {"text/event-stream": {}}


class Completion(BaseModel):
    """A completion, or the last event of one."""

    index: int
    content: str
    tokens: list[int]
    id_slot: int
    stop: bool
    model: str
    prompt: str
    tokens_predicted: int
    tokens_evaluated: int
    tokens_cached: int
    truncated: bool
    stop_type: str
    stopping_word: str
    has_new_line: bool
    generation_settings: dict[str, Any]
    timings: Timings
    completion_probabilities: list[dict[str, Any]] | None = None


@router.post(
    "/completion",
    response_model=None,
    responses={200: {"model": Completion, "content": _EVENTS}, **ERRORS},
)
async def completion(request: Request, body: LlamaCompletionBody) -> Response:
    """Go on where a text ends, at once or, with `stream`, event by event."""
    backend = backend_of(request)
    part = _Parts(body, body.model or card_of(backend).name)
    answer = backend.submit(wanted(body))
    if body.stream:
        return event_stream(await begun(request, _stream(answer, part)))
    got = await unless_gone(request, collect(answer))
    whole = part.end(got.end, got.reasoning + got.text, got.logprobs)
    return Response(encode(whole), media_type="application/json")


async def _stream(answer: Answer, part: "_Parts") -> AsyncGenerator[bytes, None]:
    """Yield nothing when the request is accepted, then event by event."""
    async with answer:
        await answer.accepted(ACCEPT_S)
        yield b""
        try:
            async for event in answer.events(KEEP_ALIVE_S):
                if isinstance(event, Started):
                    part.cached_tokens = event.cached_tokens
                elif isinstance(event, Piece) and event.kind != "prompt":
                    yield sse(part.piece(event))
                elif isinstance(event, Finished):
                    yield sse(part.end(event, "", []))
                elif isinstance(event, Prefilled) and part.body.return_progress:
                    yield sse(part.progress(event))
                elif event is None or isinstance(event, Prefilled):
                    yield comment("working")
        except RequestError as error:
            yield sse(llamacpp_error(error))


class _Parts:
    """Writes the events of one completion."""

    def __init__(self, body: LlamaCompletionBody, model: str) -> None:
        self.body = body
        self.cached_tokens = 0
        self._model = model
        self._began_s = time.monotonic()
        self._num_tokens = 0
        self._has_new_line = False

    def piece(self, piece: Piece) -> dict[str, Any]:
        """Return the event of a piece."""
        self._num_tokens += piece.num_tokens
        self._has_new_line |= "\n" in piece.text
        return self._part(piece.text, piece.logprobs)

    def progress(self, event: Prefilled) -> dict[str, Any]:
        """Return the event that says how far the prompt is computed."""
        progress = {
            "total": event.total,
            "cache": self.cached_tokens,
            "processed": event.done,
            "time_ms": round((time.monotonic() - self._began_s) * 1000),
        }
        return {**self._part("", []), "prompt_progress": progress}

    def end(self, end: Finished, text: str, logprobs: list[TokenLogprob]) -> dict[str, Any]:
        """Return the last event, or with its text and log-probabilities the whole completion."""
        kind = "limit" if end.reason in ("length", "context") else "eos"
        return {
            **self._part(text, logprobs),
            "stop": True,
            "model": self._model,
            "prompt": self.body.prompt if isinstance(self.body.prompt, str) else "",
            "tokens_predicted": end.completion_tokens,
            "tokens_evaluated": end.prompt_tokens,
            "tokens_cached": end.cached_tokens,
            "truncated": end.reason == "context",
            "stop_type": kind if end.stop_text is None else "word",
            "stopping_word": end.stop_text or "",
            "has_new_line": self._has_new_line or "\n" in text,
            "generation_settings": self._settings(),
            "timings": timings_of([end]).model_dump(),
        }

    def _part(self, text: str, logprobs: list[TokenLogprob]) -> dict[str, Any]:
        part: dict[str, Any] = {
            "index": 0,
            "content": text,
            "tokens": [one.token for one in logprobs] if self.body.return_tokens else [],
            "id_slot": -1,
            "stop": False,
            "tokens_predicted": self._num_tokens,
        }
        if self.body.n_probs and logprobs:
            part["completion_probabilities"] = [_probability(one) for one in logprobs]
        return part

    def _settings(self) -> dict[str, Any]:
        """Return what the request asked for, but for the prompt and what means nothing here."""
        asked = self.body.model_dump(
            include=LlamaCompletionBody.model_fields.keys() - {"prompt", "model"}, exclude_none=True
        )
        return {"model": self._model, **asked}


def _probability(one: TokenLogprob) -> dict[str, Any]:
    return {
        **_token(one.token, one.text, one.data, one.logprob),
        "top_logprobs": [_token(*top) for top in one.top],
    }


def _token(token: int, text: str, data: bytes, logprob: float | None) -> dict[str, Any]:
    value = 0.0 if logprob is None else max(logprob, _LEAST_LOGPROB)
    return {"id": token, "token": text, "bytes": list(data), "logprob": value}
