"""What the OpenAI API answers. A field that is never set is left out of the JSON."""

from typing import Any, Literal

from pydantic import BaseModel

from ..timings import Timings


class Reply(BaseModel):
    """A part of an answer."""

    def json_text(self) -> str:
        """Return it as JSON, without the fields that were not set."""
        return self.model_dump_json(exclude_unset=True)


class ErrorDetail(Reply):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(Reply):
    """The body of a response that is no answer."""

    error: ErrorDetail


class CachedTokens(Reply):
    """Tokens of the prompt that were remembered."""

    cached_tokens: int


class ReasoningTokens(Reply):
    """Tokens of the answer that were reasoning."""

    reasoning_tokens: int


class Usage(Reply):
    """Counts of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: ReasoningTokens


class PromptProgress(Reply):
    """How much of a prompt is computed, in the words of llama.cpp."""

    total: int
    cache: int
    processed: int
    time_ms: int


class TopLogprob(Reply):
    """A token and its log-probability; `bytes` is what it stands for."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(TopLogprob):
    """A token of the answer, and the likeliest ones in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Reply):
    """Log-probabilities of the tokens of a message or delta."""

    content: list[ChatLogprob]
    refusal: None = None


class FunctionCall(Reply):
    """A function and its arguments, a JSON object as text."""

    name: str
    arguments: str


class CustomCall(Reply):
    """A custom tool and its input, which is plain text."""

    name: str
    input: str


class CallReply(Reply):
    """A call of a tool; `index` counts the calls of a streamed message."""

    index: int | None = None
    id: str
    type: Literal["function", "custom"]
    function: FunctionCall | None = None
    custom: CustomCall | None = None


class ReplyMessage(Reply):
    """The model's message, or in a stream, what it goes on with."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[CallReply] | None = None
    function_call: FunctionCall | None = None


FinishReason = Literal["stop", "length", "tool_calls", "function_call"]


class ChatChoice(Reply):
    """One of the answers to a chat."""

    index: int
    message: ReplyMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChunkChoice(Reply):
    """What one of the answers to a chat goes on with."""

    index: int
    delta: ReplyMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class Headed(Reply):
    """What all answers begin with."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class ChatReply(Headed):
    """A chat completion."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage
    timings: Timings


class ChatChunk(Headed):
    """A part of a streamed chat completion."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChunkChoice]
    usage: Usage | None = None
    timings: Timings | None = None
    prompt_progress: PromptProgress | None = None


class TextLogprobs(Reply):
    """Log-probabilities of the tokens of a text, in lists of one length."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(Reply):
    """One of the texts, or a part of it."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class TextReply(Headed):
    """A text completion, or a part of a streamed one."""

    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: Usage | None = None
    timings: Timings | None = None


ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorReply, "description": "The request is wrong or may not be made."},
    "5XX": {"model": ErrorReply, "description": "The server cannot answer."},
}


def streamed_or(reply: type[Reply], chunk: type[Reply]) -> dict[int | str, dict[str, Any]]:
    """Return the responses of a route, for the API document: a reply, or a stream of chunks."""
    answer = {
        "model": reply,
        "description": f"A {reply.__name__}; with `stream`, events that are {chunk.__name__}s.",
        "content": {"text/event-stream": {}},
    }
    return {200: answer, **ERRORS}
