"""What the Responses API refuses, each in one sentence."""

from typing import Any

import pytest
from responding import refused, respond
from serving import FakeBackend

from mlx_flash.server.messages import Failed, Piece


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": 5}, "input"),
        ({"input": ["x"]}, "input"),
        ({"input": [{"role": "critic", "content": "x"}]}, "input.0"),
        ({"input": [{"type": "function_call", "name": "x"}]}, "input.0.call_id"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.id"),
        ({"input": "x", "background": True}, "background"),
        ({"input": "x", "prompt": {"id": "p"}}, "prompt"),
        ({"input": "x", "conversation": "c"}, "conversation"),
        ({"input": "x", "tools": [{"type": "function"}]}, "tools.0.name"),
        ({"input": "x", "tool_choice": "required"}, "tool_choice"),
        ({"input": "x", "tool_choice": {"type": "function", "name": "y"}}, "tool_choice"),
        ({"input": "x", "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"input": "x", "text": {"format": {"type": "json_schema"}}}, "text.format"),
        ({"input": "x", "top_logprobs": 21}, "top_logprobs"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "x", "previous_response_id": "resp_x"}, "previous_response_id"),
    ],
)
def test_a_wrong_body_gets_a_sentence_about_the_field(body: dict[str, Any], param: str) -> None:
    error = refused(FakeBackend(), **body)
    assert error["param"] == param
    assert error["message"].endswith(".")


@pytest.mark.parametrize("text", ['"\\ud800"', "1e999", "9" * 30, "[" * 200 + "]" * 200])
def test_json_that_cannot_be_passed_on_is_refused(text: str) -> None:
    body = f'{{"input": "x", "tools": [{{"type": "function", "parameters": {text}}}]}}'
    (response,) = respond(FakeBackend(), body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        ("context_length", 400, "context_length_exceeded"),
        ("overloaded", 429, "rate_limit_exceeded"),
        ("internal", 500, None),
    ],
)
def test_a_failure_has_a_status(kind: Any, status: int, code: str | None) -> None:
    backend = FakeBackend([Piece(0, "text", "He"), Failed(0, kind, "It failed.")])
    (response,) = respond(backend, {"input": "Hi"})
    assert response.status_code == status
    assert response.json()["error"]["message"] == "It failed."
    assert response.json()["error"]["code"] == code
