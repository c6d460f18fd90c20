"""The output of a response, made of the worker's events, and the stream events that tell of it."""

from dataclasses import dataclass
from typing import Any

from ...messages import Event, Piece, ToolCall
from .items import new_id
from .resource import (
    CustomToolCall,
    FunctionCall,
    ItemStatus,
    Logprob,
    Message,
    OutputItem,
    OutputText,
    Reasoning,
    ReasoningText,
    SummaryText,
    logprob_of,
)
from .tools import Toolbox, custom_input

StreamEvent = dict[str, Any]


class Output:
    """Items as they come: reasoning, text and calls, in the model's order.

    With `summarize` reasoning is sent as a summary, which is what clients show that ask for one.
    Every method returns the stream events for what it changes.
    """

    def __init__(self, toolbox: Toolbox, summarize: bool) -> None:
        self.items: list[OutputItem] = []
        self._toolbox = toolbox
        self._summarize = summarize
        self._open: _OpenText | None = None

    def take(self, event: Event | None) -> list[StreamEvent]:
        """Add what an event of the answer says."""
        if isinstance(event, ToolCall):
            return [*self.close(), *self._add_call(event)]
        if not isinstance(event, Piece) or event.kind == "prompt":
            return []
        if not event.text and not event.logprobs:
            return []
        form = self._form(event.kind)
        told: list[StreamEvent] = []
        if self._open is None or self._open.form is not form:
            told += self.close()
            told += self._begin(form)
        assert self._open is not None
        return [*told, *self._open.add(event)]

    def close(self, status: ItemStatus = "completed") -> list[StreamEvent]:
        """End the item that text is being added to."""
        if self._open is None:
            return []
        told = self._open.end(status)
        self._open = None
        return told

    def finish(self, status: ItemStatus) -> list[StreamEvent]:
        """End the output. One that is empty becomes an empty message."""
        told = [] if self.items else self._begin(_MESSAGE)
        return [*told, *self.close(status)]

    def _form(self, kind: str) -> "_Form":
        if kind == "text":
            return _MESSAGE
        return _SUMMARY if self._summarize else _REASONING

    def _begin(self, form: "_Form") -> list[StreamEvent]:
        item = Message(id=new_id("msg")) if form is _MESSAGE else Reasoning(id=new_id("rs"))
        self._open = _OpenText(len(self.items), item, form)
        self.items.append(item)
        return self._open.begin()

    def _add_call(self, event: ToolCall) -> list[StreamEvent]:
        tool, call_id = self._toolbox.called(event.name), new_id("call")
        item: FunctionCall | CustomToolCall
        if tool.custom:
            item = CustomToolCall(
                id=new_id("ctc"),
                call_id=call_id,
                name=tool.name,
                namespace=tool.namespace,
                input="",
            )
            key, value, kind = "input", custom_input(event.arguments), "custom_tool_call_input"
        else:
            item = FunctionCall(
                id=new_id("fc"),
                call_id=call_id,
                name=tool.name,
                namespace=tool.namespace,
                arguments="",
            )
            key, value, kind = "arguments", event.arguments, "function_call_arguments"
        index = len(self.items)
        added = _item_event("added", index, item)
        item = item.model_copy(update={key: value, "status": "completed"})
        self.items.append(item)
        place = {"item_id": item.id, "output_index": index}
        return [
            added,
            {"type": f"response.{kind}.delta", **place, "delta": value},
            {"type": f"response.{kind}.done", **place, key: value, "name": item.name},
            _item_event("done", index, item),
        ]


@dataclass(frozen=True)
class _Form:
    """How the events are called that tell of a kind of text, and of the part that it is in."""

    text: str
    part: str
    index: str
    part_type: str


_MESSAGE = _Form("output_text", "content_part", "content_index", "output_text")
_REASONING = _Form("reasoning_text", "content_part", "content_index", "reasoning_text")
_SUMMARY = _Form(
    "reasoning_summary_text", "reasoning_summary_part", "summary_index", "summary_text"
)


class _OpenText:
    """An item whose text is still coming. It has one part."""

    def __init__(self, index: int, item: Message | Reasoning, form: _Form) -> None:
        self.form = form
        self._index = index
        self._item = item
        self._texts: list[str] = []
        self._logprobs: list[Logprob] = []
        self._place = {"item_id": item.id, "output_index": index, form.index: 0}

    def begin(self) -> list[StreamEvent]:
        """Return the events that open the item and its part."""
        return [_item_event("added", self._index, self._item), self._part_event("added", "", [])]

    def add(self, piece: Piece) -> list[StreamEvent]:
        """Add text."""
        self._texts.append(piece.text)
        event = {"type": f"response.{self.form.text}.delta", **self._place, "delta": piece.text}
        if self.form is _MESSAGE:
            logprobs = [logprob_of(one) for one in piece.logprobs]
            self._logprobs += logprobs
            event["logprobs"] = [one.model_dump() for one in logprobs]
        return [event]

    def end(self, status: ItemStatus) -> list[StreamEvent]:
        """Put the whole text into the item; return the events that close part and item."""
        text = "".join(self._texts)
        self._item.status = status
        if isinstance(self._item, Message):
            self._item.content = [OutputText(text=text, logprobs=self._logprobs)]
        elif self.form is _SUMMARY:
            self._item.summary = [SummaryText(text=text)]
        else:
            self._item.content = [ReasoningText(text=text)]
        logprobs = [one.model_dump() for one in self._logprobs]
        done = {"type": f"response.{self.form.text}.done", **self._place, "text": text}
        if self.form is _MESSAGE:
            done["logprobs"] = logprobs
        return [
            done,
            self._part_event("done", text, logprobs),
            _item_event("done", self._index, self._item),
        ]

    def _part_event(self, what: str, text: str, logprobs: list[dict[str, Any]]) -> StreamEvent:
        part: dict[str, Any] = {"type": self.form.part_type, "text": text}
        if self.form is _MESSAGE:
            part |= {"annotations": [], "logprobs": logprobs}
        return {"type": f"response.{self.form.part}.{what}", **self._place, "part": part}


def _item_event(what: str, index: int, item: OutputItem) -> StreamEvent:
    return {
        "type": f"response.output_item.{what}",
        "output_index": index,
        "item": item.model_dump(),
    }
