"""Fields of tools and their calls, which several APIs shape as OpenAI's does."""

from typing import Any

from . import turns
from .fields import Fields


class Function(Fields):
    """A function that was called."""

    name: str
    arguments: Any = None


class Call(Fields):
    """A call in an earlier message."""

    id: str | None = None
    function: Function


class Signature(Fields):
    """A function that may be called; `parameters` are a JSON schema."""

    name: str
    description: str | None = None
    parameters: Any = None


class Tool(Fields):
    """A tool that may be called."""

    function: Signature


def offered(tools: list[Tool] | None) -> list[dict[str, Any]]:
    """Return the tools that may be called, as templates take them."""
    functions = [tool.function for tool in tools or ()]
    return [turns.tool(one.name, one.description, one.parameters) for one in functions]
