"""Bodies of replies, with every field that the official types have."""

import uuid
from typing import Any, Literal

from pydantic import BaseModel, Field

from ...messages import Finished
from ..collected import Collected
from ..turns import arguments_of
from .signatures import signature_of

StopReason = Literal[
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
]
_REASONS: dict[str, StopReason] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "context": "model_context_window_exceeded",
    "tools": "tool_use",
}


def new_id(prefix: str) -> str:
    """Return an id that was never used, such as `msg_…`."""
    return f"{prefix}_{uuid.uuid4().hex[:24]}"


class Text(BaseModel):
    """What the model says."""

    type: Literal["text"] = "text"
    text: str
    citations: None = None


class Thought(BaseModel):
    """What the model thought; empty when the client wants none, the signature has it then."""

    type: Literal["thinking"] = "thinking"
    thinking: str
    signature: str


class ToolUse(BaseModel):
    """What the model wants to have called."""

    type: Literal["tool_use"] = "tool_use"
    id: str = Field(default_factory=lambda: new_id("toolu"))
    name: str
    input: dict[str, Any] = {}


class CacheCreation(BaseModel):
    """Tokens written to caches that a client pays for: none."""

    ephemeral_5m_input_tokens: int = 0
    ephemeral_1h_input_tokens: int = 0


class OutputDetails(BaseModel):
    """Tokens of the answer that are thoughts."""

    thinking_tokens: int


class Usage(BaseModel):
    """Tokens of a message. `input_tokens` are those that were computed, not remembered."""

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_creation: CacheCreation = CacheCreation()
    output_tokens: int = 0
    output_tokens_details: OutputDetails | None = None
    server_tool_use: None = None
    service_tier: Literal["standard"] = "standard"
    inference_geo: None = None


class MessageReply(BaseModel):
    """A message of the model."""

    id: str = Field(default_factory=lambda: new_id("msg"))
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[Text | Thought | ToolUse] = []
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    stop_details: None = None
    container: None = None
    usage: Usage


class CountReply(BaseModel):
    """How many tokens a conversation has."""

    input_tokens: int


class ErrorDetail(BaseModel):
    """What is wrong: its kind, and a sentence."""

    type: str
    message: str


class ErrorReply(BaseModel):
    """An error."""

    type: Literal["error"]
    error: ErrorDetail


def usage_of(end: Finished) -> Usage:
    """Return the tokens of an answer."""
    return Usage(
        input_tokens=end.prompt_tokens - end.cached_tokens,
        cache_read_input_tokens=end.cached_tokens,
        output_tokens=end.completion_tokens,
        output_tokens_details=OutputDetails(thinking_tokens=end.reasoning_tokens),
    )


def stop_of(end: Finished, has_calls: bool) -> tuple[StopReason, str | None]:
    """Return why an answer ended, and the stop text that ended it."""
    if end.reason == "stop" and end.stop_text is not None:
        return "stop_sequence", end.stop_text
    return "tool_use" if end.reason == "stop" and has_calls else _REASONS[end.reason], None


def message_of(got: Collected, model: str, show_thinking: bool) -> MessageReply:
    """Return an answer as a message."""
    content: list[Text | Thought | ToolUse] = []
    if got.reasoning:
        signature = signature_of(got.reasoning, show_thinking)
        thinking = got.reasoning if show_thinking else ""
        content.append(Thought(thinking=thinking, signature=signature))
    if got.text.strip():
        content.append(Text(text=got.text))
    content += [ToolUse(name=c.name, input=arguments_of(c.arguments)) for c in got.calls]
    reason, sequence = stop_of(got.end, bool(got.calls))
    return MessageReply(
        model=model,
        content=content,
        stop_reason=reason,
        stop_sequence=sequence,
        usage=usage_of(got.end),
    )
