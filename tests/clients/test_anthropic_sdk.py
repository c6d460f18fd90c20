"""The official SDK against a server on a socket; its types check raw replies and events."""

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from serving import CARD, FakeBackend, finished, said

from mlx_flash.server.messages import Failed, Piece, ToolCall

anthropic = pytest.importorskip("anthropic")
httpx = pytest.importorskip("httpx")
from anthropic import types  # noqa: E402
from anthropic.types import beta  # noqa: E402
from listening import listening  # noqa: E402
from pydantic import TypeAdapter  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")

HELLO: dict[str, Any] = {
    "model": "claude-any",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "Hi"}],
}
TOOL = {"name": "get_time", "description": "Tells it.", "input_schema": {"type": "object"}}
EVERYTHING = [
    Piece(0, "reasoning", "Hm."),
    None,
    Piece(0, "text", "So: "),
    Piece(0, "text", "now"),
    ToolCall(0, "get_time", '{"zone": "UTC"}'),
    ToolCall(0, "get_time", "{}"),
    finished(reason="tools", completion_tokens=9, reasoning_tokens=3),
]


@pytest.fixture(scope="module")
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture(scope="module")
def url(backend: FakeBackend) -> Iterator[str]:
    with listening(backend) as url:
        yield url


@pytest.fixture(scope="module")
def plain(url: str) -> Iterator[Any]:
    """Sends raw bodies."""
    with httpx.Client(base_url=url) as plain:
        yield plain


@pytest.fixture(autouse=True)
def fresh(backend: FakeBackend) -> None:
    backend.script = said("Hel", "lo")
    backend.asked.clear()
    backend.card = CARD


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=url, api_key="any", max_retries=0) as client:
        yield client


def strictly(kind: Any, raw: str) -> Any:
    """Return what raw JSON is by one of the SDK's types, which calls itself lax otherwise."""
    return TypeAdapter(kind).validate_json(raw, strict=True)


@pytest.mark.parametrize("kind", [types.Message, beta.BetaMessage])
def test_raw_message_is_what_the_types_say(plain: Any, backend: FakeBackend, kind: Any) -> None:
    backend.script = EVERYTHING
    message = strictly(kind, plain.post("/v1/messages", json=HELLO).text)
    assert set(kind.model_fields) - message.model_fields_set <= {
        "diagnostics",
        "context_management",
        "input_transformations",
    }
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert message.usage.output_tokens_details.thinking_tokens == 3


@pytest.mark.parametrize("kind", [types.RawMessageStreamEvent, beta.BetaRawMessageStreamEvent])
@pytest.mark.parametrize("display", ["summarized", "omitted"])
def test_raw_events_are_what_the_types_say(
    plain: Any, backend: FakeBackend, kind: Any, display: str
) -> None:
    backend.script = EVERYTHING
    thinking = {"type": "adaptive", "display": display}
    body = {**HELLO, "stream": True, "thinking": thinking}
    text = plain.post("/v1/messages?beta=true", json=body).text
    kinds = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        if name != "event: ping":
            kinds.append(strictly(kind, data.removeprefix("data: ")).type)
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 4


def test_raw_count_is_what_the_types_say(plain: Any) -> None:
    body = {key: value for key, value in HELLO.items() if key != "max_tokens"}
    raw = plain.post("/v1/messages/count_tokens", json=body).text
    assert strictly(types.MessageTokensCount, raw).input_tokens > 0


def test_raw_error_is_what_the_types_say(plain: Any) -> None:
    raw = plain.post("/v1/messages", json={}).text
    assert strictly(types.ErrorResponse, raw).error.type == "invalid_request_error"


def test_sdk_creates_a_message(client: Any) -> None:
    message = client.messages.create(**HELLO)
    assert message.content[0].text == "Hello"
    assert message._request_id.startswith("req_")
    assert message.usage.input_tokens + message.usage.cache_read_input_tokens == 7


def test_sdk_counts_tokens(client: Any) -> None:
    count = client.messages.count_tokens(model="m", messages=HELLO["messages"], tools=[TOOL])
    assert count.input_tokens > 0


@pytest.mark.parametrize("is_beta", [False, True])
def test_stream_helper_gathers_what_a_message_would_hold(
    client: Any, backend: FakeBackend, is_beta: bool
) -> None:
    backend.script = EVERYTHING
    messages = client.beta.messages if is_beta else client.messages
    with messages.stream(**HELLO, tools=[TOOL]) as stream:
        seen = {event.type for event in stream}
        message = stream.get_final_message()
    assert {"text", "thinking", "signature", "input_json", "content_block_stop"} <= seen
    thought, text, first, second = message.content
    assert (thought.thinking, thought.signature) == ("Hm.", "mlx-flash")
    assert text.text == "So: now"
    assert (first.input, second.input) == ({"zone": "UTC"}, {})
    assert message.stop_reason == "tool_use"
    assert (message.usage.output_tokens, message.usage.input_tokens) == (9, 3)


def test_answers_go_back_as_they_came(client: Any, backend: FakeBackend) -> None:
    backend.script = EVERYTHING
    message = client.messages.create(**HELLO, tools=[TOOL])
    uses = [block for block in message.content if block.type == "tool_use"]
    results = [
        {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "5"}]}
        for use in uses
    ]
    turns = [
        *HELLO["messages"],
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": results},
    ]
    client.messages.create(**{**HELLO, "messages": turns}, tools=[TOOL])
    sent = backend.asked[-1].prompt.messages  # type: ignore[union-attr]
    assert [one["role"] for one in sent] == ["user", "assistant", "tool", "tool"]
    assert sent[1]["reasoning_content"] == "Hm."
    assert sent[1]["tool_calls"][0]["function"]["arguments"] == {"zone": "UTC"}


def test_asynchronous_client_streams_text(url: str) -> None:
    async def run() -> str:
        async with (
            anthropic.AsyncAnthropic(base_url=url, auth_token="any") as client,
            client.messages.stream(**HELLO) as stream,
        ):
            return "".join([text async for text in stream.text_stream])

    assert asyncio.run(run()) == "Hello"


def test_parsed_output_follows_a_schema(client: Any, backend: FakeBackend) -> None:
    from pydantic import BaseModel

    class Bird(BaseModel):
        name: str

    backend.script = said('{"name": ', '"heron"}')
    message = client.messages.parse(**HELLO, output_format=Bird)
    assert message.parsed_output == Bird(name="heron")
    grammar = backend.asked[0].grammar
    assert grammar is not None
    assert json.loads(grammar.text)["properties"]["name"]["type"] == "string"


@pytest.mark.parametrize(
    ("kind", "exception"),
    [
        ("invalid", "BadRequestError"),
        ("context_length", "BadRequestError"),
        ("overloaded", "RateLimitError"),
        ("internal", "InternalServerError"),
        ("unavailable", "InternalServerError"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusal_is_an_exception_of_the_sdk(
    client: Any, backend: FakeBackend, kind: Any, exception: str, stream: bool
) -> None:
    backend.script = [Failed(0, kind, "there is no answer.")]
    with pytest.raises(getattr(anthropic, exception)) as caught:
        client.messages.create(**HELLO, stream=stream)
    assert caught.value.body["error"]["message"].endswith("there is no answer.")
    assert caught.value.request_id.startswith("req_")


def test_failure_in_a_stream_is_an_exception_of_the_sdk(client: Any, backend: FakeBackend) -> None:
    backend.script = [Piece(0, "text", "x"), Failed(0, "internal", "the model process ended.")]
    with pytest.raises(anthropic.APIStatusError) as caught:
        for _ in client.messages.create(**HELLO, stream=True):
            pass
    assert caught.value.type == "api_error"
    assert "the model process ended." in str(caught.value)


@pytest.mark.parametrize("stream", [False, True])
def test_client_that_hangs_up_ends_the_answer(
    url: str, plain: Any, backend: FakeBackend, stream: bool
) -> None:
    backend.script = [Piece(0, "text", "x")]  # goes on for ever
    before = backend.cancelled
    body = json.dumps({**HELLO, "stream": stream}).encode()
    host = url.removeprefix("http://")
    head = f"POST /v1/messages HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
    name, port = host.split(":")
    with socket.create_connection((name, int(port))) as connection:
        connection.sendall(head.encode() + body)
        assert _comes_true(plain, lambda: len(backend.asked) == 1)
        assert backend.cancelled == before
    assert _comes_true(plain, lambda: backend.cancelled == before + 1)


def _comes_true(plain: Any, fact: Callable[[], bool]) -> bool:
    """Return whether it is so at last; meanwhile the server is kept busy with other requests."""
    return any(fact() or plain.get("/health").is_error for _ in range(500))


def test_key_is_taken_in_either_header() -> None:
    with listening(FakeBackend(), api_keys=("secret-key",)) as url:
        for credentials in ({"api_key": "secret-key"}, {"auth_token": "secret-key"}):
            with anthropic.Anthropic(base_url=url, **credentials) as client:
                assert client.messages.create(**HELLO).content[0].text == "Hello"
        with (
            anthropic.Anthropic(base_url=url, api_key="another-key") as client,
            pytest.raises(anthropic.AuthenticationError),
        ):
            client.messages.create(**HELLO)
