"""Conversations in the form that chat templates take, from whatever shape an API gives them."""

import json
from typing import Any

from ..messages import ChatPrompt
from .backend import RequestError
from .soundness import check_sound

_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")


def text_of(content: Any, param: str) -> str:
    """Return the text of a message's content: a string, parts of text, or nothing.

    Raises:
        RequestError: there is something else in it, such as an image.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    texts = []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, dict):
            raise RequestError("invalid", f"{param}: content is text, or a list of parts.", param)
        kind = part.get("type")
        if kind not in _TEXT_PARTS:
            raise RequestError(
                "invalid", f"{param}: this model reads text, not {str(kind)[:40]!r}.", param
            )
        text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise RequestError("invalid", f"{param}: a part of text has no text.", param)
        texts.append(text)
    return "\n".join(texts)


def arguments_of(arguments: Any) -> dict[str, Any]:
    """Return the arguments of an earlier tool call, which clients send as JSON text or as JSON.

    What is no JSON object, or none that can be passed on, is kept under `input`, so that the model
    sees it.
    """
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments or "{}")
            check_sound(parsed)
        except (ValueError, RecursionError, RequestError):
            parsed = arguments
        return parsed if isinstance(parsed, dict) else {"input": parsed}
    return arguments if isinstance(arguments, dict) else {"input": arguments}


def tool_call(call_id: str, name: str, arguments: Any) -> dict[str, Any]:
    """Return an earlier tool call as templates take it."""
    function = {"name": name, "arguments": arguments_of(arguments)}
    return {"id": call_id, "type": "function", "function": function}


def tool(name: str, description: str | None, parameters: Any) -> dict[str, Any]:
    """Return a tool that may be called as templates take it."""
    schema = parameters if isinstance(parameters, dict) else {"type": "object", "properties": {}}
    function = {"name": name, "description": description or "", "parameters": schema}
    return {"type": "function", "function": function}


def chat_prompt(
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None = None,
    template_options: dict[str, Any] | None = None,
    continue_last: bool = False,
) -> ChatPrompt:
    """Return the prompt of a conversation whose messages have role and text already.

    Most templates take one system message, and that first. Those that come first are joined; a
    later one is put at the end of the message before it, marked, where the model sees it in its
    place and the tokens before it stay what they were. Neighbours of one role are joined.

    Raises:
        RequestError: there is no message.
    """
    folded: list[dict[str, Any]] = []
    for message in messages:
        message = {**message, "role": _role(message["role"])}
        last = folded[-1] if folded else None
        if message["role"] == "system" and last is not None and last["role"] != "system":
            note = f"<system-reminder>\n{message['content']}\n</system-reminder>"
            if last["role"] == "user":
                last["content"] = f"{last['content']}\n\n{note}"
                continue
            message = {"role": "user", "content": note}
            last = folded[-1]
        if last is not None and last["role"] == message["role"] and last["role"] != "tool":
            _join(last, message)
            continue
        folded.append(message)
    if not folded:
        raise RequestError("invalid", "messages: there is none, send one or more.", "messages")
    return ChatPrompt(
        messages=folded,
        tools=tools or [],
        template_options=template_options or {},
        continue_last=continue_last and folded[-1]["role"] == "assistant",
    )


def _role(role: str) -> str:
    return {"developer": "system", "function": "tool"}.get(role, role)


def _join(last: dict[str, Any], message: dict[str, Any]) -> None:
    """Add a message to the one before it, which is of the same role."""
    texts = [text for text in (last.get("content"), message.get("content")) if text]
    last["content"] = "\n\n".join(texts)
    if calls := message.get("tool_calls"):
        last["tool_calls"] = [*last.get("tool_calls", ()), *calls]
    if reasoning := message.get("reasoning_content"):
        before = last.get("reasoning_content")
        last["reasoning_content"] = f"{before}\n\n{reasoning}" if before else reasoning
