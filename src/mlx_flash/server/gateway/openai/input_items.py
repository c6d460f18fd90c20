"""Conversations as lists of the Responses API's items, which Cursor sends to the chat route."""

from typing import Any

from ..backend import RequestError
from ..turns import text_of, tool_call

_ROLES = ("system", "developer", "user", "assistant")
_CALLS = {"function_call": "arguments", "custom_tool_call": "input"}
_OUTPUTS = ("function_call_output", "custom_tool_call_output")


def turns_of_input(given: Any) -> list[dict[str, Any]]:
    """Return the messages of an `input`: text, or a list of items.

    Items that the model does not read, such as references, are left out.

    Raises:
        RequestError: an item is none, or holds something else than text.
    """
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list):
        raise RequestError("invalid", "input: give text or a list of items.", "input")
    names: dict[str, str] = {}
    turns = []
    for number, item in enumerate(given):
        if turn := _turn(item, names, f"input.{number}"):
            turns.append(turn)
    return turns


def _turn(item: Any, names: dict[str, str], param: str) -> dict[str, Any] | None:
    if not isinstance(item, dict):
        raise RequestError("invalid", f"{param}: an item is an object.", param)
    kind = item.get("type", "message")
    if kind == "message":
        role = item.get("role")
        if role not in _ROLES:
            raise RequestError("invalid", f"{param}: its role is none of {_ROLES}.", param)
        return {"role": role, "content": text_of(item.get("content"), f"{param}.content")}
    call_id = str(item.get("call_id") or item.get("id") or "")
    if isinstance(kind, str) and kind in _CALLS:
        name, given = item.get("name"), item.get(_CALLS[kind])
        if not isinstance(name, str) or not name:
            raise RequestError("invalid", f"{param}: it has no name.", param)
        names[call_id] = name
        arguments = given if kind == "function_call" else {"input": given}
        call = tool_call(call_id, name, arguments)
        return {"role": "assistant", "content": "", "tool_calls": [call]}
    if kind in _OUTPUTS:
        text = text_of(item.get("output"), f"{param}.output")
        name = names.get(call_id, "")
        return {"role": "tool", "content": text, "tool_call_id": call_id, "name": name}
    return None
