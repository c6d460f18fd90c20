"""Content blocks of the Anthropic API, as requests carry them. What they do not name is ignored."""

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
)

from ..fields import Fields


class Part(Fields):
    """Some part of a request."""

    model_config = ConfigDict(strict=True)


class TextBlock(Part):
    """Text."""

    type: Literal["text"]
    text: str


class DocumentSource(Part):
    """Where a document's text is: in `data` (type text), or in `content` (type content)."""

    type: str
    data: str | None = None
    content: str | list[Any] | None = None


class DocumentBlock(Part):
    """A document; the model reads those that are text."""

    type: Literal["document"]
    source: DocumentSource
    title: str | None = None
    context: str | None = None


class SearchResultBlock(Part):
    """Something that a search of the client's has found."""

    type: Literal["search_result"]
    source: str
    title: str
    content: list[TextBlock]


class ToolReferenceBlock(Part):
    """The name of a tool that a search for tools has found."""

    type: Literal["tool_reference"]
    tool_name: str


class ThinkingBlock(Part):
    """What the model thought before it answered."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class ToolUseBlock(Part):
    """A call of a tool by the model."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any] | None = None


class Tool(Part):
    """A tool that the client runs when the model calls it."""

    type: Literal["custom"] | None = None
    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    input_schema: dict[str, Any] | None = None


class OtherTool(Part):
    """A tool that only Anthropic's servers have."""

    type: str = Field(json_schema_extra={"not": {"const": "custom"}})


def _runner_of(tool: Any) -> str:
    kind = tool.get("type") if isinstance(tool, dict) else getattr(tool, "type", None)
    return "custom" if kind in (None, "custom") else "other"


AnyTool = Annotated[
    Annotated[Tool, Tag("custom")] | Annotated[OtherTool, Tag("other")],
    Discriminator(_runner_of),
]


class ChangedTool(Part):
    """The tool that a change in the middle of a conversation is about: its name, or all of it."""

    type: str
    name: str | None = None
    definition: AnyTool | None = None


class ToolChangeBlock(Part):
    """Says that from here on there is one more tool, or one fewer."""

    type: Literal["tool_addition", "tool_removal"]
    tool: ChangedTool


_KNOWN = (
    "text",
    "document",
    "search_result",
    "tool_reference",
    "thinking",
    "tool_use",
    "tool_result",
    "tool_addition",
    "tool_removal",
)


class OtherBlock(Part):
    """A block that this server does not know, such as an image."""

    type: str = Field(json_schema_extra={"not": {"enum": list(_KNOWN)}})


def _kind_of(block: Any) -> str:
    kind = block.get("type") if isinstance(block, dict) else getattr(block, "type", None)
    return kind if kind in _KNOWN else "other"


def _as_blocks(content: Any) -> Any:
    """Return content as a list of blocks; a string is one block of text."""
    if content is None:
        return []
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


ResultBlock = Annotated[
    Annotated[TextBlock, Tag("text")]
    | Annotated[DocumentBlock, Tag("document")]
    | Annotated[SearchResultBlock, Tag("search_result")]
    | Annotated[ToolReferenceBlock, Tag("tool_reference")]
    | Annotated[OtherBlock, Tag("other")],
    Discriminator(lambda block: kind if (kind := _kind_of(block)) in _KNOWN[:4] else "other"),
]
ResultContent = Annotated[
    list[ResultBlock],
    BeforeValidator(_as_blocks, json_schema_input_type=str | list[ResultBlock] | None),
]


class ToolResultBlock(Part):
    """What a tool answered."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: ResultContent = Field(default_factory=list)
    is_error: bool | None = None


Block = Annotated[
    Annotated[TextBlock, Tag("text")]
    | Annotated[DocumentBlock, Tag("document")]
    | Annotated[SearchResultBlock, Tag("search_result")]
    | Annotated[ToolReferenceBlock, Tag("tool_reference")]
    | Annotated[ThinkingBlock, Tag("thinking")]
    | Annotated[ToolUseBlock, Tag("tool_use")]
    | Annotated[ToolResultBlock, Tag("tool_result")]
    | Annotated[ToolChangeBlock, Tag("tool_addition")]
    | Annotated[ToolChangeBlock, Tag("tool_removal")]
    | Annotated[OtherBlock, Tag("other")],
    Discriminator(_kind_of),
]
Content = Annotated[
    list[Block],
    BeforeValidator(_as_blocks, json_schema_input_type=str | list[Block] | None),
]
