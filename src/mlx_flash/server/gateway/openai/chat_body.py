"""The body of a chat request, as clients send it."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, JsonValue, StrictBool, WithJsonSchema

from ..bounds import Integral
from ..fields import Fields
from .fields import AnswerFields, Limit

_CONTENT = {"anyOf": [{"type": "string"}, {"type": "array", "items": {}}, {"type": "null"}]}
_OBJECTS = {"type": "array", "items": {"type": "object"}}
_CHOICE = {"anyOf": [{"type": "string"}, {"type": "object"}, {"type": "null"}]}
_CONVERSATIONS: list[JsonValue] = [
    {"required": ["messages"], "properties": {"messages": {"type": "array", "minItems": 1}}},
    {"required": ["input"], "properties": {"input": {"type": ["string", "array"]}}},
]

Content = Annotated[Any, WithJsonSchema(_CONTENT)]
"""Text, or a list of parts that are text."""

Choice = Annotated[Any, WithJsonSchema(_CHOICE)]


class CalledFunction(Fields):
    """A function that was called; `arguments` is JSON text, or JSON."""

    name: str
    arguments: Any = None


class CalledCustom(Fields):
    """A custom tool that was called, with text."""

    name: str
    input: str


class Call(Fields):
    """A call of a tool that an earlier message made."""

    id: str | None = None
    function: CalledFunction | None = None
    custom: CalledCustom | None = None


class ChatMessage(Fields):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content = None
    name: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None
    function_call: CalledFunction | None = None
    reasoning_content: str | None = None
    reasoning: Any = None
    prefix: StrictBool | None = None
    partial: StrictBool | None = None


class JsonSchema(Fields):
    """A schema that the answer follows."""

    schema_: Any = Field(default=None, alias="schema")


class ResponseFormat(JsonSchema):
    """What the answer is: text, any JSON object, or JSON by a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class TextOptions(Fields):
    """Where the Responses API has the form of the answer."""

    format: ResponseFormat | None = None


class ReasoningOptions(Fields):
    """Where the Responses API has the effort of reasoning."""

    effort: str | None = None


class ChatBody(AnswerFields):
    """A conversation to go on with.

    It is in `messages`; or in `input` and `instructions`, as the Responses API has it and Cursor
    sends it here.
    """

    model_config = ConfigDict(json_schema_extra={"anyOf": _CONVERSATIONS})

    messages: list[ChatMessage] | None = None
    input: Content = None
    instructions: str | None = None
    max_tokens: Limit | None = None
    max_completion_tokens: Limit | None = None
    max_output_tokens: Limit | None = None
    tools: Annotated[list[Any], WithJsonSchema(_OBJECTS)] | None = None
    tool_choice: Choice = None
    parallel_tool_calls: StrictBool | None = None
    functions: Annotated[list[Any], WithJsonSchema(_OBJECTS)] | None = None
    function_call: Choice = None
    response_format: ResponseFormat | None = None
    text: TextOptions | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[int, Field(strict=True, ge=0, le=20), Integral] | None = None
    reasoning_effort: Annotated[str, Field(max_length=32)] | None = None
    reasoning: ReasoningOptions | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: StrictBool | None = None
    return_progress: StrictBool | None = None

    @property
    def token_limit(self) -> int | None:
        """The most tokens of an answer, by whichever name it was given."""
        limits = (self.max_completion_tokens, self.max_tokens, self.max_output_tokens)
        return next((limit for limit in limits if limit is not None), None)
