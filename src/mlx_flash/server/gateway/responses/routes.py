"""Routes of the OpenAI Responses API."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from ..backend import RequestError, backend_of
from ..streams import encode, event_stream, unless_gone
from .conversation import prompt_of, question_of
from .items import Item, items_of
from .request import PromptRequest, ResponseRequest
from .resource import (
    DeletedResponse,
    ErrorBody,
    InputItems,
    InputTokens,
    ResponseObject,
)
from .running import begin, streamed, whole
from .store import Store
from .tools import Toolbox

router = APIRouter(tags=["responses"])

_Docs = dict[int | str, dict[str, Any]]

_ERRORS: _Docs = {
    status: {"model": ErrorBody} for status in (400, 401, 403, 404, 413, 429, 500, 503, 504)
}
_STREAM: _Docs = {
    200: {
        "model": ResponseObject,
        "description": "The response, or with `stream` the events that it is made by.",
        "content": {"text/event-stream": {}},
    }
}


@router.post("/v1/responses", response_model=None, responses=_ERRORS | _STREAM)
@router.post("/responses", response_model=None, responses=_ERRORS | _STREAM)
async def create(body: ResponseRequest, request: Request) -> Response:
    """Answer a conversation with text, reasoning and calls of tools."""
    backend, store = backend_of(request), _store_of(request)
    items = _conversation(body, store)
    toolbox = Toolbox(body.tools or [])
    choice = toolbox.choose(body.tool_choice)
    question = question_of(body, prompt_of(body, items, toolbox), choice)
    running = begin(body, backend.card, toolbox, choice, items, store)
    answer = backend.submit(question)
    if not body.stream:
        response = await unless_gone(request, whole(answer, running))
        return _json(response.model_dump())
    chunks = streamed(answer, running)
    await anext(chunks)  # raises where the request is refused, while there can be a status
    return event_stream(chunks)


@router.post(
    "/v1/responses/input_tokens",
    response_model=None,
    responses=_ERRORS | {200: {"model": InputTokens}},
)
async def count(body: PromptRequest, request: Request) -> Response:
    """Count the tokens that a request for a response would have."""
    toolbox = Toolbox(body.tools or [])
    toolbox.choose(body.tool_choice)
    prompt = prompt_of(body, _conversation(body, _store_of(request)), toolbox)
    counted = await unless_gone(request, backend_of(request).count(prompt))
    return _json(InputTokens(input_tokens=counted.num_tokens).model_dump())


@router.get(
    "/v1/responses/{response_id}",
    response_model=None,
    responses=_ERRORS | {200: {"model": ResponseObject}},
)
async def retrieve(response_id: str, request: Request, stream: bool = False) -> Response:
    """Return a stored response."""
    stored = _store_of(request).get(response_id)
    if stream:
        raise RequestError(
            "invalid",
            "a response is streamed while it is made, only: leave `stream` out.",
            "stream",
        )
    return _json(stored.response)


@router.delete(
    "/v1/responses/{response_id}",
    response_model=None,
    responses=_ERRORS | {200: {"model": DeletedResponse}},
)
async def delete(response_id: str, request: Request) -> Response:
    """Drop a stored response. Those that continue it stay whole."""
    _store_of(request).delete(response_id)
    return _json(DeletedResponse(id=response_id).model_dump())


@router.get(
    "/v1/responses/{response_id}/input_items",
    response_model=None,
    responses=_ERRORS | {200: {"model": InputItems}},
)
async def input_items(
    response_id: str,
    request: Request,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> Response:
    """List the conversation that a stored response answers, the latest item first."""
    items = _store_of(request).get(response_id).input_items
    items = items if order == "asc" else items[::-1]
    if after is not None:
        places = [place for place, item in enumerate(items) if item["id"] == after]
        if not places:
            raise RequestError("invalid", f"after: there is no item {after[:100]!r}.", "after")
        items = items[places[0] + 1 :]
    page = items[:limit]
    return _json(
        InputItems(
            data=page,
            first_id=page[0]["id"] if page else "",
            last_id=page[-1]["id"] if page else "",
            has_more=len(items) > limit,
        ).model_dump()
    )


@router.post(
    "/v1/responses/{response_id}/cancel",
    response_model=None,
    responses=_ERRORS | {200: {"model": ResponseObject}},
)
async def cancel(response_id: str, request: Request) -> Response:
    """Say why a response cannot be cancelled: none is made in the background."""
    _store_of(request).get(response_id)
    raise RequestError(
        "invalid",
        "only a response in the background can be cancelled: to end one, close its connection.",
    )


def _store_of(request: Request) -> Store:
    store: Store = request.app.state.responses
    return store


def _conversation(body: PromptRequest, store: Store) -> list[Item]:
    """Return the items to answer: those of the response that is continued, and the new ones."""
    before: list[Item] = []
    if body.previous_response_id is not None:
        before = store.get(body.previous_response_id, "previous_response_id").items
    elif body.input is None:
        raise RequestError("invalid", "input: send a string or a list of items.", "input")
    return [*before, *items_of(body.input or [], store.finder())]


def _json(body: dict[str, Any]) -> Response:
    return Response(encode(body), media_type="application/json")
