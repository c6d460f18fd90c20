"""How what Ollama's clients ask for is put to the model."""

import json
from typing import Any

from ...messages import ChatPrompt, Generate, Grammar, ModelCard, Prompt, Sampling, TextPrompt
from .. import turns
from ..backend import RequestError
from ..tool_fields import offered
from .asked import Asked, GenerateBody, Message, OllamaChatBody, Options


def chat_prompt(body: OllamaChatBody, card: ModelCard | None) -> ChatPrompt:
    """Return the prompt of a chat.

    Raises:
        RequestError: images, or something that this model cannot do.
    """
    messages = body.messages or []
    for number, message in enumerate(messages):
        _no_images(message.images, f"messages.{number}.images")
    _check_model(card, tools=bool(body.tools), think=body.think)
    return turns.chat_prompt(
        _turns(messages),
        offered(body.tools),
        _template_options(body.think),
        continue_last=not (messages and messages[-1].tool_calls),
    )


def text_prompt(body: GenerateBody, card: ModelCard | None) -> Prompt:
    """Return the prompt of /api/generate: a chat of one message, or the text as it is.

    Raises:
        RequestError: images, or something that this model cannot do.
    """
    _no_images(body.images, "images")
    _check_model(card, tools=False, think=body.think)
    text = body.prompt or ""
    if body.raw or body.suffix:
        return TextPrompt(text=text, suffix=body.suffix or "")
    messages = [{"role": "system", "content": body.system}] if body.system else []
    messages.append({"role": "user", "content": text})
    return turns.chat_prompt(messages, template_options=_template_options(body.think))


def wanted(body: Asked, prompt: Prompt) -> Generate:
    """Return the request to the worker.

    Raises:
        RequestError: the schema in `format` is no JSON.
    """
    options = body.options or Options()
    seed, top_k, most = options.seed, options.top_k, options.num_predict
    return Generate(
        request=0,
        prompt=prompt,
        max_tokens=most if most is not None and most > 0 else None,
        stop=options.stop or [],
        sampling=Sampling(
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=None if top_k is None else max(0, top_k),
            min_p=options.min_p,
            repetition_penalty=options.repeat_penalty,
            presence_penalty=options.presence_penalty,
            frequency_penalty=options.frequency_penalty,
            seed=seed if seed is not None and seed >= 0 else None,
        ),
        grammar=_grammar(body.format),
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )


def _turns(messages: list[Message]) -> list[dict[str, Any]]:
    """Return messages as templates take them; results find their calls by name, or in order."""
    found: list[dict[str, Any]] = []
    open_calls: list[tuple[str, str]] = []
    for number, message in enumerate(messages):
        content = turns.text_of(message.content, f"messages.{number}.content")
        turn: dict[str, Any] = {"role": message.role, "content": content}
        if message.thinking:
            turn["reasoning_content"] = message.thinking
        if message.tool_calls:
            calls = [
                (call.id or f"call_{number}_{place}", call.function)
                for place, call in enumerate(message.tool_calls)
            ]
            turn["tool_calls"] = [
                turns.tool_call(call_id, function.name, function.arguments or {})
                for call_id, function in calls
            ]
            open_calls = [(call_id, function.name) for call_id, function in calls]
        if message.role in ("tool", "function"):
            turn["tool_call_id"], turn["name"] = _call_of(message, open_calls)
        found.append(turn)
    return found


def _call_of(message: Message, open_calls: list[tuple[str, str]]) -> tuple[str, str]:
    """Return id and name of the call that a result is of, and take it from the open ones."""
    wanted_id, name = message.tool_call_id, message.tool_name
    matching = [call for call in open_calls if call[0] == wanted_id]
    matching = matching or [call for call in open_calls if call[1] == name] or open_calls
    if not matching:
        return wanted_id or "call_0", name or ""
    call = matching[0]
    open_calls.remove(call)
    return wanted_id or call[0], name or call[1]


def _no_images(images: list[Any] | None, param: str) -> None:
    if images:
        raise RequestError("invalid", f"{param}: this model reads text, not images.", param)


def _check_model(card: ModelCard | None, tools: bool, think: bool | str | None) -> None:
    """Refuse in Ollama's words, which clients look for, what the model's template cannot say."""
    if card is None:
        return
    if tools and not card.has_tools:
        raise RequestError("invalid", f"{card.name} does not support tools", "tools")
    if think and not card.has_thinking:
        raise RequestError("invalid", f"{card.name} does not support thinking", "think")


def _template_options(think: bool | str | None) -> dict[str, Any]:
    if think is None:
        return {}
    if isinstance(think, str):
        return {"enable_thinking": True, "reasoning_effort": think}
    return {"enable_thinking": think}


def _grammar(form: dict[str, Any] | str | None) -> Grammar | None:
    if not form and not isinstance(form, dict):
        return None
    if isinstance(form, str):
        return Grammar(kind="json")
    try:
        return Grammar(kind="schema", text=json.dumps(form, allow_nan=False))
    except (ValueError, RecursionError) as error:
        raise RequestError("invalid", "format: this is no JSON schema.", "format") from error
