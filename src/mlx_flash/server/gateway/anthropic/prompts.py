"""Requests as the worker takes them: turns of text, calls and results, and how to answer."""

import json
from collections.abc import Sequence
from typing import Any

from ...messages import ChatPrompt, Generate, Grammar, Sampling
from ..backend import RequestError
from ..turns import chat_prompt, text_of, tool_call
from .blocks import (
    DocumentBlock,
    OtherBlock,
    Part,
    SearchResultBlock,
    TextBlock,
    ThinkingBlock,
    ToolChangeBlock,
    ToolReferenceBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from .requests import CountBody, MessageBody
from .signatures import thinking_in
from .tools import choice_of, tools_of

_BILLING = "x-anthropic-billing-header:"


def prompt_of(body: CountBody) -> ChatPrompt:
    """Return the prompt of a conversation.

    Raises:
        RequestError: it has what the model cannot read, or the result of a call that was not made.
    """
    messages: list[dict[str, Any]] = []
    if system := _system_text(body.system):
        messages.append({"role": "system", "content": system})
    names: dict[str, str] = {}
    for number, turn in enumerate(body.messages):
        place = f"messages.{number}"
        if turn.role == "assistant":
            messages.append(_assistant(turn.content, place, names))
        elif turn.role == "user":
            messages += _user(turn.content, place, names)
        elif text := _joined(turn.content, place):
            messages.append({"role": "system", "content": text})
    return chat_prompt(
        messages,
        tools_of(body),
        _template_options(body),
        continue_last=not (messages and messages[-1].get("tool_calls")),
    )


def generate_of(body: MessageBody) -> Generate:
    """Return what a request for a message asks of the worker.

    Raises:
        RequestError: as for `prompt_of`, or the tool to choose is missing.
    """
    prompt = prompt_of(body)
    if calls := prompt.messages[-1].get("tool_calls"):
        raise RequestError(
            "invalid",
            "messages: `tool_use` ids were found without `tool_result` blocks immediately after: "
            f"{', '.join(str(call['id'])[:100] for call in calls)}. Each `tool_use` block must "
            "have a corresponding `tool_result` block in the next message.",
        )
    choice = body.tool_choice
    wanted = (body.output_config and body.output_config.format) or body.output_format
    return Generate(
        request=0,
        prompt=prompt,
        max_tokens=body.max_tokens,
        stop=body.stop_sequences or [],
        sampling=Sampling(temperature=body.temperature, top_p=body.top_p, top_k=body.top_k),
        grammar=Grammar(kind="schema", text=json.dumps(wanted.json_schema)) if wanted else None,
        tool_choice=choice_of(body.tool_choice, prompt.tools),
        parallel_tool_calls=not (choice and choice.disable_parallel_tool_use),
    )


def _system_text(blocks: Sequence[Part]) -> str:
    """Return the system prompt, but for the line that differs with each request of a client.

    Claude Code puts a hash of the conversation there, before all that could be remembered.
    """
    texts = [_text(block, "system") for block in blocks]
    if texts and texts[0].startswith(_BILLING):
        texts[0] = texts[0].partition("\n")[2].lstrip("\n")
    return "\n\n".join(text for text in texts if text.strip())


def _joined(blocks: Sequence[Part], place: str) -> str:
    return "\n\n".join(text for block in blocks if (text := _text(block, place)))


def _user(blocks: Sequence[Part], place: str, names: dict[str, str]) -> list[dict[str, Any]]:
    """Return the turns of a user's message: what tools answered, and what the user says."""
    turns: list[dict[str, Any]] = []
    for number, block in enumerate(blocks):
        where = f"{place}.content.{number}"
        if isinstance(block, ToolResultBlock):
            turns.append(_result(block, where, names))
        elif text := _text(block, where):
            turns.append({"role": "user", "content": text})
    return turns or [{"role": "user", "content": ""}]


def _result(block: ToolResultBlock, where: str, names: dict[str, str]) -> dict[str, Any]:
    if block.tool_use_id not in names:
        raise RequestError(
            "invalid",
            f"{where}: unexpected `tool_use_id` found in `tool_result` blocks: "
            f"{block.tool_use_id[:100]}. Each `tool_result` block must have a corresponding "
            "`tool_use` block in the previous message.",
        )
    text = _joined(block.content, where)
    return {
        "role": "tool",
        "tool_call_id": block.tool_use_id,
        "name": names[block.tool_use_id],
        "content": f"Error: {text}" if block.is_error else text,
    }


def _assistant(blocks: Sequence[Part], place: str, names: dict[str, str]) -> dict[str, Any]:
    """Return the turn of the model; note in `names` which tools it called.

    What Anthropic's servers add for themselves, such as searches of theirs, is left out.
    """
    texts, thoughts, calls = [], [], []
    for number, block in enumerate(blocks):
        if isinstance(block, ToolUseBlock):
            names[block.id] = block.name
            calls.append(tool_call(block.id, block.name, block.input or {}))
        elif isinstance(block, ThinkingBlock):
            thoughts.append(block.thinking or thinking_in(block.signature))
        elif not isinstance(block, OtherBlock):
            texts.append(_text(block, f"{place}.content.{number}"))
    turn: dict[str, Any] = {"role": "assistant", "content": "\n\n".join(filter(None, texts))}
    if reasoning := "\n\n".join(filter(None, thoughts)):
        turn["reasoning_content"] = reasoning
    if calls:
        turn["tool_calls"] = calls
    return turn


def _text(block: Part, place: str) -> str:
    """Return a block as text.

    Raises:
        RequestError: it is none.
    """
    if isinstance(block, TextBlock):
        return block.text
    if isinstance(block, DocumentBlock):
        return _document(block, place)
    if isinstance(block, SearchResultBlock):
        return "\n\n".join((block.title, block.source, *(one.text for one in block.content)))
    if isinstance(block, ToolReferenceBlock):
        return f"The tool {block.tool_name} can be called."
    if isinstance(block, ToolChangeBlock):
        gone = block.type == "tool_removal"
        return f"The tool {block.tool.name} can no longer be called." if gone else ""
    kind = str(getattr(block, "type", None))[:40]
    raise RequestError("invalid", f"{place}: this model reads text here, not {kind!r}.", place)


def _document(block: DocumentBlock, place: str) -> str:
    source = block.source
    if source.type == "text" and source.data is not None:
        text = source.data
    elif source.type == "content":
        text = text_of(source.content, f"{place}.source.content")
    else:
        raise RequestError(
            "invalid",
            f"{place}: this model reads documents of text, not {source.type[:40]!r}: send the "
            "text in a source of type 'text'.",
            place,
        )
    return "\n\n".join(part for part in (block.title, block.context, text) if part)


def _template_options(body: CountBody) -> dict[str, Any]:
    """Return what the template is told: as with Anthropic, who wants thoughts asks for them."""
    thinks = body.thinking is not None and body.thinking.type != "disabled"
    options: dict[str, Any] = {"enable_thinking": thinks}
    if effort := body.output_config and body.output_config.effort:
        options["reasoning_effort"] = effort if effort in ("low", "medium") else "high"
    return options
