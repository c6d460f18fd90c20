"""The response object and the items of its output, as clients read them."""

from typing import Any, Literal

from pydantic import BaseModel

from ...messages import Finished, TokenLogprob

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class TopLogprob(BaseModel):
    """A token that might have been."""

    token: str
    bytes: list[int]
    logprob: float


class Logprob(TopLogprob):
    """A token of the text, and the likeliest ones at its place."""

    top_logprobs: list[TopLogprob]


class OutputText(BaseModel):
    """Text of a message."""

    type: Literal["output_text"] = "output_text"
    text: str = ""
    annotations: list[dict[str, Any]] = []
    logprobs: list[Logprob] = []


class Message(BaseModel):
    """What the model says."""

    id: str
    type: Literal["message"] = "message"
    status: ItemStatus = "in_progress"
    role: Literal["assistant"] = "assistant"
    content: list[OutputText] = []


class SummaryText(BaseModel):
    """Reasoning, for a client that asked for a summary. It is whole all the same."""

    type: Literal["summary_text"] = "summary_text"
    text: str


class ReasoningText(BaseModel):
    """Reasoning."""

    type: Literal["reasoning_text"] = "reasoning_text"
    text: str


class Reasoning(BaseModel):
    """What the model thinks before it says or does something."""

    id: str
    type: Literal["reasoning"] = "reasoning"
    status: ItemStatus = "in_progress"
    summary: list[SummaryText] = []
    content: list[ReasoningText] = []
    encrypted_content: str | None = None


class FunctionCall(BaseModel):
    """A call of a function, which the client runs."""

    id: str
    type: Literal["function_call"] = "function_call"
    status: ItemStatus = "in_progress"
    call_id: str
    name: str
    namespace: str | None = None
    arguments: str


class CustomToolCall(BaseModel):
    """A call of a custom tool, which the client runs."""

    id: str
    type: Literal["custom_tool_call"] = "custom_tool_call"
    status: ItemStatus = "in_progress"
    call_id: str
    name: str
    namespace: str | None = None
    input: str


OutputItem = Message | Reasoning | FunctionCall | CustomToolCall


class InputDetails(BaseModel):
    """How many tokens of the prompt were remembered. Nobody pays for remembering them."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputDetails(BaseModel):
    """How many tokens of the answer are reasoning."""

    reasoning_tokens: int


class Usage(BaseModel):
    """How many tokens a response took."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseError(BaseModel):
    """Why there is no response."""

    code: str
    message: str


class IncompleteDetails(BaseModel):
    """Why a response ends early."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ReasoningSettings(BaseModel):
    """How the model was to reason."""

    effort: str | None = None
    summary: str | None = None


class TextSettings(BaseModel):
    """What the text was to look like."""

    format: dict[str, Any]


class ResponseObject(BaseModel):
    """A response. What was not asked for has the value that the API gives it."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Literal["in_progress", "completed", "incomplete", "failed"] = "in_progress"
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    model: str
    output: list[OutputItem] = []
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: ReasoningSettings
    safety_identifier: str | None
    service_tier: str = "default"
    store: bool
    temperature: float
    text: TextSettings
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: Usage | None = None
    user: str | None
    metadata: dict[str, str]
    background: bool = False
    presence_penalty: float
    frequency_penalty: float


class DeletedResponse(BaseModel):
    """Says that a response is gone."""

    id: str
    object: Literal["response"] = "response"
    deleted: bool = True


class InputItems(BaseModel):
    """The conversation that a response answers, or a page of it."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]
    first_id: str
    last_id: str
    has_more: bool


class InputTokens(BaseModel):
    """How many tokens a prompt has."""

    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int


class ErrorDetails(BaseModel):
    """What is wrong, in one sentence."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every error."""

    error: ErrorDetails


def usage_of(end: Finished) -> Usage:
    """Return what an answer took."""
    return Usage(
        input_tokens=end.prompt_tokens,
        input_tokens_details=InputDetails(cached_tokens=end.cached_tokens),
        output_tokens=end.completion_tokens,
        output_tokens_details=OutputDetails(reasoning_tokens=end.reasoning_tokens),
        total_tokens=end.prompt_tokens + end.completion_tokens,
    )


def logprob_of(one: TokenLogprob) -> Logprob:
    """Return a token's log-probability; JSON has no infinity, so impossible is -9999."""
    return Logprob(
        token=one.text,
        bytes=list(one.data),
        logprob=max(one.logprob or 0.0, -9999.0),
        top_logprobs=[
            TopLogprob(token=text, bytes=list(data), logprob=max(logprob, -9999.0))
            for _, text, data, logprob in one.top
        ],
    )
