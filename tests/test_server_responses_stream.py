"""The events by which the Responses API streams."""

import asyncio
from typing import Any

import pytest
from responding import respond, streamed
from serving import FakeBackend, client_of, finished, said

from mlx_flash.server.gateway.responses import running
from mlx_flash.server.messages import Failed, Piece, Prefilled, ToolCall


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """Return what the events are called, without the common prefix."""
    return [event["type"].removeprefix("response.") for event in events]


def test_text_is_streamed_piece_by_piece() -> None:
    events = streamed(FakeBackend())
    assert kinds(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event["delta"] for event in events if "delta" in event] == ["Hel", "lo"]
    assert events[0]["response"]["status"] == "in_progress"
    assert events[0]["response"]["usage"] is None
    last = events[-1]["response"]
    assert last["output"] == [events[-2]["item"]]
    assert last["usage"]["total_tokens"] == 9


@pytest.mark.parametrize(
    ("summary", "told"),
    [
        (
            "auto",
            [
                "output_item.added",
                "reasoning_summary_part.added",
                "reasoning_summary_text.delta",
                "reasoning_summary_text.done",
                "reasoning_summary_part.done",
                "output_item.done",
            ],
        ),
        (
            None,
            [
                "output_item.added",
                "content_part.added",
                "reasoning_text.delta",
                "reasoning_text.done",
                "content_part.done",
                "output_item.done",
            ],
        ),
    ],
)
def test_reasoning_is_streamed_in_the_form_of_its_item(summary: Any, told: list[str]) -> None:
    script = [Piece(0, "reasoning", "Hmm."), *said("Yes")]
    events = streamed(FakeBackend(script), reasoning={"summary": summary})
    assert kinds(events)[2:8] == told
    item = events[7]["item"]
    assert (item["summary"] or item["content"])[0]["text"] == events[5]["text"] == "Hmm."


def test_calls_are_streamed_as_items_after_the_text_before_them() -> None:
    script = [
        Piece(0, "text", "I look."),
        ToolCall(0, "look", '{"at": 1}'),
        ToolCall(0, "patch", '{"input": "+x"}'),
        finished(reason="tools"),
    ]
    tools = [{"type": "function", "name": "look"}, {"type": "custom", "name": "patch"}]
    events = streamed(FakeBackend(script), tools=tools)
    assert kinds(events)[7:-1] == [
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "custom_tool_call_input.delta",
        "custom_tool_call_input.done",
        "output_item.done",
    ]
    assert events[8]["item"]["arguments"] == ""
    assert events[11]["item"]["arguments"] == '{"at": 1}'
    assert events[12]["output_index"] == 2
    assert events[15]["item"]["input"] == "+x"


def test_a_quiet_stream_says_that_it_is_in_progress() -> None:
    events = streamed(FakeBackend([None, None, *said("Hi")]))
    assert kinds(events)[:5] == ["created", *["in_progress"] * 3, "output_item.added"]


def test_a_long_prefill_keeps_the_client_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "KEEP_ALIVE_S", 0.0)
    events = streamed(FakeBackend([Prefilled(0, 1, 9), *said("Hi")]))
    assert "in_progress" in kinds(events)[2:5]


def test_a_stream_that_is_cut_off_ends_as_incomplete() -> None:
    events = streamed(FakeBackend([Piece(0, "text", "Hel"), finished(reason="length")]))
    assert kinds(events)[-2:] == ["output_item.done", "incomplete"]
    assert events[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("overloaded", "rate_limit_exceeded"),
        ("invalid", "invalid_prompt"),
        ("unavailable", "server_error"),
    ],
)
def test_a_stream_that_fails_says_why(kind: Any, code: str) -> None:
    backend = FakeBackend([Piece(0, "text", "He"), Failed(0, kind, "It failed.")])
    events = streamed(backend)
    assert kinds(events)[-2:] == ["output_text.delta", "failed"]
    response = events[-1]["response"]
    assert response["status"] == "failed"
    assert response["error"] == {"code": code, "message": "It failed."}
    assert response["output"][0]["status"] == "incomplete"
    assert response["output"][0]["content"][0]["text"] == "He"


def refusing(kind: Any) -> FakeBackend:
    """Return a backend that refuses every request."""
    return FakeBackend([Failed(0, kind, "Too much.")])


def test_a_refusal_has_a_status_even_where_a_stream_was_asked_for() -> None:
    (response,) = respond(refusing("overloaded"), {"input": "Hi", "stream": True})
    assert response.status_code == 429
    assert response.json()["error"]["message"] == "Too much."


def test_a_prompt_that_is_too_long_is_told_of_in_the_stream() -> None:
    events = streamed(refusing("context_length"))
    assert kinds(events) == ["created", "in_progress", "failed"]
    assert events[-1]["response"]["error"]["code"] == "context_length_exceeded"


def test_leaving_a_stream_cancels_its_answer() -> None:
    backend = FakeBackend([Piece(0, "text", "Hel")])

    async def leave() -> None:
        async with client_of(backend) as client:
            app = client._transport.app

        sent: list[Any] = []
        body = b'{"input": "Hi", "stream": true}'
        received = [{"type": "http.request", "body": body, "more_body": False}]
        started = asyncio.Event()

        async def receive() -> Any:
            if received:
                return received.pop()
            await started.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)
            if b"output_text.delta" in message.get("body", b""):
                started.set()

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/responses",
            "raw_path": b"/v1/responses",
            "query_string": b"",
            "headers": [(b"host", b"127.0.0.1")],
            "http_version": "1.1",
            "asgi": {"version": "3.0"},
        }
        await asyncio.wait_for(app(scope, receive, send), 5)

    asyncio.run(leave())
    assert backend.cancelled == 1
