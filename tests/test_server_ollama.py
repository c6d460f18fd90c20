"""What Ollama's clients see: its lists, its chats line by line, its errors."""

import asyncio
import json
from datetime import datetime, timedelta
from typing import Any

import httpx
import msgspec
import pytest
from serving import CARD, FakeBackend, app_of, client_of, finished, said

from mlx_flash.server.gateway.ollama import running
from mlx_flash.server.gateway.ollama.answers import ChatPart, GeneratePart
from mlx_flash.server.messages import (
    ChatPrompt,
    Failed,
    Grammar,
    Piece,
    Prefilled,
    Sampling,
    TextPrompt,
    TokenLogprob,
    ToolCall,
)

HELLO = [{"role": "user", "content": "Hello"}]


def ask(method: str, path: str, body: Any = None, backend: FakeBackend | None = None) -> Any:
    async def asked() -> httpx.Response:
        async with client_of(backend or FakeBackend()) as client:
            return await client.request(method, path, json=body)

    return asyncio.run(asked())


def chat(backend: FakeBackend | None = None, **body: Any) -> Any:
    return ask("POST", "/api/chat", {"model": "any", "messages": HELLO, **body}, backend)


def generate(backend: FakeBackend | None = None, **body: Any) -> Any:
    return ask("POST", "/api/generate", {"model": "any", "prompt": "Hello", **body}, backend)


def lines(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.text.endswith("\n")
    return [json.loads(line) for line in response.text.splitlines()]


def asked(response: httpx.Response, backend: FakeBackend) -> Any:
    assert response.status_code == 200, response.text
    return backend.asked[-1]


def refusal(response: httpx.Response) -> str:
    assert set(response.json()) == {"error"}
    return str(response.json()["error"])


def without(**changes: Any) -> FakeBackend:
    backend = FakeBackend()
    backend.card = msgspec.structs.replace(CARD, **changes)
    return backend


def test_chat_streams_a_line_for_each_piece_and_one_with_the_durations() -> None:
    got = lines(chat())
    said_at = [
        datetime.fromisoformat(line.pop("created_at").replace("Z", "+00:00")) for line in got
    ]
    assert all(at.utcoffset() == timedelta(0) for at in said_at)
    assert got == [
        {"model": "any", "message": {"role": "assistant", "content": "Hel"}, "done": False},
        {"model": "any", "message": {"role": "assistant", "content": "lo"}, "done": False},
        {
            "model": "any",
            "message": {"role": "assistant", "content": ""},
            "done": True,
            "done_reason": "stop",
            "total_duration": 51_000_000,
            "load_duration": 0,
            "prompt_eval_count": 7,
            "prompt_eval_duration": 20_000_000,
            "eval_count": 2,
            "eval_duration": 30_000_000,
        },
    ]


def test_chat_without_stream_is_one_object() -> None:
    response = chat(stream=False)
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body["message"] == {"role": "assistant", "content": "Hello"}
    assert body["done"] is True
    assert body["eval_count"] == 2


def test_generate_answers_under_response() -> None:
    got = lines(generate())
    assert [line["response"] for line in got] == ["Hel", "lo", ""]
    assert got[-1]["done_reason"] == "stop"
    body = generate(stream=False).json()
    assert body["response"] == "Hello"
    assert "message" not in body


def test_lines_are_what_the_description_says() -> None:
    script = [Piece(0, "reasoning", "hm"), ToolCall(0, "f", "{}"), *said("a")]
    for line in lines(chat(FakeBackend(script))):
        ChatPart.model_validate_json(json.dumps(line), strict=True)
    for line in lines(generate(FakeBackend(said("a")))):
        GeneratePart.model_validate_json(json.dumps(line), strict=True)


def test_reasoning_is_thinking() -> None:
    script = [Piece(0, "reasoning", "2 and 2"), *said("4")]
    first, second, _ = lines(chat(FakeBackend(script)))
    assert first["message"] == {"role": "assistant", "content": "", "thinking": "2 and 2"}
    assert second["message"] == {"role": "assistant", "content": "4"}
    assert generate(FakeBackend(script), stream=False).json()["thinking"] == "2 and 2"


def test_tool_calls_have_their_arguments_as_objects() -> None:
    script = [
        ToolCall(0, "weather", '{"city": "Ulm"}'),
        ToolCall(0, "time", "{}"),
        finished(reason="tools"),
    ]
    wanted = [
        {"id": "call_0", "function": {"index": 0, "name": "weather", "arguments": {"city": "Ulm"}}},
        {"id": "call_1", "function": {"index": 1, "name": "time", "arguments": {}}},
    ]
    first, second, end = lines(chat(FakeBackend(script)))
    assert first["message"]["tool_calls"] + second["message"]["tool_calls"] == wanted
    assert end["done_reason"] == "stop"
    whole = chat(FakeBackend(script), stream=False).json()
    assert whole["message"] == {"role": "assistant", "content": "", "tool_calls": wanted}


@pytest.mark.parametrize("reason", ["length", "context"])
def test_an_answer_that_was_cut_says_length(reason: Any) -> None:
    assert lines(chat(FakeBackend([finished(reason=reason)])))[-1]["done_reason"] == "length"


def test_waiting_and_prefill_send_lines_that_say_nothing() -> None:
    got = lines(chat(FakeBackend([None, Prefilled(0, 2, 7), *said("a")])))
    assert [line["message"]["content"] for line in got] == ["", "", "a", ""]
    assert [line["done"] for line in got] == [False, False, False, True]


def test_a_refusal_has_a_status_and_a_failure_later_is_a_line() -> None:
    refused = chat(FakeBackend([Failed(0, "context_length", "too long.")]))
    assert (refused.status_code, refused.json()) == (400, {"error": "too long."})
    broken = FakeBackend([Piece(0, "text", "a"), Failed(0, "internal", "disk broke.")])
    assert lines(chat(broken))[-1] == {"error": "disk broke."}
    assert chat(broken, stream=False).status_code == 500


@pytest.mark.parametrize("at_once", [False, True])
def test_a_stream_that_is_left_cancels_its_answer(at_once: bool) -> None:
    backend = FakeBackend([Piece(0, "text", "a")])  # goes on for ever

    async def leave() -> None:
        body = json.dumps({"messages": HELLO}).encode()
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        got_some = asyncio.Event()
        if at_once:
            got_some.set()

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await got_some.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message.get("body"):
                got_some.set()

        scope = {
            "type": "http",
            "asgi": {"spec_version": "2.3"},
            "method": "POST",
            "path": "/api/chat",
            "query_string": b"",
            "headers": [(b"host", b"localhost")],
        }
        await app_of(backend)(scope, receive, send)

    asyncio.run(asyncio.wait_for(leave(), 5))
    assert backend.cancelled == 1


def test_options_reach_the_model() -> None:
    backend = FakeBackend()
    options = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40.0,
        "min_p": 0.1,
        "seed": 3,
        "num_predict": 5,
        "stop": ["END", ""],
        "repeat_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "num_ctx": 8192,
        "mirostat": "whatever",
    }
    wanted = asked(chat(backend, options=options), backend)
    assert wanted.max_tokens == 5
    assert wanted.stop == ["END"]
    assert wanted.sampling == Sampling(
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        seed=3,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
    )


@pytest.mark.parametrize("most", [-1, -2, 0, None])
def test_num_predict_below_one_is_all_that_fits(most: int | None) -> None:
    backend = FakeBackend()
    options = {"num_predict": most, "seed": -1, "top_k": -1, "stop": "END"}
    wanted = asked(generate(backend, options=options), backend)
    assert wanted.max_tokens is None
    assert wanted.sampling == Sampling(top_k=0)
    assert wanted.stop == ["END"]


def test_null_is_the_default() -> None:
    backend = FakeBackend()
    keys = ("stream", "format", "options", "keep_alive", "think", "logprobs", "tools", "model")
    assert len(lines(chat(backend, **dict.fromkeys(keys)))) == 3
    plain = FakeBackend()
    assert asked(chat(plain), plain) == backend.asked[-1]


def test_an_unnamed_model_goes_by_its_own_name() -> None:
    body = ask("POST", "/api/chat", {"messages": HELLO, "stream": False}).json()
    assert body["model"] == "tiny-moe"


def test_format_is_a_grammar() -> None:
    backend = FakeBackend()
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert asked(chat(backend, format=""), backend).grammar is None
    assert asked(chat(backend, format="json"), backend).grammar == Grammar(kind="json")
    grammar = asked(chat(backend, format=schema), backend).grammar
    assert (grammar.kind, json.loads(grammar.text)) == ("schema", schema)
    assert refusal(chat(format="yaml")) == 'format: give "json" or a JSON schema.'


@pytest.mark.parametrize(
    ("think", "options"),
    [
        (None, {}),
        (True, {"enable_thinking": True}),
        (False, {"enable_thinking": False}),
        ("high", {"enable_thinking": True, "reasoning_effort": "high"}),
    ],
)
def test_think_goes_to_the_template(think: Any, options: dict[str, Any]) -> None:
    backend = FakeBackend()
    assert asked(chat(backend, think=think), backend).prompt.template_options == options
    assert asked(generate(backend, think=think), backend).prompt.template_options == options


def test_what_the_model_cannot_do_is_refused_in_ollamas_words() -> None:
    plain = without(has_tools=False, has_thinking=False)
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert "does not support tools" in refusal(chat(plain, tools=tools))
    assert "does not support thinking" in refusal(chat(plain, think="low"))
    assert chat(plain, think=False, tools=[]).status_code == 200
    assert "reads text, not images" in refusal(generate(images=["aGk="]))
    assert "messages.0.images" in refusal(chat(messages=[{**HELLO[0], "images": ["aGk="]}]))


def test_results_of_tools_find_their_calls() -> None:
    backend = FakeBackend()
    calls = [
        {"function": {"name": "weather", "arguments": {"city": "Ulm"}}},
        {"function": {"name": "time", "arguments": {}}},
    ]
    messages = [
        *HELLO,
        {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": calls},
        {"role": "tool", "content": "noon", "tool_name": "time"},
        {"role": "tool", "content": "rain"},
    ]
    tools = [
        {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    ]
    prompt = asked(chat(backend, messages=messages, tools=tools), backend).prompt
    _, assistant, noon, rain = prompt.messages
    assert assistant["reasoning_content"] == "hm"
    assert [call["function"] for call in assistant["tool_calls"]] == [
        {"name": "weather", "arguments": {"city": "Ulm"}},
        {"name": "time", "arguments": {}},
    ]
    weather_id, time_id = (call["id"] for call in assistant["tool_calls"])
    assert (noon["name"], noon["tool_call_id"]) == ("time", time_id)
    assert (rain["name"], rain["tool_call_id"]) == ("weather", weather_id)
    assert prompt.tools[0]["function"]["parameters"] == {"type": "object"}


def test_an_answer_that_was_begun_goes_on() -> None:
    backend = FakeBackend()
    messages = [*HELLO, {"role": "assistant", "content": "I am"}]
    assert asked(chat(backend, messages=messages), backend).prompt.continue_last
    assert not asked(chat(backend), backend).prompt.continue_last


def test_generate_makes_a_chat_unless_the_text_is_raw_or_has_a_suffix() -> None:
    backend = FakeBackend()
    prompt = asked(generate(backend, system="Be brief.", template="ignored"), backend).prompt
    assert isinstance(prompt, ChatPrompt)
    assert [(turn["role"], turn["content"]) for turn in prompt.messages] == [
        ("system", "Be brief."),
        ("user", "Hello"),
    ]
    raw = asked(generate(backend, raw=True), backend).prompt
    assert raw == TextPrompt(text="Hello")
    middle = asked(generate(backend, prompt="def f(", suffix="return 1"), backend).prompt
    assert middle == TextPrompt(text="def f(", suffix="return 1")


@pytest.mark.parametrize(
    ("keep_alive", "reason"),
    [(None, "load"), ("5m", "load"), (-1, "load"), (0, "unload"), ("0s", "unload")],
)
def test_a_request_without_words_loads_or_unloads(keep_alive: Any, reason: str) -> None:
    backend = FakeBackend()
    chatted = chat(backend, messages=[], keep_alive=keep_alive).json()
    generated = generate(backend, prompt="", keep_alive=keep_alive).json()
    assert chatted["message"] == {"role": "assistant", "content": ""}
    assert generated["response"] == ""
    for body in (chatted, generated):
        assert (body["done"], body["done_reason"]) == (True, reason)
    assert backend.asked == []


def test_logprobs_come_with_their_pieces() -> None:
    backend = FakeBackend()
    token = TokenLogprob(5, "a", b"a", -0.5, [(5, "a", b"a", -0.5), (6, "b", b"b", -float("inf"))])
    backend.script = [Piece(0, "text", "a", 1, [token]), finished()]
    response = chat(backend, logprobs=True, top_logprobs=2)
    a = {"token": "a", "logprob": -0.5, "bytes": [97]}
    b = {"token": "b", "logprob": -9999.0, "bytes": [98]}
    assert lines(response)[0]["logprobs"] == [{**a, "top_logprobs": [a, b]}]
    assert backend.asked[-1].top_logprobs == 2
    assert asked(chat(backend, top_logprobs=2), backend).top_logprobs is None


@pytest.mark.parametrize(
    "body",
    [
        {"options": {"temperature": -1}},
        {"options": {"stop": ["x"] * 17}},
        {"options": {"seed": 2**70}},
        {"options": {"top_k": "many"}},
        {"messages": [{"role": "king", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"messages": "Hello"},
        {"model": 3},
        {"think": "sometimes"},
        {"tools": [{"function": {}}]},
        {"logprobs": True, "top_logprobs": 21},
        {"keep_alive": []},
    ],
)
def test_nonsense_is_refused_with_a_sentence(body: dict[str, Any]) -> None:
    response = chat(**body)
    assert response.status_code == 400
    assert refusal(response).endswith(".")


def test_the_model_is_listed_shown_and_in_memory() -> None:
    listed = ask("GET", "/api/tags").json()["models"]
    assert [(model["name"], model["model"], model["size"]) for model in listed] == [
        ("tiny-moe", "tiny-moe", 46_000_000)
    ]
    assert len(listed[0]["digest"]) == 64
    details = {
        "parent_model": "",
        "format": "safetensors",
        "family": "qwen3_moe",
        "families": ["qwen3_moe"],
        "parameter_size": "40.0M",
        "quantization_level": "4 bits",
    }
    assert listed[0]["details"] == details
    shown = ask("POST", "/api/show", {"name": "what-you-like"}).json()
    assert shown["capabilities"] == ["completion", "tools", "thinking"]
    assert shown["details"] == details
    assert shown["model_info"]["general.architecture"] == "qwen3_moe"
    assert shown["model_info"]["qwen3_moe.context_length"] == 4096
    assert shown["model_info"]["general.parameter_count"] == 40_000_000
    assert shown["template"] == CARD.chat_template
    loaded = ask("GET", "/api/ps").json()["models"]
    assert loaded[0]["context_length"] == 4096
    assert (loaded[0]["size"], loaded[0]["size_vram"]) == (22_000_000, 0)


def test_while_the_model_loads_lists_are_empty_and_questions_unavailable() -> None:
    backend = FakeBackend()
    backend.card, backend.state = None, "loading"
    assert ask("GET", "/api/tags", backend=backend).json() == {"models": []}
    assert ask("GET", "/api/ps", backend=backend).json() == {"models": []}
    for response in (
        ask("POST", "/api/show", {"model": "x"}, backend),
        ask("POST", "/api/pull", {"model": "x"}, backend),
        chat(backend, messages=[]),
    ):
        assert response.status_code == 503
        assert "not loaded" in refusal(response)


def test_pull_finds_the_model_there_and_no_other() -> None:
    statuses = [line["status"] for line in lines(ask("POST", "/api/pull", {"model": "tiny-moe"}))]
    assert (statuses[0], statuses[-1]) == ("pulling manifest", "success")
    at_once = ask("POST", "/api/pull", {"name": "tiny-moe:latest", "stream": False})
    assert at_once.json() == {"status": "success"}
    other = ask("POST", "/api/pull", {"model": "llama"})
    assert other.status_code == 404
    assert "'llama' is not here" in refusal(other)


def test_what_is_not_offered_says_so() -> None:
    paths = ("embed", "embeddings", "create", "copy", "push")
    responses = [ask("POST", f"/api/{path}", {"model": "x", "input": "y"}) for path in paths]
    responses.append(ask("DELETE", "/api/delete", {"model": "x"}))
    for response in responses:
        assert response.status_code == 501
        assert refusal(response).endswith(".")


def test_probes_are_answered() -> None:
    version = ask("GET", "/api/version").json()["version"]
    assert tuple(map(int, version.split("."))) >= (0, 13, 4)
    for path in ("/api/version", "/api/tags"):
        head = ask("HEAD", path)
        assert (head.status_code, head.content) == (200, b"")
    greeting = running()
    assert greeting.body == b"Ollama is running"
    assert greeting.headers["content-type"] == "text/plain; charset=utf-8"


def test_half_a_character_in_a_name_is_refused() -> None:
    async def post() -> httpx.Response:
        async with client_of(FakeBackend()) as client:
            body = b'{"model": "\\ud800", "messages": [{"role": "user", "content": "x"}]}'
            return await client.post("/api/chat", content=body)

    assert "model: " in refusal(asyncio.run(post()))
