import json
from typing import Any

import msgspec
import pytest
from asking import CHAT, HELLO, TEXT, WEATHER, Backend, asked, refused, wanted
from serving import finished

from mlx_flash.server.gateway.openai.chat_body import ChatBody
from mlx_flash.server.gateway.openai.completion_body import CompletionBody
from mlx_flash.server.messages import ChatPrompt, Grammar, Piece, ToolCall


def prompt(body: Any) -> ChatPrompt:
    """Return the conversation that the model gets for the body of a chat."""
    got = wanted(CHAT, body).prompt
    assert isinstance(got, ChatPrompt)
    return got


def test_all_that_says_how_to_draw_goes_to_the_worker() -> None:
    body = {
        **HELLO,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 20.0,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "logit_bias": {"17": -100, "3": 2.5},
        "seed": 42,
        "max_tokens": 30,
        "stop": "END",
        "user": "u",
        "metadata": {"a": "b"},
        "store": True,
        "unknown": [1],
    }
    got = wanted(CHAT, body)
    assert msgspec.structs.asdict(got.sampling) == {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 20,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "logit_bias": {17: -100.0, 3: 2.5},
        "seed": 42,
    }
    assert (got.max_tokens, got.stop, got.top_logprobs) == (30, ["END"], None)
    assert wanted(CHAT, {**HELLO, "stop": ["a", "", "b"]}).stop == ["a", "b"]
    assert wanted(CHAT, {**HELLO, "max_tokens": 5, "max_completion_tokens": 6}).max_tokens == 6
    assert wanted(CHAT, {**HELLO, "max_tokens": -1}).max_tokens is None
    assert wanted(CHAT, {**HELLO, "seed": -1}).sampling.seed == 2**63 - 1


def test_null_is_the_default_of_every_field() -> None:

    nulls = dict.fromkeys(ChatBody.model_fields)
    assert wanted(CHAT, {**nulls, **HELLO}) == wanted(CHAT, HELLO)
    nulls = dict.fromkeys(CompletionBody.model_fields)
    assert wanted(TEXT, {**nulls, "prompt": "a"}) == wanted(TEXT, {"prompt": "a"})


def test_messages_of_every_role_and_form_reach_the_template() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    custom = {"id": "c2", "type": "custom", "custom": {"name": "patch", "input": "text"}}
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}], "name": "ann"},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "hm",
            "tool_calls": [call, custom],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "two"}]},
    ]
    assert prompt({"messages": messages}).messages == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "hm",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}},
                {
                    "id": "c2",
                    "type": "function",
                    "function": {"name": "patch", "arguments": {"input": "text"}},
                },
            ],
        },
        {"role": "tool", "content": "one", "tool_call_id": "c1", "name": "f"},
        {"role": "tool", "content": "two", "tool_call_id": "c2", "name": "patch"},
    ]


def test_reasoning_comes_back_under_either_name() -> None:
    for name in ("reasoning", "reasoning_content"):
        said_before = {"role": "assistant", "content": "a", name: "because"}
        messages = [*HELLO["messages"], said_before, {"role": "user", "content": "b"}]
        assert prompt({"messages": messages}).messages[1]["reasoning_content"] == "because"


def test_tools_and_the_choice_of_one_reach_the_worker() -> None:
    got = wanted(CHAT, {**HELLO, "tools": [WEATHER, {"type": "web_search"}]})
    assert isinstance(got.prompt, ChatPrompt)
    assert got.prompt.tools == [WEATHER]
    assert (got.tool_choice, got.parallel_tool_calls) == ("auto", True)
    named = {"type": "function", "function": {"name": "weather"}}
    allowed = {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": [named]},
    }
    other = {"type": "function", "function": {"name": "other"}}
    for choice, expected in [
        ("none", "none"),
        ("required", "required"),
        (named, "=weather"),
        ({"type": "function", "name": "weather"}, "=weather"),
        (allowed, "required"),
    ]:
        got = wanted(CHAT, {**HELLO, "tools": [WEATHER, other], "tool_choice": choice})
        assert got.tool_choice == expected
    assert isinstance(got.prompt, ChatPrompt)
    assert got.prompt.tools == [WEATHER]
    body = {**HELLO, "tools": [WEATHER], "parallel_tool_calls": False}
    assert wanted(CHAT, body).parallel_tool_calls is False


def test_a_response_format_becomes_a_grammar() -> None:
    schema = {"type": "object", "properties": {"ä": {"type": "string"}}}
    by_schema = Grammar(kind="schema", text=json.dumps(schema, ensure_ascii=False))
    flat = {"type": "json_schema", "name": "n", "schema": schema}
    for given, expected in [
        ({"type": "text"}, None),
        ({"type": "json_object"}, Grammar(kind="json")),
        ({"type": "json_object", "schema": schema}, by_schema),
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}, by_schema),
    ]:
        assert wanted(CHAT, {**HELLO, "response_format": given}).grammar == expected
    text = {"format": flat, "verbosity": "low"}
    assert wanted(CHAT, {**HELLO, "text": text}).grammar == by_schema


def test_options_of_the_template_are_the_clients_but_for_those_of_the_server() -> None:
    def options(**more: Any) -> dict[str, Any]:
        return prompt({**HELLO, **more}).template_options

    assert options(reasoning_effort="none") == {"enable_thinking": False}
    assert options(reasoning_effort="high") == {"reasoning_effort": "high"}
    assert options(reasoning={"effort": "low"}) == {"reasoning_effort": "low"}
    assert options(reasoning_effort="none", chat_template_kwargs={"enable_thinking": True}) == {
        "enable_thinking": True
    }
    error = refused(CHAT, {**HELLO, "chat_template_kwargs": {"chat_template": "{{ 1 }}"}})
    assert error["param"] == "chat_template_kwargs"


def test_a_last_message_of_the_assistant_is_gone_on_with_when_asked() -> None:
    begun = {"role": "assistant", "content": "He"}
    messages = [*HELLO["messages"], begun]
    assert prompt({"messages": messages}).continue_last is False
    assert prompt({"messages": messages, "continue_final_message": True}).continue_last
    for mark in ("prefix", "partial"):
        marked = [*HELLO["messages"], {**begun, mark: True}]
        assert prompt({"messages": marked}).continue_last


def test_a_body_of_the_responses_api_is_answered_as_a_chat() -> None:
    patch = {
        "type": "custom",
        "name": "ApplyPatch",
        "description": "Edits.",
        "format": {"type": "grammar", "syntax": "lark", "definition": "start: any"},
    }
    flat = {"type": "function", "name": "read", "parameters": {"type": "object"}, "strict": False}
    body = {
        "model": "m",
        "instructions": "edit files",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "do it"}]},
            {"type": "reasoning", "summary": []},
            {"type": "function_call", "call_id": "1", "name": "read", "arguments": '{"p": "x"}'},
            {"type": "function_call_output", "call_id": "1", "output": "text of x"},
            {"type": "custom_tool_call", "call_id": "2", "name": "ApplyPatch", "input": "*** P"},
            {"type": "custom_tool_call_output", "call_id": "2", "output": "done"},
        ],
        "tools": [flat, patch],
        "text": {"verbosity": "low"},
        "max_output_tokens": 50,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    backend = Backend([ToolCall(0, "ApplyPatch", '{"input": "*** Q"}'), finished(reason="tools")])
    events = asked(backend, CHAT, body)
    got = backend.asked[0]
    assert isinstance(got.prompt, ChatPrompt)
    assert [message["role"] for message in got.prompt.messages] == [
        *("system", "user", "assistant", "tool", "assistant", "tool"),
    ]
    assert got.prompt.messages[3]["name"] == "read"
    called = got.prompt.messages[4]["tool_calls"][0]["function"]
    assert called == {"name": "ApplyPatch", "arguments": {"input": "*** P"}}
    assert [tool["function"]["name"] for tool in got.prompt.tools] == ["read", "ApplyPatch"]
    assert "start: any" in got.prompt.tools[1]["function"]["description"]
    assert got.max_tokens == 50
    call = events[1]["choices"][0]["delta"]["tool_calls"][0]
    assert call["function"] == {"name": "ApplyPatch", "arguments": "*** Q"}
    assert prompt({"input": "hello"}).messages == HELLO["messages"]


def test_a_chat_is_answered_with_counts_and_speeds() -> None:
    reply = asked(Backend(), CHAT, {**HELLO, "model": "gpt-x"})
    assert reply["id"].startswith("chatcmpl-")
    assert (reply["object"], reply["model"]) == ("chat.completion", "gpt-x")
    assert reply["system_fingerprint"].startswith("mlx-flash-")
    assert reply["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert reply["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 2,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    timings = reply["timings"]
    assert (timings["cache_n"], timings["prompt_n"], timings["predicted_n"]) == (4, 3, 2)
    assert timings["prompt_ms"] == pytest.approx(20)
    assert timings["prompt_per_second"] == pytest.approx(150)
    assert timings["predicted_ms"] == pytest.approx(30)
    assert timings["predicted_per_second"] == pytest.approx(2 / 0.03)
    assert asked(Backend(), "/chat/completions", HELLO)["model"] == "tiny-moe"


def test_times_of_nothing_are_no_division_by_zero() -> None:
    script = [finished(prefill_s=0.0, decode_s=0.0, completion_tokens=0, cached_tokens=7)]
    timings = asked(Backend(script), CHAT, HELLO)["timings"]
    assert (timings["prompt_per_second"], timings["predicted_per_second"]) == (0.0, 0.0)


def test_reasoning_and_calls_have_their_own_fields() -> None:
    script = [
        Piece(0, "reasoning", "Hm."),
        ToolCall(0, "weather", '{"c": "Rome"}'),
        ToolCall(0, "weather", '{"c": "Oslo"}'),
        finished(reason="tools", reasoning_tokens=1),
    ]
    reply = asked(Backend(script), CHAT, {**HELLO, "tools": [WEATHER]})
    choice = reply["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert message["content"] is None
    assert message["reasoning"] == message["reasoning_content"] == "Hm."
    first, second = message["tool_calls"]
    assert first["id"].startswith("call_")
    assert first["id"] != second["id"]
    assert first["type"] == "function"
    assert first["function"] == {"name": "weather", "arguments": '{"c": "Rome"}'}
    assert "index" not in first
    assert reply["usage"]["completion_tokens_details"] == {"reasoning_tokens": 1}


def test_a_stream_of_reasoning_text_and_calls() -> None:
    script = [
        Piece(0, "reasoning", "Hm."),
        Piece(0, "text", ""),
        Piece(0, "text", "I look."),
        ToolCall(0, "weather", '{"c": 1}'),
        ToolCall(0, "weather", "{}"),
        finished(reason="tools"),
    ]
    events = asked(Backend(script), CHAT, {**HELLO, "tools": [WEATHER], "stream": True})
    assert events.pop() == "[DONE]"
    assert len({event["id"] for event in events}) == 1
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    deltas = [event["choices"][0]["delta"] for event in events]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert deltas[1] == {"reasoning_content": "Hm.", "reasoning": "Hm."}
    assert deltas[2] == {"content": "I look."}
    calls = [delta["tool_calls"][0] for delta in deltas[3:5]]
    assert [call["index"] for call in calls] == [0, 1]
    assert calls[0]["id"] != calls[1]["id"]
    assert calls[0]["function"] == {"name": "weather", "arguments": '{"c": 1}'}
    assert deltas[5] == {}
    reasons = [event["choices"][0]["finish_reason"] for event in events]
    assert reasons == [None] * 5 + ["tool_calls"]
    assert events[-1]["timings"]["prompt_n"] == 3
    assert not any("usage" in event for event in events)


def test_usage_ends_a_stream_when_asked() -> None:
    body = {**HELLO, "stream": True, "stream_options": {"include_usage": True, "other": 1}}
    events = asked(Backend(), CHAT, body)
    assert events[-1] == "[DONE]"
    assert events[-2]["choices"] == []
    assert events[-2]["usage"]["total_tokens"] == 9
    assert events[-2]["timings"]["cache_n"] == 4
    assert all(event["usage"] is None and "timings" not in event for event in events[:-2])


def test_a_custom_tool_in_the_form_of_chats_is_called_in_that_form() -> None:
    tool = {"type": "custom", "custom": {"name": "run", "description": "Runs code."}}
    script = [ToolCall(0, "run", '{"input": "1 + 1"}'), finished(reason="tools")]
    reply = asked(Backend(script), CHAT, {**HELLO, "tools": [tool]})
    call = reply["choices"][0]["message"]["tool_calls"][0]
    assert (call["type"], call["custom"]) == ("custom", {"name": "run", "input": "1 + 1"})


def test_old_functions_are_called_in_the_old_form() -> None:
    body = {**HELLO, "functions": [WEATHER["function"]], "function_call": {"name": "weather"}}
    script = [ToolCall(0, "weather", "{}"), finished(reason="tools")]
    backend = Backend(script)
    choice = asked(backend, CHAT, body)["choices"][0]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"] == {"name": "weather", "arguments": "{}"}
    assert (backend.asked[0].tool_choice, backend.asked[0].parallel_tool_calls) == (
        "=weather",
        False,
    )
    events = asked(Backend(script), CHAT, {**body, "stream": True})
    assert events[1]["choices"][0]["delta"] == {
        "function_call": {"name": "weather", "arguments": "{}"}
    }
    messages = [
        *HELLO["messages"],
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "sun"},
    ]
    told = prompt({"messages": messages}).messages
    assert told[2] == {"role": "tool", "content": "sun", "tool_call_id": "f", "name": "f"}


def test_the_end_is_told_in_the_words_of_the_api() -> None:
    for reason, expected in [("stop", "stop"), ("length", "length"), ("context", "length")]:
        script = [Piece(0, "text", "a"), finished(reason=reason)]
        assert asked(Backend(script), CHAT, HELLO)["choices"][0]["finish_reason"] == expected


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": True}, "n"),
        ({"n": "2"}, "n"),
        ({"stream": "yes"}, "stream"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"stop": 5}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -2}, "max_completion_tokens"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"model": 5}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "boss", "content": "a"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0.content",
        ),
        ({"messages": None, "input": 5}, "input"),
        ({"messages": None, "input": [{"role": "boss"}]}, "input.0"),
        ({"tools": ["f"]}, "tools.0"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools.0"),
        ({"tools": [WEATHER], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"function": {"name": "g"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_object", "schema": 5}}, "response_format"),
    ],
)
def test_a_chat_that_makes_no_sense_is_refused_with_its_field(more: Any, param: str) -> None:
    error = refused(CHAT, {**HELLO, **more})
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith(param)
    assert error["message"].endswith(".")


@pytest.mark.parametrize("more", [{"user": "\ud800"}, {"metadata": {"a": [2**64]}}])
def test_a_chat_that_cannot_be_passed_on_is_refused(more: Any) -> None:
    assert refused(CHAT, {**HELLO, **more})["message"].startswith("the body has ")
