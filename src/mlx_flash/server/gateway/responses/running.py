"""A response on its way: as a stream of events, or waited for as a whole."""

import time
from collections.abc import AsyncIterator
from typing import Any

from ...messages import Finished, ModelCard, Sampling
from ..backend import Answer, ErrorKind, RequestError
from ..streams import ACCEPT_S, KEEP_ALIVE_S, sse
from .items import Item, new_id
from .output import Output, StreamEvent
from .request import ResponseRequest
from .resource import (
    IncompleteDetails,
    ReasoningSettings,
    ResponseError,
    ResponseObject,
    TextSettings,
    usage_of,
)
from .store import Store, Stored
from .tools import Choice, Toolbox

_CODES: dict[ErrorKind, str] = {
    "context_length": "context_length_exceeded",
    "overloaded": "rate_limit_exceeded",
    "invalid": "invalid_prompt",
}


class Running:
    """A response that is being made, and kept in `store` once it is complete."""

    def __init__(
        self, response: ResponseObject, output: Output, input_items: list[Item], store: Store
    ) -> None:
        self.response = response
        self.output = output
        self._input_items = input_items
        self._store = store
        self._sent = 0
        self._sent_at_s = time.monotonic()

    def finish(self, end: Finished) -> list[StreamEvent]:
        """Complete the response and store it, where it is to be; return the events that say so."""
        whole = end.reason in ("stop", "tools")
        told = self.output.finish("completed" if whole else "incomplete")
        self.response.status = "completed" if whole else "incomplete"
        self.response.incomplete_details = None if whole else IncompleteDetails()
        self.response.completed_at = int(time.time()) if whole else None
        self.response.output = self.output.items
        self.response.usage = usage_of(end)
        body = self.response.model_dump()
        if self.response.store:
            self._store.save(Stored(body, self._input_items))
        return [*told, {"type": f"response.{self.response.status}", "response": body}]

    def fail(self, error: RequestError) -> list[StreamEvent]:
        """Note why there is no response, but for the items so far; return the event that says so.

        The item under way is not told of as done: a client may take that for the model's word.
        """
        self.output.close("incomplete")
        self.response.status = "failed"
        self.response.output = self.output.items
        code = _CODES.get(error.kind, "server_error")
        self.response.error = ResponseError(code=code, message=error.message)
        return [self.lifecycle("failed")]

    def lifecycle(self, what: str) -> StreamEvent:
        """Return an event that carries the response as it is."""
        return {"type": f"response.{what}", "response": self.response.model_dump()}

    def encoded(self, events: list[StreamEvent]) -> bytes:
        """Return events as they go over the wire, numbered."""
        chunks = []
        for event in events:
            numbered: dict[str, Any] = {"sequence_number": self._sent, **event}
            chunks.append(sse(numbered, event["type"]))
            self._sent += 1
        self._sent_at_s = time.monotonic()
        return b"".join(chunks)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing has been sent for so long that a client may soon give up."""
        return time.monotonic() - self._sent_at_s >= KEEP_ALIVE_S


def begin(
    request: ResponseRequest,
    card: ModelCard | None,
    toolbox: Toolbox,
    choice: Choice,
    input_items: list[Item],
    store: Store,
) -> Running:
    """Return a response of which nothing has been made yet."""
    drawn = card.sampling if card else Sampling()
    summary = request.thinking.summary
    summary = None if summary == "none" else summary
    response = ResponseObject(
        id=new_id("resp"),
        created_at=int(time.time()),
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        max_tool_calls=request.max_tool_calls,
        model=request.model or (card.name if card else ""),
        parallel_tool_calls=request.parallel_tool_calls is not False,
        previous_response_id=request.previous_response_id,
        prompt_cache_key=request.prompt_cache_key,
        reasoning=ReasoningSettings(effort=request.thinking.effort, summary=summary),
        safety_identifier=request.safety_identifier,
        store=request.store is not False,
        temperature=_first(request.temperature, drawn.temperature),
        text=TextSettings(format=request.format.echo()),
        tool_choice=choice.echo,
        tools=toolbox.declared,
        top_logprobs=request.wanted_logprobs or 0,
        top_p=_first(request.top_p, drawn.top_p),
        user=request.user,
        metadata=request.metadata or {},
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
    )
    return Running(response, Output(toolbox, summary is not None), input_items, store)


def _first(wanted: float | None, served: float | None) -> float:
    """Return what is asked for, or what the server does, or what changes nothing."""
    return next((value for value in (wanted, served) if value is not None), 1.0)


async def whole(answer: Answer, running: Running) -> ResponseObject:
    """Return the response once it is complete.

    Raises:
        RequestError: the answer fails.
    """
    end: Finished | None = None
    async with answer:
        async for event in answer.events(KEEP_ALIVE_S):
            running.output.take(event)
            end = event if isinstance(event, Finished) else end
    running.finish(_present(end))
    return running.response


async def streamed(answer: Answer, running: Running) -> AsyncIterator[bytes]:
    """Yield the response as server-sent events, after an empty chunk once the request is accepted.

    A prompt that is too long is told of in the stream, as that is where clients look for it. To
    keep a client waiting the event `response.in_progress` is repeated: some take comments for
    silence.

    Raises:
        RequestError: the request is refused, before the first chunk.
    """
    end: Finished | None = None
    async with answer:
        too_long = await _accept(answer)
        yield b""
        yield running.encoded([running.lifecycle("created"), running.lifecycle("in_progress")])
        try:
            if too_long is not None:
                raise too_long
            async for event in answer.events(KEEP_ALIVE_S):
                told = running.output.take(event)
                if not told and (event is None or running.is_quiet):
                    told = [running.lifecycle("in_progress")]
                if told:
                    yield running.encoded(told)
                end = event if isinstance(event, Finished) else end
            told = running.finish(_present(end))
        except RequestError as error:
            told = running.fail(error)
    yield running.encoded(told)


async def _accept(answer: Answer) -> RequestError | None:
    """Wait a while until an answer is accepted; return the refusal of a prompt that is too long."""
    try:
        await answer.accepted(ACCEPT_S)
    except RequestError as error:
        if error.kind != "context_length":
            raise
        return error
    return None


def _present(end: Finished | None) -> Finished:
    if end is None:
        raise RequestError("internal", "the answer has no end.")
    return end
