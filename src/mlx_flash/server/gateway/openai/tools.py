"""The tools of a chat: as the model is told of them, and as its calls are written back."""

import json
import uuid
from dataclasses import dataclass
from typing import Any, Literal

from ...messages import ToolCall
from ..backend import RequestError
from ..turns import tool
from .chat_body import ChatBody
from .replies import CallReply, CustomCall, FunctionCall

CallForm = Literal["function", "plain", "custom"]
"""`function` has JSON arguments; `plain` is the same with the input as it is, which is how Cursor
takes the calls of its flat custom tools; `custom` is the API's form of a custom tool's call."""

_INPUT = {
    "type": "object",
    "properties": {"input": {"type": "string", "description": "The input, as plain text."}},
    "required": ["input"],
}


@dataclass(frozen=True)
class Tools:
    """What may be called; `forms` are by name, `choice` is as in `Generate`.

    `legacy` is the form of old clients, which have functions and one call at most.
    """

    offered: list[dict[str, Any]]
    forms: dict[str, CallForm]
    choice: str = "auto"
    legacy: bool = False

    def function_call(self, call: ToolCall) -> FunctionCall:
        """Return a call as old clients take it."""
        return FunctionCall(name=call.name, arguments=call.arguments)

    def call(self, call: ToolCall, index: int | None = None) -> CallReply:
        """Return a call of the message, or of its stream, where calls are counted."""
        form = self.forms.get(call.name, "function")
        number: dict[str, Any] = {} if index is None else {"index": index}
        call_id = f"call_{uuid.uuid4().hex[:24]}"
        text = call.arguments if form == "function" else _input_of(call.arguments)
        if form == "custom":
            custom = CustomCall(name=call.name, input=text)
            return CallReply(**number, id=call_id, type="custom", custom=custom)
        function = FunctionCall(name=call.name, arguments=text)
        return CallReply(**number, id=call_id, type="function", function=function)


def tools_of(body: ChatBody) -> Tools:
    """Return the tools that a chat offers. Those that a model cannot call are left out.

    Raises:
        RequestError: a tool has no name, or the choice is of none that there is.
    """
    legacy = body.tools is None and body.functions is not None
    given = body.tools or []
    if legacy:
        given = [{"type": "function", "function": function} for function in body.functions or ()]
    offered: list[dict[str, Any]] = []
    forms: dict[str, CallForm] = {}
    for number, one in enumerate(given):
        if read := _tool(one, f"{'functions' if legacy else 'tools'}.{number}"):
            forms[read[0]["function"]["name"]] = read[1]
            offered.append(read[0])
    choice = body.function_call if legacy else body.tool_choice
    param = "function_call" if legacy else "tool_choice"
    return _chosen(Tools(offered, forms, legacy=legacy), choice, param)


def _tool(given: Any, param: str) -> tuple[dict[str, Any], CallForm] | None:
    """Return a tool and the form of its calls; None for one that servers run, as web search is."""
    if not isinstance(given, dict):
        raise RequestError("invalid", f"{param}: a tool is an object.", param)
    kind = given.get("type", "function")
    if kind not in ("function", "custom"):
        return None
    nested = given.get(kind)
    told = nested if isinstance(nested, dict) else given
    name, description = told.get("name"), told.get("description")
    if not isinstance(name, str) or not name:
        raise RequestError("invalid", f"{param}: it has no name.", param)
    description = description if isinstance(description, str) else ""
    if kind == "function":
        return tool(name, description, told.get("parameters")), "function"
    grammar = told.get("format")
    if isinstance(grammar, dict) and grammar.get("type") == "grammar":
        grammar = grammar.get("grammar", grammar)
    if isinstance(grammar, dict) and isinstance(grammar.get("definition"), str):
        description += f"\n\nThe input follows this grammar:\n{grammar['definition']}"
    return tool(name, description.strip(), _INPUT), "plain" if told is given else "custom"


def _chosen(tools: Tools, choice: Any, param: str) -> Tools:
    """Return the tools with what the client says about which to call."""
    if choice is None:
        return tools
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools", choice)
        if not isinstance(allowed, dict) or not isinstance(allowed.get("tools"), list):
            raise RequestError("invalid", f"{param}: it does not say which tools.", param)
        names = [_named(one) for one in allowed["tools"]]
        offered = [one for one in tools.offered if one["function"]["name"] in names]
        return _chosen(Tools(offered, tools.forms), allowed.get("mode", "auto"), param)
    if isinstance(choice, str) and choice in ("auto", "none", "required"):
        if choice == "required" and not tools.offered:
            raise RequestError("invalid", f"{param}: there is no tool to call.", param)
        return Tools(tools.offered, tools.forms, choice, tools.legacy)
    name = _named(choice)
    if name is None:
        message = f"{param}: give auto, none, required, or the function to call."
        raise RequestError("invalid", message, param)
    if name not in [one["function"]["name"] for one in tools.offered]:
        raise RequestError("invalid", f"{param}: there is no tool {name[:100]!r}.", param)
    return Tools(tools.offered, tools.forms, f"={name}", tools.legacy)


def _named(choice: Any) -> str | None:
    """Return the name of the tool that a choice means, in any of its forms."""
    if not isinstance(choice, dict):
        return None
    nested = choice.get(str(choice.get("type", "function")))
    name = (nested if isinstance(nested, dict) else choice).get("name")
    return name if isinstance(name, str) else None


def _input_of(arguments: str) -> str:
    """Return the text that a custom tool is called with."""
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    text = parsed.get("input") if isinstance(parsed, dict) else None
    return text if isinstance(text, str) else arguments
