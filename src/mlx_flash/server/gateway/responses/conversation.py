"""Items of a conversation as the prompt and the question for the worker."""

from collections.abc import Callable
from typing import Any

from ...messages import ChatPrompt, Generate, Sampling
from ..turns import chat_prompt, text_of, tool_call
from .items import Item
from .request import PromptRequest, ResponseRequest
from .tools import Choice, Toolbox

OfferedName = Callable[[str, str | None], str]
"""Returns under which name a tool, given with its namespace, is offered to the model."""


def prompt_of(request: PromptRequest, items: list[Item], toolbox: Toolbox) -> ChatPrompt:
    """Return the prompt. An empty conversation is one empty message, so that a model can be tried.

    Raises:
        RequestError: the conversation cannot be put to a model.
    """
    messages = messages_of(items, toolbox.offered_name) or [{"role": "user", "content": ""}]
    if request.instructions:
        messages = [{"role": "system", "content": request.instructions}, *messages]
    return chat_prompt(messages, toolbox.templates, request.thinking.template_options())


def question_of(request: ResponseRequest, prompt: ChatPrompt, choice: Choice) -> Generate:
    """Return what to ask the worker."""
    return Generate(
        request=0,
        prompt=prompt,
        max_tokens=request.max_output_tokens,
        sampling=Sampling(
            temperature=request.temperature,
            top_p=request.top_p,
            presence_penalty=request.presence_penalty,
            frequency_penalty=request.frequency_penalty,
        ),
        grammar=request.format.grammar(),
        top_logprobs=request.wanted_logprobs,
        tool_choice=choice.wanted,
        parallel_tool_calls=request.parallel_tool_calls is not False,
    )


def messages_of(items: list[Item], offered_name: OfferedName) -> list[dict[str, Any]]:
    """Return items as messages; `chat_prompt` joins those that one turn consists of."""
    names: dict[str, str] = {}
    messages = []
    for item in items:
        message = _message(item, offered_name)
        for call in message.get("tool_calls", ()):
            names[call["id"]] = call["function"]["name"]
        if message["role"] == "tool":  # some templates want to know whose output it is
            message["name"] = names.get(message["tool_call_id"], "")
        messages.append(message)
    return messages


def _message(item: Item, offered_name: OfferedName) -> dict[str, Any]:
    kind = item["type"]
    if kind == "message":
        return {"role": item["role"], "content": text_of(item["content"], "input")}
    if kind == "reasoning":
        texts = [part["text"] for part in item["content"] or item["summary"]]
        return {"role": "assistant", "content": "", "reasoning_content": "\n\n".join(texts)}
    if kind in ("function_call", "custom_tool_call"):
        name = offered_name(item["name"], item.get("namespace"))
        given = item["arguments"] if kind == "function_call" else {"input": item["input"]}
        call = tool_call(item["call_id"], name, given)
        return {"role": "assistant", "content": "", "tool_calls": [call]}
    return {"role": "tool", "content": item["output"], "tool_call_id": item["call_id"]}
