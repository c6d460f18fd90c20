"""The OpenAI SDK against the server; what it parses leniently is checked strictly as well."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from asking import CHAT, HELLO, TEXT, WEATHER, Backend, events_of
from listening import listening
from serving import FakeBackend, finished, said

from mlx_flash.server.messages import Failed, Piece, TokenLogprob, ToolCall

openai = pytest.importorskip("openai")
types = pytest.importorskip("openai.types")
chat_types = pytest.importorskip("openai.types.chat")

LOGPROB = TokenLogprob(1, "Hi", b"Hi", -0.5, [(1, "Hi", b"Hi", -0.5), (2, "Yo", b"Yo", -1.5)])
FULL = [
    Piece(0, "reasoning", "Hm."),
    Piece(0, "text", "Hi", 1, [LOGPROB]),
    ToolCall(0, "weather", '{"city": "Rome"}'),
    ToolCall(0, "weather", '{"city": "Oslo"}'),
    finished(reason="tools"),
]


def client(url: str, **more: Any) -> Any:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, **more)


def strict(model: Any, body: Any) -> Any:
    return model.model_validate(body, strict=True)


def posted(url: str, path: str, body: Any) -> httpx.Response:
    response = httpx.post(url + path, json=body)
    assert response.status_code == 200, response.text
    return response


@pytest.fixture(scope="module")
def full() -> Iterator[str]:
    with listening(Backend(FULL)) as url:
        yield url


@pytest.mark.parametrize("n", [1, 2])
def test_the_json_of_a_chat_is_what_the_types_say(full: str, n: int) -> None:
    body = {**HELLO, "tools": [WEATHER], "logprobs": True, "top_logprobs": 2, "n": n}
    reply = strict(chat_types.ChatCompletion, posted(full, CHAT, body).json())
    assert len(reply.choices) == n
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, end = events_of(posted(full, CHAT, body).text)
    assert end == "[DONE]"
    for chunk in chunks:
        strict(chat_types.ChatCompletionChunk, chunk)


def test_the_json_of_a_completion_is_what_the_types_say(full: str) -> None:
    body = {"prompt": ["a", "b"], "logprobs": 1, "model": "m"}
    reply = strict(types.Completion, posted(full, TEXT, body).json())
    assert [choice.text for choice in reply.choices] == ["Hm.Hi", "Hm.Hi"]
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    opening, *chunks, end = events_of(posted(full, TEXT, body).text)
    assert (opening, end) == (": accepted", "[DONE]")
    for chunk in chunks:
        for choice in chunk["choices"]:
            choice["finish_reason"] = choice["finish_reason"] or "stop"  # the types forget streams
        strict(types.Completion, chunk)


def test_the_json_of_models_is_what_the_types_of_both_sdks_say(full: str) -> None:
    body = httpx.get(f"{full}/v1/models").json()
    for model in body["data"]:
        strict(types.Model, model)
    anthropic = pytest.importorskip("anthropic")
    for model in body["data"]:
        anthropic.types.ModelInfo.model_validate(model)
    page = anthropic.Anthropic(base_url=full, api_key="none").models.list()
    assert [model.display_name for model in page] == ["tiny-moe", "tiny-moe"]
    assert [model.id for model in client(full).models.list()] == ["tiny-moe", "claude-tiny-moe"]
    assert client(full).models.retrieve("tiny-moe").owned_by == "mlx-flash"
    with pytest.raises(openai.NotFoundError) as caught:
        client(full).models.retrieve("other")
    assert caught.value.code == "model_not_found"


def test_a_chat(full: str) -> None:
    reply = client(full).chat.completions.create(model="m", tools=[WEATHER], **HELLO)
    choice = reply.choices[0]
    assert (choice.message.content, choice.finish_reason) == ("Hi", "tool_calls")
    assert [call.function.arguments for call in choice.message.tool_calls] == [
        '{"city": "Rome"}',
        '{"city": "Oslo"}',
    ]
    assert choice.message.reasoning_content == "Hm."
    assert reply.usage.prompt_tokens_details.cached_tokens == 4


def test_a_stream_is_put_together_by_the_sdk(full: str) -> None:
    create = client(full).chat.completions.stream
    with create(model="m", tools=[WEATHER], logprobs=True, top_logprobs=2, **HELLO) as stream:
        stream.until_done()
        reply = stream.get_final_completion()
    choice = reply.choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", "Hi")
    assert [call.function.name for call in choice.message.tool_calls] == ["weather", "weather"]
    assert choice.logprobs.content[0].top_logprobs[1].bytes == [89, 111]
    assert choice.finish_reason == "tool_calls"


def test_several_chats_are_streamed_at_once() -> None:
    async def ask(sdk: Any) -> list[str]:
        stream = await sdk.chat.completions.create(model="m", stream=True, n=2, **HELLO)
        texts = ["", ""]
        async for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
        return texts

    async def work(url: str) -> list[list[str]]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as sdk:
            return list(await asyncio.gather(*(ask(sdk) for _ in range(4))))

    with listening(FakeBackend(said("a", "b", "c"))) as url:
        assert asyncio.run(work(url)) == [["abc", "abc"]] * 4


def test_a_completion(full: str) -> None:
    reply = client(full).completions.create(model="m", prompt=[[1, 2], [3]], logprobs=2)
    assert [choice.index for choice in reply.choices] == [0, 1]
    assert reply.choices[0].logprobs.top_logprobs == [{"Hi": -0.5, "Yo": -1.5}]
    stream = client(full).completions.create(model="m", prompt="a", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "Hm.Hi"


@pytest.mark.parametrize(
    ("kind", "error", "code"),
    [
        ("invalid", "BadRequestError", None),
        ("context_length", "BadRequestError", "context_length_exceeded"),
        ("overloaded", "RateLimitError", "rate_limit_exceeded"),
        ("internal", "InternalServerError", None),
        ("unavailable", "InternalServerError", None),
    ],
)
def test_a_refusal_is_the_sdks_exception(kind: Any, error: str, code: str | None) -> None:
    with listening(FakeBackend([Failed(0, kind, "it cannot be.")])) as url:
        for stream in (False, True):
            with pytest.raises(getattr(openai, error)) as caught:
                client(url).chat.completions.create(model="m", stream=stream, **HELLO)
            assert caught.value.code == code
            assert "it cannot be." in caught.value.message


def test_other_errors_are_the_sdks_exceptions(full: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client(full).chat.completions.create(model="m", temperature=-1, **HELLO)
    assert (caught.value.param, caught.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.APIStatusError) as caught:
        client(full).embeddings.create(model="m", input="a")
    assert caught.value.status_code == 501
    listening_to_some = listening(FakeBackend(), api_keys=("secret-key",))
    with listening_to_some as url, pytest.raises(openai.AuthenticationError):
        client(url).models.list()


def test_a_failure_in_a_stream_is_raised_where_it_is_read() -> None:
    with listening(FakeBackend([Piece(0, "text", "a"), Failed(0, "internal", "no.")])) as url:
        stream = client(url).chat.completions.create(model="m", stream=True, **HELLO)
        texts = []
        with pytest.raises(openai.APIError, match=r"no\."):
            texts += [chunk.choices[0].delta.content for chunk in stream]
