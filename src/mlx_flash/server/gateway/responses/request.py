"""What clients send to the Responses API."""

import json
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ...messages import Grammar
from ..fields import Fields, SoundFields

_Text = Annotated[str, Field(max_length=1024)]
_Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]

LOGPROBS = "message.output_text.logprobs"
"""What `include` names to have log-probabilities."""


class TextFormat(Fields):
    """What the text of an answer must look like."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: _Text | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> "TextFormat":
        if self.type == "json_schema" and self.schema_ is None:
            raise ValueError("a json_schema has a `schema`")
        return self

    def grammar(self) -> Grammar | None:
        """Return the grammar that it stands for."""
        if self.type == "json_schema":
            return Grammar(kind="schema", text=json.dumps(self.schema_))
        return Grammar(kind="json") if self.type == "json_object" else None

    def echo(self) -> dict[str, Any]:
        """Return it as the response repeats it."""
        if self.type != "json_schema":
            return {"type": self.type}
        return {
            "type": self.type,
            "name": self.name or "answer",
            "description": self.description,
            "schema": self.schema_,
            "strict": bool(self.strict),
        }


class TextOptions(Fields):
    """Options of the answer's text."""

    format: TextFormat | None = None


class ReasoningOptions(Fields):
    """How much to reason, and whether the reasoning is sent as a summary or as it is."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed", "none"] | None = None

    def template_options(self) -> dict[str, Any]:
        """Return the options by which templates of various models switch reasoning."""
        if self.effort is None:
            return {}
        known = {"none": "low", "minimal": "low", "xhigh": "high", "max": "high"}
        return {
            "enable_thinking": self.effort != "none",
            "reasoning_effort": known.get(self.effort, self.effort),
        }


class PromptRequest(SoundFields):
    """What makes the prompt: the part of a request that tokens can be counted of."""

    model: str | None = None
    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None

    @field_validator("input", mode="before")
    @classmethod
    def _is_text_or_items(cls, value: Any) -> Any:
        if value is None or isinstance(value, str):
            return value
        if not isinstance(value, list):
            raise ValueError("give a string, or a list of items")
        for place, item in enumerate(value):
            if not isinstance(item, dict):
                raise ValueError(f"item {place} is no object")
        return value

    @field_validator("tool_choice", mode="before")
    @classmethod
    def _is_choice(cls, value: Any) -> Any:
        if value is not None and not isinstance(value, (str, dict)):
            raise ValueError("give auto, none, required, or an object")
        return value

    @property
    def format(self) -> TextFormat:
        """What the text of the answer must look like."""
        return (self.text.format if self.text else None) or TextFormat()

    @property
    def thinking(self) -> ReasoningOptions:
        """How to reason."""
        return self.reasoning or ReasoningOptions()


class ResponseRequest(PromptRequest):
    """A request for a response."""

    stream: bool | None = None
    store: bool | None = None
    max_output_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1)
    max_tool_calls: int | None = Field(default=None, ge=0, le=2**31 - 1)
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    include: list[_Text] | None = Field(default=None, max_length=64)
    metadata: dict[Annotated[str, Field(max_length=64)], _Text] | None = Field(
        default=None, max_length=16
    )
    prompt_cache_key: _Text | None = None
    safety_identifier: _Text | None = None
    user: _Text | None = None
    background: bool | None = None
    prompt: dict[str, Any] | None = None
    conversation: str | dict[str, Any] | None = None

    @field_validator("background")
    @classmethod
    def _is_at_once(cls, value: bool | None) -> bool | None:
        if value:
            raise ValueError("this server answers while you wait, only: stream the answer")
        return value

    @field_validator("prompt", mode="before")
    @classmethod
    def _has_no_prompt(cls, value: Any) -> Any:
        if value is not None:
            raise ValueError("this server keeps no prompt templates: send the text as input")
        return value

    @field_validator("conversation", mode="before")
    @classmethod
    def _has_no_conversation(cls, value: Any) -> Any:
        if value is not None:
            raise ValueError("this server keeps responses: give a previous_response_id")
        return value

    @property
    def wanted_logprobs(self) -> int | None:
        """How many likely tokens to give with each one; None for no log-probabilities at all."""
        if LOGPROBS in (self.include or ()) or self.top_logprobs:
            return self.top_logprobs or 0
        return None
