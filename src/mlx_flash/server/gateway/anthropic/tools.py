"""The tools that a conversation has, and which of them is to be called."""

from typing import Any

from ..backend import RequestError
from ..turns import tool
from .blocks import OtherTool, Tool, ToolChangeBlock
from .requests import CountBody, ToolChoice


def tools_of(body: CountBody) -> list[dict[str, Any]]:
    """Return the tools that the client runs, in the form that templates take.

    Others exist on Anthropic's servers alone and are left out. A tool that is to be loaded later is
    offered from the beginning: the tokens before the conversation must stay what they are.
    """
    return [
        tool(one.name, one.description, one.input_schema)
        for one in [*(body.tools or ()), *_added(body)]
        if isinstance(one, Tool)
    ]


def _added(body: CountBody) -> list[Tool | OtherTool]:
    """Return the tools that messages in the conversation bring along."""
    return [
        block.tool.definition
        for turn in body.messages
        for block in turn.content
        if isinstance(block, ToolChangeBlock)
        and block.type == "tool_addition"
        and block.tool.definition is not None
    ]


def choice_of(choice: ToolChoice | None, tools: list[dict[str, Any]]) -> str:
    """Return which tool to call in the worker's words.

    Raises:
        RequestError: there is no such tool.
    """
    if choice is None or choice.type == "auto":
        return "auto"
    if choice.type == "none":
        return "none"
    if choice.type == "any":
        if not tools:
            raise RequestError("invalid", "tool_choice: there is no tool to call: send tools, too.")
        return "required"
    if all(choice.name != one["function"]["name"] for one in tools):
        name = (choice.name or "")[:100]
        raise RequestError("invalid", f"tool_choice.name: there is no tool {name!r} in tools.")
    return f"={choice.name}"
