"""The bodies that Ollama's clients send."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, Field

from ..bounds import (
    Int64,
    Name,
    Penalty,
    Probability,
    RepeatPenalty,
    StopTexts,
    Temperature,
)
from ..fields import Fields
from ..tool_fields import Call, Tool

_NO_TIME = re.compile(r"[+-]?0+(\.0*)?(ns|us|µs|ms|s|m|h)?")
_EFFORTS = ("low", "medium", "high", "max")


def _check_format(form: Any) -> Any:
    if isinstance(form, str) and form not in ("", "json"):
        raise ValueError('give "json" or a JSON schema')
    return form


def _check_think(think: Any) -> Any:
    if isinstance(think, str) and think not in _EFFORTS:
        raise ValueError(f"give true, false or one of {', '.join(_EFFORTS)}")
    return think


class Options(Fields):
    """How tokens are drawn. Options of the machine, such as `num_ctx`, say nothing here."""

    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: Int64 | None = None
    min_p: Probability | None = None
    seed: Int64 | None = None
    num_predict: Int64 | None = None
    stop: StopTexts | None = None
    repeat_penalty: RepeatPenalty | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None


class Message(Fields):
    """A message of a conversation."""

    role: Literal["system", "user", "assistant", "tool", "developer", "function"]
    content: Any = None
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: list[Call] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class Asked(Fields):
    """What /api/chat and /api/generate have in common."""

    model: Name | None = None
    stream: bool | None = None
    format: Annotated[dict[str, Any] | str | None, AfterValidator(_check_format)] = None
    options: Options | None = None
    keep_alive: Annotated[float, Field(allow_inf_nan=False)] | str | None = None
    think: Annotated[bool | str | None, AfterValidator(_check_think)] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def wants_unload(self) -> bool:
        """Whether the model shall not be kept after this."""
        return self.keep_alive is not None and bool(_NO_TIME.fullmatch(str(self.keep_alive)))


class OllamaChatBody(Asked):
    """The body of /api/chat. Without messages it loads or unloads the model."""

    messages: list[Message] | None = None
    tools: list[Tool] | None = None


class GenerateBody(Asked):
    """The body of /api/generate. Without a prompt it loads or unloads the model."""

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    raw: bool | None = None
    images: list[Any] | None = None


class NameBody(Fields):
    """A body that names a model, under the key of today or the one before."""

    model: Name | None = Field(None, validation_alias=AliasChoices("model", "name"))
    stream: bool | None = None
