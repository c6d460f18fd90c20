"""What the Responses API asks the worker, and what it makes of a whole answer."""

import json
from pathlib import Path
from typing import Any

import pytest
from responding import answered, respond
from serving import FakeBackend, finished, said

from mlx_flash.server.messages import (
    ChatPrompt,
    Grammar,
    Piece,
    TokenLogprob,
    ToolCall,
)

CODEX = json.loads((Path(__file__).parent / "data" / "codex_request.json").read_text())
TOOL = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}
PATCH = {"type": "custom", "name": "patch", "description": "Patches."}


def prompt(backend: FakeBackend) -> ChatPrompt:
    """Return the prompt of the only question that was asked."""
    (asked,) = backend.asked
    assert isinstance(asked.prompt, ChatPrompt)
    return asked.prompt


def test_text_is_answered_with_all_fields_of_the_response_object() -> None:
    body = answered(FakeBackend(), model="any/name", metadata={"a": "b"}, temperature=0.5)
    (message,) = body["output"]
    assert message["role"] == "assistant"
    assert message["status"] == "completed"
    assert message["content"][0]["text"] == "Hello"
    assert body["status"] == "completed"
    assert body["completed_at"] >= body["created_at"]
    assert (body["model"], body["metadata"], body["temperature"]) == ("any/name", {"a": "b"}, 0.5)
    assert body["usage"] == {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 9,
    }
    others = (
        "id object error incomplete_details instructions max_output_tokens max_tool_calls "
        "parallel_tool_calls previous_response_id prompt_cache_key reasoning safety_identifier "
        "service_tier store text tool_choice tools top_logprobs top_p truncation user background "
        "presence_penalty frequency_penalty"
    )
    assert body.keys() > set(others.split())


def test_an_empty_input_is_an_empty_message() -> None:
    for empty in ("", []):
        backend = FakeBackend()
        (response,) = respond(backend, {"model": "m", "input": empty, "max_output_tokens": 1})
        assert response.status_code == 200
        assert prompt(backend).messages == [{"role": "user", "content": ""}]
        assert backend.asked[0].max_tokens == 1


def test_null_is_the_default_of_every_field() -> None:
    fields = "model instructions tools tool_choice text reasoning include metadata store stream"
    fields += " temperature top_p max_output_tokens top_logprobs truncation background prompt user"
    backend = FakeBackend()
    body = answered(backend, **dict.fromkeys(fields.split()))
    assert body["model"] == "tiny-moe"
    assert body["store"] is True
    assert backend.asked[0].max_tokens is None


def test_items_become_the_turns_of_a_conversation() -> None:
    backend = FakeBackend()
    items = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Look."}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "I look."}]},
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"at": 1}'},
        {"type": "function_call_output", "call_id": "c1", "output": "a cat"},
        {"type": "custom_tool_call", "call_id": "c2", "name": "patch", "input": "x"},
        {
            "type": "custom_tool_call_output",
            "call_id": "c2",
            "output": [{"type": "input_text", "text": "ok"}, {"type": "input_image"}],
        },
        {"type": "web_search_call", "id": "ws_1"},
    ]
    answered(backend, instructions="Help.", input=items, tools=[TOOL, PATCH])
    assert prompt(backend).messages == [
        {"role": "system", "content": "Help.\n\nBe brief."},
        {"role": "user", "content": "Look."},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "I look.",
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "look", "arguments": {"at": 1}},
                }
            ],
        },
        {"role": "tool", "content": "a cat", "tool_call_id": "c1", "name": "look"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "c2",
                    "type": "function",
                    "function": {"name": "patch", "arguments": {"input": "x"}},
                }
            ],
        },
        {
            "role": "tool",
            "content": "ok\n[input_image: this model reads text only]",
            "tool_call_id": "c2",
            "name": "patch",
        },
    ]


def test_what_codex_sends_is_understood() -> None:
    backend = FakeBackend()
    (response,) = respond(backend, CODEX)
    assert response.status_code == 200
    asked = prompt(backend)
    assert [message["role"] for message in asked.messages] == ["system", "user"]
    assert asked.messages[1]["content"].endswith("hello")
    names = [tool["function"]["name"] for tool in asked.tools]
    shell = ["exec_command", "write_stdin", "view_image"]
    assert names == [*shell, "spawn_agent", "wait_agent", "get_goal"]


def test_a_call_names_the_namespace_of_its_tool() -> None:
    space = {"type": "namespace", "name": "agents", "tools": [TOOL, {**TOOL, "name": "wait"}]}
    backend = FakeBackend(
        [ToolCall(0, "agents__look", "{}"), ToolCall(0, "wait", "{}"), finished()]
    )
    body = answered(backend, tools=[TOOL, space, {"type": "web_search"}])
    offered = [tool["function"]["name"] for tool in prompt(backend).tools]
    assert offered == ["look", "agents__look", "wait"]
    called = [(call["namespace"], call["name"]) for call in body["output"]]
    assert called == [("agents", "look"), ("agents", "wait")]
    assert [tool["type"] for tool in body["tools"]] == ["function", "namespace"]


def test_reasoning_text_and_calls_come_in_the_models_order() -> None:
    script = [
        Piece(0, "reasoning", "Hm"),
        Piece(0, "reasoning", "m."),
        Piece(0, "text", "I look."),
        ToolCall(0, "look", '{"at": 1}'),
        ToolCall(0, "patch", '{"input": "+x"}'),
        finished(reason="tools", reasoning_tokens=2),
    ]
    body = answered(FakeBackend(script), tools=[TOOL, PATCH])
    kinds = [item["type"] for item in body["output"]]
    assert kinds == ["reasoning", "message", "function_call", "custom_tool_call"]
    reasoning, _, call, patch = body["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Hmm."}]
    assert reasoning["summary"] == []
    assert (call["name"], call["arguments"]) == ("look", '{"at": 1}')
    assert (patch["name"], patch["input"]) == ("patch", "+x")
    assert body["status"] == "completed"


def test_reasoning_is_sent_as_a_summary_to_those_who_ask_for_one() -> None:
    script = [Piece(0, "reasoning", "Hmm."), *said("Yes")]
    body = answered(FakeBackend(script), reasoning={"summary": "auto"})
    assert body["output"][0]["summary"] == [{"type": "summary_text", "text": "Hmm."}]
    assert body["output"][0]["content"] == []


@pytest.mark.parametrize(
    ("effort", "options"),
    [
        (None, {}),
        ("none", {"enable_thinking": False, "reasoning_effort": "low"}),
        ("max", {"enable_thinking": True, "reasoning_effort": "high"}),
    ],
)
def test_effort_reaches_the_template(effort: str | None, options: dict[str, Any]) -> None:
    backend = FakeBackend()
    answered(backend, reasoning={"effort": effort})
    assert prompt(backend).template_options == options


@pytest.mark.parametrize("reason", ["length", "context"])
def test_an_answer_that_is_cut_off_is_incomplete(reason: str) -> None:
    body = answered(FakeBackend([Piece(0, "text", "Hel"), finished(reason=reason)]))
    assert body["status"] == "incomplete"
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert body["output"][0]["status"] == "incomplete"


def test_an_answer_without_words_is_an_empty_message() -> None:
    (message,) = answered(FakeBackend([finished()]))["output"]
    assert message["content"][0]["text"] == ""


@pytest.mark.parametrize(
    ("form", "grammar"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, Grammar(kind="json")),
        (
            {"type": "json_schema", "name": "n", "schema": {"type": "array"}},
            Grammar(kind="schema", text='{"type": "array"}'),
        ),
    ],
)
def test_a_text_format_is_a_grammar(form: dict[str, Any], grammar: Grammar | None) -> None:
    backend = FakeBackend()
    body = answered(backend, text={"format": form, "verbosity": "low"})
    assert backend.asked[0].grammar == grammar
    assert body["text"]["format"].items() >= form.items()


@pytest.mark.parametrize(
    ("choice", "wanted", "offered"),
    [
        ("required", "required", ["look", "patch"]),
        ("none", "none", ["look", "patch"]),
        ({"type": "function", "name": "look"}, "=look", ["look", "patch"]),
        ({"type": "custom", "name": "patch"}, "=patch", ["look", "patch"]),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"name": "patch"}]},
            "required",
            ["patch"],
        ),
    ],
)
def test_a_tool_choice_reaches_the_worker(choice: Any, wanted: str, offered: list[str]) -> None:
    backend = FakeBackend()
    answered(backend, tools=[TOOL, PATCH], tool_choice=choice, parallel_tool_calls=False)
    assert backend.asked[0].tool_choice == wanted
    assert backend.asked[0].parallel_tool_calls is False
    assert [tool["function"]["name"] for tool in prompt(backend).tools] == offered


def test_log_probabilities_are_given_to_those_who_include_them() -> None:
    token = TokenLogprob(5, "é", "é".encode(), -0.5, [(6, "e", b"e", float("-inf"))])
    backend = FakeBackend([Piece(0, "text", "é", 1, [token]), finished()])
    body = answered(backend, include=["message.output_text.logprobs"], top_logprobs=1)
    assert backend.asked[0].top_logprobs == 1
    assert body["output"][0]["content"][0]["logprobs"] == [
        {
            "token": "é",
            "bytes": [195, 169],
            "logprob": -0.5,
            "top_logprobs": [{"token": "e", "bytes": [101], "logprob": -9999.0}],
        }
    ]


@pytest.mark.parametrize("arguments", ['{"n": 1e999}', '{"n": %s}' % ("9" * 30), "no JSON"])
def test_arguments_that_cannot_be_passed_on_are_kept_as_text(arguments: str) -> None:
    backend = FakeBackend()
    call = {"type": "function_call", "call_id": "c", "name": "look", "arguments": arguments}
    answered(backend, input=[call])
    (turn,) = prompt(backend).messages
    assert turn["tool_calls"][0]["function"]["arguments"] == {"input": arguments}


def test_tokens_of_a_request_are_counted() -> None:
    (response,) = respond(
        FakeBackend(), {"input": "Hi", "tools": [TOOL]}, path="/v1/responses/input_tokens"
    )
    assert response.json()["object"] == "response.input_tokens"
    assert response.json()["input_tokens"] > 0
