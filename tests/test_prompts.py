"""From prompts to tokens: what cannot fit is refused by its length, before it is tokenized."""

import json
import re
from typing import Any

import pytest

from mlx_flash.engine.find import bundled_model
from mlx_flash.server.messages import ChatPrompt, Generate, TextPrompt
from mlx_flash.server.worker.prompts import ContextError, Prompts, forced_call_schema
from mlx_flash.streaming.tokens import open_tokenizer

VOCABULARY = 8192


def prompts(context_tokens: int = 256) -> Prompts:
    return Prompts(open_tokenizer(bundled_model()), VOCABULARY, context_tokens)


def wanted(prompt: Any) -> Generate:
    return Generate(request=1, prompt=prompt)


@pytest.mark.parametrize("chat", [False, True])
def test_of_what_cannot_fit_a_sample_is_tokenized(
    chat: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, letters = prompts(), 0
    text = "x y " * 1_000_000
    prompt = (
        ChatPrompt(messages=[{"role": "user", "content": text}]) if chat else TextPrompt(text=text)
    )
    encoded = asked.encoded

    def counted(text: str, add_special: bool) -> list[int]:
        nonlocal letters
        letters += len(text)
        return encoded(text, add_special)

    monkeypatch.setattr(asked, "encoded", counted)
    with pytest.raises(ContextError, match="maximum, by an estimate;") as caught:
        asked.checked(wanted(prompt))
    found = re.match(r"prompt is too long: (\d+) tokens > 255", str(caught.value))
    assert found is not None
    assert letters < len(text) / 10
    tokens = len(text) / 400 * len(encoded("x y " * 100, False))
    assert int(found[1]) == pytest.approx(tokens, rel=0.05)


def test_a_forced_call_keeps_what_may_be_open() -> None:
    inner = {"type": "object", "properties": {"a": {"type": "integer"}}}
    parameters = {
        "type": "object",
        "properties": {
            "closed": {"type": "array", "items": inner},
            "open": {**inner, "additionalProperties": {"type": "string"}},
            "both": {"allOf": [inner, {"type": "object", "properties": {"b": {}}}]},
            "unnamed": {**inner, "required": ["b"]},
        },
        "$defs": {"part": inner},
    }
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    schema = json.loads(forced_call_schema([tool], "=f"))["properties"]["arguments"]
    assert schema["additionalProperties"] is False
    places = schema["properties"]
    assert places["closed"]["items"] == {**inner, "additionalProperties": False}
    assert places["open"] == parameters["properties"]["open"]
    assert places["both"] == parameters["properties"]["both"]
    assert places["unnamed"] == parameters["properties"]["unnamed"]
    assert schema["$defs"] == parameters["$defs"]


def test_no_prompt_that_fits_is_refused_by_its_length() -> None:
    asked = prompts()
    tokenizer = open_tokenizer(bundled_model())
    longest = max(range(VOCABULARY), key=lambda token: len(tokenizer.decode([token])))
    text = tokenizer.decode([longest]) * 200
    tokens, _ = asked.checked(wanted(TextPrompt(text=text)))
    assert len(tokens) < 256
    assert asked.decoded(tokens) == text


def test_a_prompt_of_exactly_the_context_is_refused_with_its_tokens() -> None:
    asked = prompts()
    text = "x y " * 500
    tokens = asked.encoded(text, True)
    with pytest.raises(ContextError, match=f"{len(tokens)} tokens > 255"):
        asked.checked(wanted(TextPrompt(text=text)))
