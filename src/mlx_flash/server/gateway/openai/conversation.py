"""What a chat asks of the model: its prompt, and what the answer must look like."""

import json
from collections.abc import Sequence
from typing import Any

from ...messages import ChatPrompt, Grammar
from ..backend import RequestError
from ..responses.conversation import messages_of
from ..responses.items import items_of
from ..turns import chat_prompt, text_of, tool_call
from .chat_body import ChatBody, ChatMessage, ResponseFormat

_OURS = {
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversation",
    "documents",
    "messages",
    "return_dict",
    "return_tensors",
    "tokenize",
    "tools",
}
"""Options of a template that are not the client's to set."""


def prompt_of(body: ChatBody, tools: list[dict[str, Any]]) -> ChatPrompt:
    """Return the conversation for the model's template.

    Raises:
        RequestError: there is none, or something in it that is no text.
    """
    if body.messages is None and body.input is None:
        raise RequestError("invalid", "messages: there are none, send one or more.", "messages")
    messages = body.messages or []
    turns = _turns(messages)
    if body.messages is None and body.input is not None:
        turns = messages_of(items_of(body.input), lambda name, namespace: name)
    if body.instructions:
        turns.insert(0, {"role": "system", "content": body.instructions})
    last = messages[-1] if messages else None
    return chat_prompt(
        turns,
        tools,
        _template_options(body),
        bool(body.continue_final_message or (last and (last.prefix or last.partial))),
    )


def grammar_of(body: ChatBody) -> Grammar | None:
    """Return what the answer must look like; None for any text.

    Raises:
        RequestError: a schema is missing, or is none.
    """
    wanted = body.response_format or (body.text.format if body.text else None)
    if wanted is None or wanted.type == "text":
        return None
    schema = _schema(wanted)
    if schema is None:
        if wanted.type == "json_object":
            return Grammar(kind="json")
        raise RequestError("invalid", "response_format: it has no schema.", "response_format")
    if not isinstance(schema, dict | bool):
        raise RequestError("invalid", "response_format: a schema is an object.", "response_format")
    return Grammar(kind="schema", text=json.dumps(schema, ensure_ascii=False))


def _schema(wanted: ResponseFormat) -> Any:
    if wanted.json_schema is not None:
        return wanted.json_schema.schema_
    return wanted.schema_


def _template_options(body: ChatBody) -> dict[str, Any]:
    """Return what goes to the template; `chat_template_kwargs` has the last word."""
    given = body.chat_template_kwargs or {}
    if taken := _OURS.intersection(given):
        raise RequestError(
            "invalid",
            f"chat_template_kwargs: {min(taken)} is the server's to set: leave it out.",
            "chat_template_kwargs",
        )
    effort = body.reasoning_effort or (body.reasoning.effort if body.reasoning else None)
    options: dict[str, Any] = {}
    if effort is not None:
        options = {"enable_thinking": False} if effort == "none" else {"reasoning_effort": effort}
    return {**options, **given}


def _turns(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Return the messages as templates take them; a tool's is told the name of its tool."""
    names: dict[str, str] = {}
    turns: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        content = text_of(message.content, f"messages.{number}.content")
        turn: dict[str, Any] = {"role": message.role, "content": content}
        if message.role == "assistant":
            calls = _calls(message)
            names.update({call["id"]: call["function"]["name"] for call in calls})
            if calls:
                turn["tool_calls"] = calls
            reasoning = message.reasoning_content or message.reasoning
            if reasoning and isinstance(reasoning, str):
                turn["reasoning_content"] = reasoning
        elif message.role in ("tool", "function"):
            call_id = message.tool_call_id or message.name or ""
            turn["tool_call_id"] = call_id
            turn["name"] = message.name or names.get(call_id, "")
        turns.append(turn)
    return turns


def _calls(message: ChatMessage) -> list[dict[str, Any]]:
    """Return the calls of an earlier message; an old client's call goes by its function's name."""
    calls = []
    for call in message.tool_calls or ():
        if call.function is not None:
            calls.append(tool_call(call.id or "", call.function.name, call.function.arguments))
        elif call.custom is not None:
            calls.append(tool_call(call.id or "", call.custom.name, {"input": call.custom.input}))
    if message.function_call is not None:
        name = message.function_call.name
        calls.append(tool_call(name, name, message.function_call.arguments))
    return calls
