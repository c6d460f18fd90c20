import asyncio
from typing import Any

import pytest
from asking import CHAT, TEXT, Backend, asked, refused
from serving import FakeBackend, client_of, finished, said

from mlx_flash.server.messages import Piece, TextPrompt, TokenLogprob, TokenPrompt


def test_a_text_is_gone_on_with() -> None:
    backend = Backend()
    reply = asked(backend, TEXT, {"prompt": "Once", "suffix": "end", "model": "m"})
    got = backend.asked[0]
    assert got.prompt == TextPrompt(text="Once", suffix="end")
    assert (got.max_tokens, got.echo, got.top_logprobs) == (16, False, None)
    assert reply["id"].startswith("cmpl-")
    assert (reply["object"], reply["model"]) == ("text_completion", "m")
    assert reply["choices"] == [
        {"index": 0, "text": "Hello", "logprobs": None, "finish_reason": "stop"}
    ]
    assert reply["usage"]["total_tokens"] == 9
    assert reply["timings"]["predicted_n"] == 2
    assert asked(Backend(), "/completions", {"prompt": ""})["choices"][0]["text"] == "Hello"


def test_prompts_are_texts_or_tokens_one_or_many() -> None:
    for given, expected in [
        ("a", [TextPrompt(text="a")]),
        (["a", "b"], [TextPrompt(text="a"), TextPrompt(text="b")]),
        ([1, 2], [TokenPrompt(tokens=[1, 2])]),
        ([[1, 2], [3]], [TokenPrompt(tokens=[1, 2]), TokenPrompt(tokens=[3])]),
    ]:
        backend = Backend()
        asked(backend, TEXT, {"prompt": given})
        assert [one.prompt for one in backend.asked] == expected


def test_answers_to_many_prompts_are_in_the_order_of_the_prompts() -> None:
    backend = Backend(said("a"), said("b"), said("c"), said("d"))
    reply = asked(backend, TEXT, {"prompt": ["x", "y"], "n": 2, "best_of": 2, "seed": 1})
    assert [choice["text"] for choice in reply["choices"]] == ["a", "b", "c", "d"]
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2, 3]
    seeds = [one.sampling.seed for one in backend.asked]
    assert seeds[:2] == seeds[2:]
    assert seeds[0] == 1 != seeds[1]
    assert (reply["usage"]["prompt_tokens"], reply["usage"]["completion_tokens"]) == (14, 4)


def test_an_echo_has_the_log_probabilities_of_the_prompt() -> None:
    prompt_tokens = [
        TokenLogprob(5, "Hä", "Hä".encode(), None, []),
        TokenLogprob(6, "\ufffd", b"\xf0\x9f", -2.0, [(7, "y", b"y", -1.0)]),
        TokenLogprob(8, "\ufffd", b"\x99\x82", -3.0, [(8, "\ufffd", b"\x99\x82", -3.0)]),
    ]
    answer = TokenLogprob(1, "z", b"z", -0.5, [(1, "z", b"z", -0.5)])
    script = [
        Piece(0, "prompt", "Hä🙂", 0, prompt_tokens),
        Piece(0, "text", "z", 1, [answer]),
        finished(reason="length", completion_tokens=1),
    ]
    backend = Backend(script)
    body = {"prompt": "Hä🙂", "echo": True, "logprobs": 1, "max_tokens": 1}
    choice = asked(backend, TEXT, body)["choices"][0]
    assert (backend.asked[0].echo, backend.asked[0].top_logprobs) == (True, 1)
    assert choice["text"] == "Hä🙂z"
    half, rest = "bytes:\\xf0\\x9f", "bytes:\\x99\\x82"
    expected = {
        "tokens": ["Hä", half, rest, "z"],
        "token_logprobs": [None, -2.0, -3.0, -0.5],
        "top_logprobs": [None, {"y": -1.0, half: -2.0}, {rest: -3.0}, {"z": -0.5}],
        "text_offset": [0, 2, 2, 3],
    }
    assert choice["logprobs"] == expected
    events = asked(Backend(script), TEXT, {**body, "stream": True})
    assert events[0] == ": accepted"
    choices = [event["choices"][0] for event in events[1:-1]]
    assert "".join(one["text"] for one in choices) == "Hä🙂z"
    streamed = [one["logprobs"] for one in choices if one["logprobs"]]
    for key, values in expected.items():
        assert [value for one in streamed for value in one[key]] == values
    assert [one["finish_reason"] for one in choices] == [None, None, "length"]


def test_only_an_echo_may_have_no_answer() -> None:
    script = [Piece(0, "prompt", "a", 0), finished(completion_tokens=0, reason="length")]
    backend = Backend(script)
    reply = asked(backend, TEXT, {"prompt": "a", "echo": True, "max_tokens": 0})
    assert backend.asked[0].max_tokens == 0
    assert reply["choices"][0]["text"] == "a"
    assert refused(TEXT, {"prompt": "a", "max_tokens": 0})["param"] == "max_tokens"


def test_a_streamed_text_ends_with_usage_when_asked() -> None:
    body = {"prompt": "a", "stream": True, "stream_options": {"include_usage": True}}
    events = asked(Backend(), TEXT, body)
    assert events[-1] == "[DONE]"
    assert events[-2]["choices"] == []
    assert events[-2]["usage"]["total_tokens"] == 9
    assert all(event["usage"] is None for event in events[1:-2])


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": ["a"] * 65, "n": 2}, "prompt"),
        ({"prompt": [1], "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "echo": 1}, "echo"),
    ],
)
def test_a_completion_that_makes_no_sense_is_refused_with_its_field(body: Any, param: str) -> None:
    error = refused(TEXT, body)
    assert error["param"] == param
    assert error["message"].startswith(param)


def test_a_body_that_is_no_object_is_refused() -> None:
    deep = b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    for body in (b"", b"{", b"[]", b"5", b"null", deep, b'{"seed": 1' + b"0" * 5000 + b"}"):
        for path in (CHAT, TEXT):
            assert refused(path, body)["type"] == "invalid_request_error"


def test_there_are_no_embeddings() -> None:
    for path in ("/v1/embeddings", "/embeddings"):
        assert refused(path, {"input": "a"}, 501)["type"] == "not_supported_error"


def test_the_api_document_has_the_routes_with_their_errors() -> None:
    async def work() -> None:
        async with client_of(FakeBackend()) as client:
            document = (await client.get("/openapi.json")).json()
        for path in (CHAT, TEXT):
            post = document["paths"][path]["post"]
            assert set(post["responses"]) == {"200", "4XX", "5XX"}
            assert set(post["responses"]["200"]["content"]) == {
                "application/json",
                "text/event-stream",
            }
        fields = document["components"]["schemas"]["ChatBody"]["properties"]
        assert fields["n"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 16}

    asyncio.run(work())
