"""The Anthropic API: what the worker is asked, and what its answers look like."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from serving import FakeBackend, client_of, finished, said

from mlx_flash.server.gateway.anthropic.routes import message_events
from mlx_flash.server.messages import ChatPrompt, Failed, Generate, Piece, ToolCall

CLAUDE_CODE = json.loads(
    (Path(__file__).parent / "data" / "claude_code_request.json").read_text("utf-8")
)
HELLO = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
GET_TIME = {"name": "get_time", "description": "Tells it.", "input_schema": {"type": "object"}}


def post(body: Any, backend: FakeBackend | None = None, path: str = "/v1/messages") -> Any:
    async def run() -> Any:
        async with client_of(backend or FakeBackend()) as client:
            content = body if isinstance(body, bytes) else json.dumps(body)
            return await client.post(path, content=content)

    return asyncio.run(run())


def asked(**changes: Any) -> Generate:
    """Return what the worker is asked for a request."""
    backend = FakeBackend()
    response = post({**HELLO, **changes}, backend)
    assert response.status_code == 200, response.text
    return backend.asked[0]


def prompt(**changes: Any) -> ChatPrompt:
    wanted = asked(**changes).prompt
    assert isinstance(wanted, ChatPrompt)
    return wanted


def refused(**changes: Any) -> str:
    """Return the sentence with which a request is refused."""
    response = post({**HELLO, **changes})
    assert response.status_code == 400
    body = response.json()
    assert body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"
    return str(body["error"]["message"])


def events_of(response: Any) -> list[dict[str, Any]]:
    """Return the events of a stream; each has the name that its data says."""
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    events = []
    for block in response.text.strip().split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


def streamed(*script: Any, **changes: Any) -> list[dict[str, Any]]:
    return events_of(post({**HELLO, "stream": True, **changes}, FakeBackend(script)))


def test_message_has_every_field_of_the_official_type() -> None:
    response = post(HELLO)
    assert response.headers["request-id"].startswith("req_")
    body = response.json()
    assert body.pop("id").startswith("msg_")
    assert body == {
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": "Hello", "citations": None}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "stop_details": None,
        "container": None,
        "usage": {
            "input_tokens": 3,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 4,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
            "output_tokens": 2,
            "output_tokens_details": {"thinking_tokens": 0},
            "server_tool_use": None,
            "service_tier": "standard",
            "inference_geo": None,
        },
    }


def test_message_goes_by_the_name_of_the_model_when_the_client_gives_none() -> None:
    assert post({**HELLO, "model": None}).json()["model"] == "tiny-moe"


def test_message_holds_thoughts_text_and_calls() -> None:
    call = ToolCall(0, "get_time", '{"zone": "UTC"}')
    script = [
        Piece(0, "reasoning", "Hm."),
        Piece(0, "text", "So:"),
        call,
        call,
        finished(reason="tools"),
    ]
    body = post(HELLO, FakeBackend(script)).json()
    thought, text, first, second = body["content"]
    assert thought == {"type": "thinking", "thinking": "Hm.", "signature": "mlx-flash"}
    assert text["text"] == "So:"
    assert first["id"].startswith("toolu_")
    assert first["id"] != second["id"]
    assert (first["type"], first["name"], first["input"]) == (
        "tool_use",
        "get_time",
        {"zone": "UTC"},
    )
    assert body["stop_reason"] == "tool_use"


@pytest.mark.parametrize(
    ("end", "reason", "sequence"),
    [
        (finished(), "end_turn", None),
        (finished(stop_text="END"), "stop_sequence", "END"),
        (finished(reason="length"), "max_tokens", None),
        (finished(reason="tools"), "tool_use", None),
        (finished(reason="context"), "model_context_window_exceeded", None),
    ],
)
def test_stop_reason_says_why_the_answer_ended(end: Any, reason: str, sequence: str | None) -> None:
    body = post(HELLO, FakeBackend([Piece(0, "text", "x"), end])).json()
    assert (body["stop_reason"], body["stop_sequence"]) == (reason, sequence)
    delta = streamed(Piece(0, "text", "x"), end)[-2]["delta"]
    assert (delta["stop_reason"], delta["stop_sequence"]) == (reason, sequence)


def test_stream_begins_before_the_prompt_is_computed_and_ends_with_the_usage() -> None:
    events = streamed(*said("Hel", "", "lo"))
    assert [event["type"] for event in events] == [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start = events[0]["message"]
    assert (start["content"], start["stop_reason"]) == ([], None)
    assert start["usage"]["input_tokens"] == 7
    assert start["usage"]["output_tokens"] == 0
    assert events[2]["content_block"] == {"type": "text", "text": "", "citations": None}
    assert events[3] == {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "text_delta", "text": "Hel"},
    }
    assert events[6]["usage"] == {
        "input_tokens": 3,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 4,
        "output_tokens": 3,
        "output_tokens_details": {"thinking_tokens": 0},
        "server_tool_use": None,
    }


def test_stream_numbers_blocks_of_thoughts_text_and_calls() -> None:
    events = streamed(
        Piece(0, "reasoning", "H"),
        Piece(0, "reasoning", "m."),
        Piece(0, "text", "\n\n"),
        Piece(0, "text", "So:"),
        Piece(0, "text", "\n"),
        ToolCall(0, "get_time", '{"zone": "UTC"}'),
        ToolCall(0, "get_time", ""),
        finished(reason="stop"),
    )
    starts = [event for event in events if event["type"] == "content_block_start"]
    assert [start["index"] for start in starts] == [0, 1, 2, 3]
    assert starts[2]["content_block"].pop("id").startswith("toolu_")
    assert starts[2]["content_block"] == {"type": "tool_use", "name": "get_time", "input": {}}
    deltas = [(e["index"], e["delta"]) for e in events if e["type"] == "content_block_delta"]
    assert deltas == [
        (0, {"type": "thinking_delta", "thinking": "H"}),
        (0, {"type": "thinking_delta", "thinking": "m."}),
        (0, {"type": "signature_delta", "signature": "mlx-flash"}),
        (1, {"type": "text_delta", "text": "\n\nSo:"}),
        (1, {"type": "text_delta", "text": "\n"}),
        (2, {"type": "input_json_delta", "partial_json": '{"zone":"UTC"}'}),
        (3, {"type": "input_json_delta", "partial_json": "{}"}),
    ]
    stops = [event["index"] for event in events if event["type"] == "content_block_stop"]
    assert stops == [0, 1, 2, 3]
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


def test_white_space_alone_makes_no_block() -> None:
    script = [Piece(0, "text", "\n"), ToolCall(0, "f", "{}"), finished(reason="tools")]
    assert [block["type"] for block in post(HELLO, FakeBackend(script)).json()["content"]] == [
        "tool_use"
    ]
    starts = [event for event in streamed(*script) if event["type"] == "content_block_start"]
    assert [start["content_block"]["type"] for start in starts] == ["tool_use"]


def test_thoughts_that_are_not_shown_come_back_in_their_signature() -> None:
    hidden = {"thinking": {"type": "adaptive", "display": "omitted"}}
    script = [Piece(0, "reasoning", "Sécret."), *said("Yes")]
    block = post({**HELLO, **hidden}, FakeBackend(script)).json()["content"][0]
    assert block["thinking"] == ""
    assert "cret" not in block["signature"]
    deltas = [event["delta"] for event in streamed(*script, **hidden) if "delta" in event]
    assert deltas[0] == {"type": "signature_delta", "signature": block["signature"]}
    assert deltas[1] == {"type": "text_delta", "text": "Yes"}
    turns = [
        *HELLO["messages"],
        {"role": "assistant", "content": [block, {"type": "text", "text": "Yes"}]},
        {"role": "user", "content": "Why?"},
    ]
    assert prompt(messages=turns).messages[1]["reasoning_content"] == "Sécret."


@pytest.mark.parametrize("signature", ["EqoB…", "mlx-flash:%%", "mlx-flash:/w==", None, ""])
def test_signatures_of_other_servers_hold_nothing(signature: str | None) -> None:
    block = {"type": "thinking", "thinking": "", "signature": signature}
    turn = {"role": "assistant", "content": [block, {"type": "text", "text": "Yes"}]}
    sent = prompt(messages=[*HELLO["messages"], turn, {"role": "user", "content": "Why?"}])
    assert "reasoning_content" not in sent.messages[1]


def test_idle_stream_pings() -> None:
    events = streamed(None, None, *said("x"))
    assert [event["type"] for event in events][:5] == [
        "message_start",
        "ping",
        "ping",
        "ping",
        "content_block_start",
    ]


def test_stream_pings_while_the_model_thinks_in_secret() -> None:
    backend = FakeBackend([*(Piece(0, "reasoning", "x") for _ in range(4)), *said("y")])
    times = iter(range(0, 1000, 5))

    async def run() -> list[bytes]:
        answer = backend.submit(Generate(request=0, prompt=ChatPrompt(messages=[])))
        return [data async for data in message_events(answer, "m", False, lambda: next(times))]

    sent = asyncio.run(run())
    assert sent.count(b'event: ping\ndata: {"type":"ping"}\n\n') >= 1


def test_refusal_of_a_stream_has_its_status() -> None:
    backend = FakeBackend([Failed(0, "overloaded", "the queue is full.")])
    response = post({**HELLO, "stream": True}, backend)
    assert response.status_code == 429
    assert response.headers["request-id"].startswith("req_")
    assert response.json()["error"] == {"type": "rate_limit_error", "message": "the queue is full."}


def test_failure_in_a_stream_is_an_event() -> None:
    failure = Failed(0, "internal", "the model process ended.")
    events = streamed(Piece(0, "text", "x"), failure)
    assert events[-1] == {
        "type": "error",
        "error": {"type": "api_error", "message": "the model process ended."},
    }


@pytest.mark.parametrize("stream", [False, True])
def test_prompt_that_is_too_long_is_refused_as_clients_look_for_it(stream: bool) -> None:
    message = "prompt is too long: 5000 tokens > 4095 maximum; shorten it."
    backend = FakeBackend([Failed(0, "context_length", message)])
    response = post({**HELLO, "stream": stream}, backend)
    assert response.status_code == 400
    assert response.json()["error"] == {"type": "invalid_request_error", "message": message}


def test_client_that_leaves_a_stream_ends_the_answer() -> None:
    backend = FakeBackend([Piece(0, "text", "x")])

    async def run() -> None:
        answer = backend.submit(Generate(request=0, prompt=ChatPrompt(messages=[])))
        events = message_events(answer, "m", True)
        assert await anext(events) == b""
        assert b"message_start" in await anext(events)
        assert b"text_delta" in await anext(events)
        await events.aclose()

    asyncio.run(run())
    assert backend.cancelled == 1


def test_request_of_claude_code_is_understood() -> None:
    backend = FakeBackend()
    response = post(CLAUDE_CODE, backend, "/v1/messages?beta=true")
    assert events_of(response)[0]["message"]["model"] == "claude-opus-4-8"
    wanted = backend.asked[0]
    assert wanted.max_tokens == 64000
    sent = wanted.prompt
    assert isinstance(sent, ChatPrompt)
    assert sent.template_options == {"enable_thinking": True, "reasoning_effort": "high"}
    assert [tool["function"]["name"] for tool in sent.tools] == ["Bash", "Read", "CronList"]
    assert sent.tools[1]["type"] == "function"
    system, user, assistant, result = sent.messages
    assert system["content"].startswith("You are an agent.\n\n\nYou help users")
    assert user["content"].endswith(
        "which word is in note.txt?\n\n<system-reminder>\nAvailable agent types for the Agent "
        "tool:\n- claude: any task. (Tools: *)\n</system-reminder>"
    )
    assert assistant == {
        "role": "assistant",
        "content": "I look.",
        "reasoning_content": "Read it.",
        "tool_calls": [
            {
                "id": "toolu_1d4c662340ea45beb39763af",
                "type": "function",
                "function": {"name": "Read", "arguments": {"file_path": "/project/note.txt"}},
            }
        ],
    }
    assert result == {
        "role": "tool",
        "tool_call_id": "toolu_1d4c662340ea45beb39763af",
        "name": "Read",
        "content": "1\tthe word is heron\n2\t",
    }
    assert not sent.continue_last


@pytest.mark.parametrize(
    "system",
    [
        "x-anthropic-billing-header: cc_version=1.2.3.abc;\nBe brief.",
        [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=1.2.3.abc;"},
            {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
        ],
        "Be brief.",
    ],
)
def test_header_that_differs_each_time_is_left_out_of_the_system_prompt(system: Any) -> None:
    assert prompt(system=system).messages[0] == {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize("system", [None, "", [], "x-anthropic-billing-header: a"])
def test_empty_system_prompt_is_none(system: Any) -> None:
    assert prompt(system=system).messages == [{"role": "user", "content": "Hi"}]


def test_results_of_tools_keep_their_place_among_text() -> None:
    turns = [
        {"role": "user", "content": "Go"},
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}},
                {"type": "tool_use", "id": "b", "name": "g", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "b", "content": "two", "is_error": True},
                {"type": "text", "text": "between"},
                {
                    "type": "tool_result",
                    "tool_use_id": "a",
                    "content": [
                        {"type": "text", "text": "one"},
                        {"type": "tool_reference", "tool_name": "h"},
                    ],
                },
                {"type": "tool_result", "tool_use_id": "a"},
                {"type": "text", "text": "after"},
            ],
        },
    ]
    sent = prompt(messages=turns).messages[2:]
    assert sent == [
        {"role": "tool", "tool_call_id": "b", "name": "g", "content": "Error: two"},
        {"role": "user", "content": "between"},
        {
            "role": "tool",
            "tool_call_id": "a",
            "name": "f",
            "content": "one\n\nThe tool h can be called.",
        },
        {"role": "tool", "tool_call_id": "a", "name": "f", "content": ""},
        {"role": "user", "content": "after"},
    ]


def test_documents_and_search_results_are_read_as_text() -> None:
    source = {"type": "text", "media_type": "text/plain", "data": "Herons fish."}
    parts = {"type": "content", "content": [{"type": "text", "text": "Owls hunt."}]}
    found = [{"type": "text", "text": "Swans swim."}]
    content = [
        {"type": "document", "title": "Birds", "source": source},
        {"type": "document", "source": parts},
        {"type": "search_result", "title": "More", "source": "web", "content": found},
    ]
    assert prompt(messages=[{"role": "user", "content": content}]).messages[0]["content"] == (
        "Birds\n\nHerons fish.\n\nOwls hunt.\n\nMore\n\nweb\n\nSwans swim."
    )


def test_last_message_of_the_assistant_is_continued() -> None:
    turns = [*HELLO["messages"], {"role": "assistant", "content": "The answer is"}]
    assert prompt(messages=turns).continue_last


def test_blocks_of_other_servers_in_an_answer_are_left_out() -> None:
    content = [
        {"type": "redacted_thinking", "data": "EmwK"},
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
        {"type": "web_search_tool_result", "tool_use_id": "s", "content": {"error_code": "x"}},
        {"type": "text", "text": "Yes"},
    ]
    turns = [*HELLO["messages"], {"role": "assistant", "content": content}]
    assert prompt(messages=turns).messages[1] == {"role": "assistant", "content": "Yes"}


def test_tools_can_come_and_go_in_the_conversation() -> None:
    definition = {"type": "tool_definition", "definition": GET_TIME}
    gone = {"type": "tool_reference", "name": "old"}
    change = [
        {"type": "tool_addition", "tool": definition},
        {"type": "tool_removal", "tool": gone},
    ]
    sent = prompt(messages=[*HELLO["messages"], {"role": "system", "content": change}])
    assert [tool["function"]["name"] for tool in sent.tools] == ["get_time"]
    assert "The tool old can no longer be called." in sent.messages[0]["content"]


def test_tools_of_other_servers_are_ignored() -> None:
    tools = [
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 5},
        {"type": "mcp_toolset", "mcp_server_name": "x"},
        {**GET_TIME, "type": "custom", "defer_loading": True, "cache_control": None},
    ]
    function = {
        "name": "get_time",
        "description": "Tells it.",
        "parameters": {"type": "object"},
    }
    assert prompt(tools=tools).tools == [{"type": "function", "function": function}]


@pytest.mark.parametrize(
    ("choice", "expected", "parallel"),
    [
        (None, "auto", True),
        ({"type": "auto", "disable_parallel_tool_use": True}, "auto", False),
        ({"type": "any"}, "required", True),
        ({"type": "tool", "name": "get_time"}, "=get_time", True),
        ({"type": "none"}, "none", True),
    ],
)
def test_tool_choice_is_passed_on(choice: Any, expected: str, parallel: bool) -> None:
    wanted = asked(tools=[GET_TIME], tool_choice=choice)
    assert (wanted.tool_choice, wanted.parallel_tool_calls) == (expected, parallel)


def test_how_to_sample_is_passed_on() -> None:
    wanted = asked(temperature=0.5, top_p=1, top_k=3.0, stop_sequences=["END"], max_tokens=5)
    sampling = wanted.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 1.0, 3)
    assert (wanted.stop, wanted.max_tokens) == (["END"], 5)


def test_null_is_as_good_as_nothing() -> None:
    optional = (
        "system tools tool_choice thinking output_config output_format stream stop_sequences "
        "temperature top_p top_k metadata context_management model"
    )
    assert asked(**dict.fromkeys(optional.split())) == asked()


@pytest.mark.parametrize(
    ("thinking", "expected"),
    [
        (None, False),
        ({"type": "disabled"}, False),
        ({"type": "enabled", "budget_tokens": 1024}, True),
        ({"type": "adaptive"}, True),
    ],
)
def test_model_thinks_when_it_is_asked_to(thinking: Any, expected: bool) -> None:
    assert prompt(thinking=thinking).template_options == {"enable_thinking": expected}


@pytest.mark.parametrize("place", ["output_config", "output_format"])
def test_answer_follows_a_schema(place: str) -> None:
    wanted = {"type": "json_schema", "schema": {"type": "object"}}
    grammar = asked(**{place: {"format": wanted} if place == "output_config" else wanted}).grammar
    assert grammar is not None
    assert grammar.kind == "schema"
    assert json.loads(grammar.text) == {"type": "object"}


def test_tokens_are_counted_as_the_message_would_be_read() -> None:
    backend = FakeBackend()
    count = {
        key: value for key, value in CLAUDE_CODE.items() if key not in ("max_tokens", "stream")
    }
    response = post(count, backend, "/v1/messages/count_tokens?beta=true")
    post(CLAUDE_CODE, backend)
    assert response.json() == {"input_tokens": len(str(backend.asked[0].prompt))}


def test_result_without_its_call_is_refused() -> None:
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "x"}
    message = refused(messages=[{"role": "user", "content": [result]}])
    assert message.startswith(
        "messages.0.content.0: unexpected `tool_use_id` found in `tool_result` blocks: toolu_1."
    )


def test_call_without_its_result_is_refused() -> None:
    call = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}
    turns = [*HELLO["messages"], {"role": "assistant", "content": [call]}]
    assert "ids were found without `tool_result` blocks" in refused(messages=turns)
    path = "/v1/messages/count_tokens"
    assert post({**HELLO, "messages": turns}, path=path).status_code == 200


IMAGE = {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}
PDF = {"type": "document", "source": {"type": "base64", "media_type": "x", "data": "AA=="}}
LONE = json.loads('"\\ud800"')


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"max_tokens": None}, "max_tokens: input should be a valid integer."),
        ({"max_tokens": 0}, "max_tokens: input should be greater than or equal to 1."),
        ({"max_tokens": 2**31}, "max_tokens: input should be less than or equal to 2147483647."),
        ({"max_tokens": 10**30}, "max_tokens: input should be less than"),
        ({"metadata": {"a": 10**30}}, "the body has a number of more than 64 bits"),
        ({"messages": []}, "messages: list should have at least 1 item"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role: input should be"),
        ({"messages": [{"role": "user"}]}, "messages.0.content: field required."),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content: input should be"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages.0.content.0.text.text: field required.",
        ),
        (
            {"messages": [{"role": "user", "content": ["x"]}]},
            "messages.0.content.0.other: input should be",
        ),
        (
            {"messages": [{"role": "user", "content": [IMAGE]}]},
            "messages.0.content.0: this model reads text here, not 'image'.",
        ),
        (
            {"messages": [{"role": "user", "content": [PDF]}]},
            "messages.0.content.0: this model reads documents of text, not 'base64'",
        ),
        ({"system": [IMAGE]}, "system: this model reads text here, not 'image'."),
        ({"system": LONE}, "the body has half a character"),
        ({"temperature": -1}, "temperature: input should be greater than or equal to 0."),
        ({"temperature": float("nan")}, "temperature: input should be a finite number"),
        ({"stop_sequences": ["a"] * 17}, "stop_sequences: list should have at most 16 items"),
        ({"tools": [{"description": "x"}]}, "tools.0.custom.name: field required."),
        ({"tools": [{**GET_TIME, "input_schema": {"x": 10**30}}]}, "the body has a number"),
        ({"tools": [{**GET_TIME, "input_schema": {LONE: 1}}]}, "the body has half"),
        ({"tool_choice": {"type": "any"}}, "tool_choice: there is no tool to call"),
        (
            {"tool_choice": {"type": "tool", "name": "f"}, "tools": [GET_TIME]},
            "tool_choice.name: there is no tool 'f' in tools.",
        ),
        ({"output_format": {"type": "xml"}}, "output_format.type: input should be 'json_schema'."),
    ],
)
def test_wrong_request_is_refused_with_a_sentence(changes: Any, sentence: str) -> None:
    assert refused(**changes).startswith(sentence)


def test_request_without_a_limit_is_refused() -> None:
    body = {key: value for key, value in HELLO.items() if key != "max_tokens"}
    response = post(body)
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "max_tokens: field required."


def test_deep_json_is_refused() -> None:
    nested = b'{"a":' * 500 + b"1" + b"}" * 500
    body = json.dumps({**HELLO, "tools": [{**GET_TIME, "input_schema": "HERE"}]}).encode()
    response = post(body.replace(b'"HERE"', nested))
    assert response.status_code == 400
    assert "nested more than 100 deep" in response.json()["error"]["message"]


def test_half_a_body_is_refused() -> None:
    response = post(b'{"model": ')
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("the body is not valid JSON")


def test_routes_describe_their_replies() -> None:
    async def run() -> Any:
        async with client_of(FakeBackend()) as client:
            return (await client.get("/openapi.json")).json()

    described = asyncio.run(run())["paths"]
    message = described["/v1/messages"]["post"]["responses"]
    assert set(message) == {"200", "4XX", "5XX"}
    assert set(message["200"]["content"]) == {"application/json", "text/event-stream"}
    assert set(described["/v1/messages/count_tokens"]["post"]["responses"]) == {"200", "4XX", "5XX"}
