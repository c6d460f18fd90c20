"""The Responses API as the official OpenAI client reads it: every object and event, strictly."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from listening import listening
from pydantic import BaseModel, TypeAdapter
from serving import FakeBackend, finished, said

from mlx_flash.server.messages import (
    ChatPrompt,
    Event,
    Failed,
    Grammar,
    Piece,
    TokenLogprob,
    ToolCall,
)

openai = pytest.importorskip("openai")

from openai.types.responses import (  # noqa: E402  (after the check that it is there)
    InputTokenCountResponse,
    Response,
    ResponseItemList,
    ResponseStreamEvent,
)

pytestmark = pytest.mark.filterwarnings("default")

LOOK = {
    "type": "function",
    "name": "look",
    "description": "Looks.",
    "parameters": {"type": "object", "properties": {"at": {"type": "integer"}}},
    "strict": True,
}
GRAMMAR = {"type": "grammar", "syntax": "lark", "definition": 'start: "x"'}
PATCH = {"type": "custom", "name": "patch", "description": "Patches.", "format": GRAMMAR}
SPACE = {
    "type": "namespace",
    "name": "agents",
    "description": "Agents.",
    "tools": [{"type": "function", "name": "wait"}],
}
TOKEN = TokenLogprob(5, "Hi", b"Hi", -0.5, [(6, "Ho", b"Ho", -1.5)])
EVERYTHING: list[Event | None] = [
    None,
    Piece(0, "reasoning", "Hm"),
    Piece(0, "reasoning", "m."),
    Piece(0, "text", "Hi", 1, [TOKEN]),
    ToolCall(0, "look", '{"at": 1}'),
    ToolCall(0, "patch", '{"input": "x"}'),
    ToolCall(0, "wait", "{}"),
    finished(reason="tools", reasoning_tokens=2),
]
SETTINGS: dict[str, Any] = {
    "model": "tiny-moe",
    "input": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
    "instructions": "Help.",
    "tools": [LOOK, PATCH, SPACE],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"name": "look"}]},
    "include": ["message.output_text.logprobs", "reasoning.encrypted_content"],
    "top_logprobs": 1,
    "reasoning": {"effort": "low", "summary": "auto"},
    "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
    "metadata": {"a": "b"},
    "max_output_tokens": 100,
}
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


@contextlib.contextmanager
def served(*script: Event | None) -> Iterator[tuple[str, Any, FakeBackend]]:
    """Yield the URL of a server that answers by a script, the official client, and the stand-in."""
    backend = FakeBackend(script)
    with (
        listening(backend) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield url, client, backend


def events_of(url: str, **body: Any) -> list[Any]:
    """Return the events of a stream, each checked against what the client knows of it."""
    events = []
    with httpx.stream("POST", f"{url}/v1/responses", json={**body, "stream": True}) as response:
        for line in response.iter_lines():
            if line.startswith("data: "):
                raw = json.loads(line.removeprefix("data: "))
                event = EVENTS.validate_python(raw, strict=True)
                assert event.type == raw["type"]
                assert set(event.model_extra or ()) <= {"name"}  # which older clients want
                events.append(event)
    return events


@pytest.mark.parametrize("settings", [SETTINGS, {"input": "Hi"}], ids=["all", "none"])
def test_a_response_is_what_the_client_knows(settings: dict[str, Any]) -> None:
    with served(*EVERYTHING) as (url, _, _):
        raw = httpx.post(f"{url}/v1/responses", json=settings).json()
        response = Response.model_validate(raw, strict=True)
        assert [item.type for item in response.output][:2] == ["reasoning", "message"]
        assert response.output_text == "Hi"
        again = httpx.get(f"{url}/v1/responses/{response.id}").json()
        assert again == raw
        items = httpx.get(f"{url}/v1/responses/{response.id}/input_items").json()
        ResponseItemList.model_validate(items, strict=True)
        tokens = {key: value for key, value in settings.items() if key in ("input", "tools")}
        counted = httpx.post(f"{url}/v1/responses/input_tokens", json=tokens).json()
        InputTokenCountResponse.model_validate(counted, strict=True)


@pytest.mark.parametrize("settings", [SETTINGS, {"input": "Hi"}], ids=["all", "none"])
def test_every_event_is_what_the_client_knows(settings: dict[str, Any]) -> None:
    with served(*EVERYTHING) as (url, _, _):
        events = events_of(url, **settings)
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert events[-1].response.output == done


@pytest.mark.parametrize("end", [finished(reason="length"), Failed(0, "overloaded", "Full.")])
def test_an_early_end_is_what_the_client_knows(end: Event) -> None:
    with served(Piece(0, "text", "Hel"), end) as (url, _, _):
        last = events_of(url, input="Hi")[-1]
    if isinstance(end, Failed):
        assert last.response.error.code == "rate_limit_exceeded"
    else:
        assert last.response.incomplete_details.reason == "max_output_tokens"


def test_items_of_every_kind_are_given_back_as_the_client_knows_them() -> None:
    with served(*EVERYTHING) as (url, client, _):
        first = client.responses.create(**SETTINGS)
        outputs = [
            {"type": f"{item.type}_output", "call_id": item.call_id, "output": "ok"}
            for item in first.output
            if item.type.endswith("_call")
        ]
        second = client.responses.create(input=outputs, previous_response_id=first.id)
        raw = httpx.get(f"{url}/v1/responses/{second.id}/input_items?order=asc").json()
        items = ResponseItemList.model_validate(raw, strict=True).data
        assert len(items) == 2 + 5 + 3
        listed = client.responses.input_items.list(second.id, order="asc", limit=3)
        assert [item.id for item in listed] == [item.id for item in items]


def test_the_client_streams_text_and_calls() -> None:
    with served(*EVERYTHING) as (_, client, _), client.responses.stream(**SETTINGS) as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert texts == ["Hi"]
    call = next(item for item in final.output if item.type == "function_call")
    assert json.loads(call.arguments) == {"at": 1}


def test_the_client_parses_an_answer_that_follows_a_schema() -> None:
    class Cat(BaseModel):
        name: str

    with served(*said('{"name": ', '"Tom"}')) as (_, client, backend):
        answer = client.responses.parse(model="m", input="A cat?", text_format=Cat)
    assert answer.output_parsed == Cat(name="Tom")
    grammar = backend.asked[0].grammar
    assert isinstance(grammar, Grammar)
    assert json.loads(grammar.text)["required"] == ["name"]


def test_the_client_goes_on_with_what_it_was_given() -> None:
    with served(*EVERYTHING) as (_, client, backend):
        first = client.responses.create(**SETTINGS)
        given = [item.model_dump(exclude_none=True) for item in first.output]
        client.responses.create(model="m", input=[{"role": "user", "content": "Hello"}, *given])
        prompt = backend.asked[1].prompt
    assert isinstance(prompt, ChatPrompt)
    (_, turn) = prompt.messages
    assert (turn["content"], turn["reasoning_content"]) == ("Hi", "Hmm.")
    assert [call["function"]["name"] for call in turn["tool_calls"]] == ["look", "patch", "wait"]


def test_the_client_finds_and_deletes_a_response() -> None:
    with served(*said("Hi")) as (_, client, _):
        response = client.responses.create(input="Hello")
        assert client.responses.retrieve(response.id).output_text == "Hi"
        with pytest.raises(openai.BadRequestError, match="background"):
            client.responses.cancel(response.id)
        client.responses.delete(response.id)
        with pytest.raises(openai.NotFoundError, match="no response"):
            client.responses.retrieve(response.id)


def test_the_client_raises_what_the_server_refuses() -> None:
    with served(Failed(0, "context_length", "Too long.")) as (_, client, _):
        with pytest.raises(openai.BadRequestError) as raised:
            client.responses.create(input="Hello")
        assert raised.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError) as raised:
            client.responses.create(input="Hello", background=True)
        assert raised.value.param == "background"
