"""Bodies of requests. A null is as good as nothing for whatever may be left out."""

from typing import Annotated, Any, Literal

from pydantic import Field

from ..bounds import Integral, Name, Probability, StopTexts, Temperature
from ..fields import SoundFields
from .blocks import AnyTool, Content, Part

Whole = Annotated[int, Integral]


class Turn(Part):
    """What somebody said."""

    role: Literal["user", "assistant", "system"]
    content: Content


class ToolChoice(Part):
    """Whether tools are to be called: as the model likes, any, the one of this name, or none."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Part):
    """Whether to think first (any type but `disabled`), and whether to show it (`omitted`: no)."""

    type: str
    display: str | None = None


class OutputFormat(Part):
    """The JSON schema that the answer follows."""

    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema")


class OutputConfig(Part):
    """How hard to think, and what the answer looks like."""

    effort: str | None = None
    format: OutputFormat | None = None


class CountBody(Part, SoundFields):
    """A conversation whose tokens are to be counted."""

    model: Name | None = None
    messages: list[Turn] = Field(min_length=1)
    system: Content = Field(default_factory=list)
    tools: list[AnyTool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None


class MessageBody(CountBody):
    """A conversation that is to be continued."""

    max_tokens: Whole = Field(ge=1, le=2**31 - 1)
    stream: bool | None = None
    stop_sequences: StopTexts | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: Whole | None = Field(None, ge=0, le=2**31 - 1)
