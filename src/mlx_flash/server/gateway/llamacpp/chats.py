"""Chats whose tokens or text are asked for, in the shape of OpenAI's messages."""

from typing import Any, Literal

from ...messages import ChatPrompt
from .. import turns
from ..fields import Fields
from ..tool_fields import Call, Tool, offered


class Message(Fields):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Any = None
    reasoning_content: str | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[Call] | None = None


class Chat(Fields):
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
        offered(body.tools),
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
