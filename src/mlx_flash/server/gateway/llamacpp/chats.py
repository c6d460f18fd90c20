"""Chats whose tokens or text are asked for, in the shape of OpenAI's messages."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ...messages import ChatPrompt
from .. import turns


class _Body(BaseModel):
    model_config = ConfigDict(extra="allow")


class Function(_Body):
    """A function that was called."""

    name: str
    arguments: Any = None


class Call(_Body):
    """A call in an earlier message."""

    id: str | None = None
    function: Function


class Message(_Body):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Any = None
    reasoning_content: str | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[Call] | None = None


class Signature(_Body):
    """A function that may be called; `parameters` are a JSON schema."""

    name: str
    description: str | None = None
    parameters: Any = None


class Tool(_Body):
    """A tool that may be called."""

    function: Signature


class Chat(_Body):
    """A conversation, with the tools and the template's options that belong to it."""

    messages: list[Message] | None = None
    tools: list[Tool] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None


def chat_prompt(body: Chat) -> ChatPrompt:
    """Return the prompt of a chat.

    Raises:
        RequestError: there is no message, or one that is not text.
    """
    return turns.chat_prompt(
        [_turn(number, message) for number, message in enumerate(body.messages or ())],
        [
            turns.tool(tool.function.name, tool.function.description, tool.function.parameters)
            for tool in body.tools or ()
        ],
        body.chat_template_kwargs,
        continue_last=bool(body.continue_final_message),
    )


def _turn(number: int, message: Message) -> dict[str, Any]:
    content = turns.text_of(message.content, f"messages.{number}.content")
    turn: dict[str, Any] = {"role": message.role, "content": content}
    if message.reasoning_content:
        turn["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        turn["tool_calls"] = [
            turns.tool_call(
                call.id or f"call_{number}_{place}",
                call.function.name,
                call.function.arguments or {},
            )
            for place, call in enumerate(message.tool_calls)
        ]
    if message.role in ("tool", "function"):
        turn["tool_call_id"], turn["name"] = message.tool_call_id or "", message.name or ""
    return turn
