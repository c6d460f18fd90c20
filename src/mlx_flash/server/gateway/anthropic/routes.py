"""Routes of the Anthropic API."""

import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from ...messages import Finished, Piece, ToolCall
from ..backend import Answer, RequestError, backend_of
from ..collected import collect
from ..errors import anthropic_error
from ..streams import ACCEPT_S, KEEP_ALIVE_S, begun, encode, event_stream, sse, unless_gone
from .events import PING, Blocks, beginning
from .prompts import generate_of, prompt_of
from .replies import CountReply, ErrorReply, MessageReply, Usage, message_of, new_id
from .requests import CountBody, MessageBody

router = APIRouter(tags=["anthropic"])

_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorReply, "description": "The request is wrong, or comes too soon."},
    "5XX": {"model": ErrorReply, "description": "The server cannot answer."},
}
_EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["event", "data"],
}
_MESSAGE: dict[int | str, dict[str, Any]] = {
    200: {
        "model": MessageReply,
        "description": "The message, or its events.",
        "content": {"text/event-stream": {"schema": _EVENT}},
    },
    **_ERRORS,
}
_COUNT: dict[int | str, dict[str, Any]] = {200: {"model": CountReply}, **_ERRORS}


@router.post("/v1/messages", response_model=None, responses=_MESSAGE)
async def create_message(body: MessageBody, request: Request) -> Response:
    """Continue a conversation: answer with a message, as a whole or as events."""
    backend = backend_of(request)
    model = body.model or (backend.card.name if backend.card else "")
    shows = body.thinking is None or body.thinking.display != "omitted"
    answer = backend.submit(generate_of(body))
    if body.stream:
        events = await begun(request, message_events(answer, model, shows))
        response: Response = event_stream(events)
    else:
        got = await unless_gone(request, collect(answer))
        response = _json(message_of(got, model, shows))
    response.headers["request-id"] = new_id("req")
    return response


@router.post("/v1/messages/count_tokens", response_model=None, responses=_COUNT)
async def count_tokens(body: CountBody, request: Request) -> Response:
    """Count the tokens of a conversation as the model would read it."""
    counted = await backend_of(request).count(prompt_of(body))
    response = _json(CountReply(input_tokens=counted.num_tokens))
    response.headers["request-id"] = new_id("req")
    return response


def _json(reply: MessageReply | CountReply) -> Response:
    return Response(encode(reply.model_dump()), media_type="application/json")


async def message_events(
    answer: Answer, model: str, show_thinking: bool, clock: Callable[[], float] = time.monotonic
) -> AsyncGenerator[bytes, None]:
    """Yield the events of a message, after an empty chunk once the request is accepted.

    Whenever nothing was sent for some time, be it that the model thinks in secret, there is a ping.

    Raises:
        RequestError: the request is refused; later it is an event.
    """
    async with answer:
        tokens = await answer.accepted(ACCEPT_S)
        yield b""
        yield beginning(MessageReply(model=model, usage=Usage(input_tokens=tokens or 0)))
        blocks = Blocks(show_thinking)
        sent = clock()
        try:
            async for event in answer.events(KEEP_ALIVE_S):
                data = b""
                if isinstance(event, Piece):
                    data = blocks.add(event)
                elif isinstance(event, ToolCall):
                    data = blocks.call(event)
                elif isinstance(event, Finished):
                    data = blocks.end(event)
                if not data and (event is None or clock() - sent >= KEEP_ALIVE_S):
                    data = PING
                if data:
                    sent = clock()
                    yield data
        except RequestError as error:
            yield sse(anthropic_error(error), event="error")
