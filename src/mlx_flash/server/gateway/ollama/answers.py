"""What Ollama's clients are answered, line by line; the models here describe it as OpenAPI."""

from datetime import datetime, timezone
from typing import Any, Literal

from pydantic import BaseModel

from ...messages import Finished, Piece, TokenLogprob, ToolCall
from ..collected import Collected
from ..turns import arguments_of

_LEAST_LOGPROB = -9999.0


class Problem(BaseModel):
    """An error."""

    error: str


class TokenAt(BaseModel):
    """A token that was likely at a place."""

    token: str
    logprob: float
    bytes: list[int]


class Logprob(TokenAt):
    """The token at a place, and others that were likely."""

    top_logprobs: list[TokenAt] | None = None


class Part(BaseModel):
    """A line of an answer; the last one, which is `done`, has the durations in nanoseconds."""

    model: str
    created_at: datetime
    done: bool
    done_reason: Literal["stop", "length", "load", "unload"] | None = None
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None
    logprobs: list[Logprob] | None = None


class FunctionCall(BaseModel):
    """What is called."""

    index: int
    name: str
    arguments: dict[str, Any]


class Call(BaseModel):
    """A call that the model makes."""

    id: str
    function: FunctionCall


class Said(BaseModel):
    """What the model says."""

    role: Literal["assistant"]
    content: str
    thinking: str | None = None
    tool_calls: list[Call] | None = None


class ChatPart(Part):
    """A line of /api/chat."""

    message: Said


class GeneratePart(Part):
    """A line of /api/generate."""

    response: str
    thinking: str | None = None


class Lines:
    """Writes the lines of one answer, of /api/chat or of /api/generate."""

    def __init__(self, model: str, kind: Literal["chat", "generate"]) -> None:
        self._model = model
        self._kind = kind
        self._num_calls = 0

    def piece(self, piece: Piece) -> dict[str, Any]:
        """Return the line of a piece."""
        if piece.kind == "reasoning":
            line = self._line(thinking=piece.text)
        else:
            line = self._line(text=piece.text)
        return {**line, **_logprobs(piece.logprobs)}

    def call(self, call: ToolCall) -> dict[str, Any]:
        """Return the line of a tool call."""
        return self._line(calls=[self._call(call)])

    def nothing(self) -> dict[str, Any]:
        """Return the line that says that the answer is still on its way."""
        return self._line()

    def end(self, end: Finished) -> dict[str, Any]:
        """Return the last line of a stream."""
        return {**self._line(), **_end(end)}

    def whole(self, got: Collected) -> dict[str, Any]:
        """Return a whole answer."""
        calls = [self._call(call) for call in got.calls]
        line = self._line(got.text, got.reasoning, calls)
        return {**line, **_end(got.end), **_logprobs(got.logprobs)}

    def no_answer(self, reason: Literal["load", "unload"]) -> dict[str, Any]:
        """Return the answer to a request that says nothing to the model."""
        return {**self._line(), "done": True, "done_reason": reason}

    def _line(
        self, text: str = "", thinking: str = "", calls: list[dict[str, Any]] | None = None
    ) -> dict[str, Any]:
        said: dict[str, Any] = {"thinking": thinking} if thinking else {}
        line: dict[str, Any] = {"model": self._model, "created_at": now()}
        if self._kind == "generate":
            return {**line, "response": text, **said, "done": False}
        if calls:
            said["tool_calls"] = calls
        return {**line, "message": {"role": "assistant", "content": text, **said}, "done": False}

    def _call(self, call: ToolCall) -> dict[str, Any]:
        index = self._num_calls
        self._num_calls += 1
        function = {"index": index, "name": call.name, "arguments": arguments_of(call.arguments)}
        return {"id": f"call_{index}", "function": function}


def now() -> str:
    """Return the time as RFC 3339 has it."""
    return datetime.now(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _end(end: Finished) -> dict[str, Any]:
    """Return how an answer ended; the model is always loaded, so waiting counts in the total."""
    return {
        "done": True,
        "done_reason": "length" if end.reason in ("length", "context") else "stop",
        "total_duration": _ns(end.queue_s + end.prefill_s + end.decode_s),
        "load_duration": 0,
        "prompt_eval_count": end.prompt_tokens,
        "prompt_eval_duration": _ns(end.prefill_s),
        "eval_count": end.completion_tokens,
        "eval_duration": _ns(end.decode_s),
    }


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _logprobs(tokens: list[TokenLogprob]) -> dict[str, Any]:
    found = [
        {
            **_token(token.text, token.data, token.logprob),
            "top_logprobs": [_token(text, data, value) for _, text, data, value in token.top],
        }
        for token in tokens
        if token.logprob is not None
    ]
    return {"logprobs": found} if found else {}


def _token(text: str, data: bytes, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": max(logprob, _LEAST_LOGPROB), "bytes": list(data)}
