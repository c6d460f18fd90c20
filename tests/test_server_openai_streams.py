import asyncio
import gc
import json
from typing import Any

from asking import CHAT, HELLO, TEXT, Backend, asked, wanted
from fastapi import Request
from serving import app_of, finished, said

from mlx_flash.server.gateway.openai.chat_body import ChatBody
from mlx_flash.server.gateway.openai.chat_writer import ChatWriter
from mlx_flash.server.gateway.openai.counts import Heading
from mlx_flash.server.gateway.openai.streaming import stream
from mlx_flash.server.gateway.openai.tools import tools_of
from mlx_flash.server.gateway.streams import begun
from mlx_flash.server.messages import (
    Failed,
    Generate,
    Piece,
    Prefilled,
    TextPrompt,
    TokenLogprob,
)


def test_n_answers_have_seeds_of_their_own_and_one_prompt() -> None:
    backend = Backend(said("a"), said("b", "c"), said("d"))
    reply = asked(backend, CHAT, {**HELLO, "n": 3, "seed": 5})
    seeds = [one.sampling.seed for one in backend.asked]
    assert seeds[0] == 5
    assert not {6, 7}.intersection(seeds)  # whose first answers these would be
    assert len(set(seeds)) == 3
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    assert [choice["message"]["content"] for choice in reply["choices"]] == ["a", "bc", "d"]
    assert (reply["usage"]["prompt_tokens"], reply["usage"]["completion_tokens"]) == (7, 4)
    assert reply["timings"]["predicted_n"] == 4


def test_n_answers_are_streamed_side_by_side() -> None:
    backend = Backend(said("a", "b"), said("c", "d"))
    body = {**HELLO, "n": 2, "stream": True, "stream_options": {"include_usage": True}}
    events = asked(backend, CHAT, body)
    choices = [event["choices"][0] for event in events[:-2]]
    roles = [choice["index"] for choice in choices if "role" in choice["delta"]]
    assert roles == [0, 1]
    texts = ["", ""]
    for choice in choices:
        texts[choice["index"]] += choice["delta"].get("content") or ""
    assert texts == ["ab", "cd"]
    order = [choice["index"] for choice in choices[2:6]]
    assert order == [0, 1, 0, 1]
    assert events[-2]["usage"]["completion_tokens"] == 4


LOGPROBS = [
    TokenLogprob(1, "H\u00e4", "H\u00e4".encode(), -0.5, [(1, "H\u00e4", b"H\xc3\xa4", -0.5)]),
    TokenLogprob(2, "\ufffd", b"\xf0\x9f", float("-inf"), [(3, "x", b"x", -1.0)]),
]


def test_log_probabilities_have_bytes_and_are_finite() -> None:
    script = [
        Piece(0, "reasoning", "hm", 1, [TokenLogprob(9, "hm", b"hm", -1.0, [])]),
        Piece(0, "text", "Hä", 1, LOGPROBS[:1]),
        Piece(0, "text", "", 1, LOGPROBS[1:]),
        finished(),
    ]
    body = {**HELLO, "logprobs": True, "top_logprobs": 1}
    backend = Backend(script)
    content = asked(backend, CHAT, body)["choices"][0]["logprobs"]["content"]
    assert backend.asked[0].top_logprobs == 1
    first = {"token": "Hä", "logprob": -0.5, "bytes": [72, 195, 164]}
    assert content[0] == {**first, "top_logprobs": [first]}
    assert (content[1]["logprob"], content[1]["bytes"]) == (-9999.0, [0xF0, 0x9F])
    events = asked(Backend(script), CHAT, {**body, "stream": True})
    streamed = [event["choices"][0]["logprobs"] for event in events[:-1]]
    assert [entry for one in streamed if one for entry in one["content"]] == content
    assert wanted(CHAT, {**HELLO, "logprobs": True}).top_logprobs == 0


def test_a_long_prefill_keeps_the_stream_alive() -> None:
    script = [None, Prefilled(0, 4, 7), *said("a")]
    events = asked(Backend(script), CHAT, {**HELLO, "stream": True})
    assert events[1:3] == [": keep-alive"] * 2
    events = asked(Backend(script), CHAT, {**HELLO, "stream": True, "return_progress": True})
    progress = events[2]["prompt_progress"]
    assert (progress["total"], progress["cache"], progress["processed"]) == (7, 4, 4)


def test_a_refusal_has_its_status_even_for_a_stream() -> None:
    for kind, status, code in [
        ("context_length", 400, "context_length_exceeded"),
        ("invalid", 400, None),
        ("overloaded", 429, "rate_limit_exceeded"),
        ("unavailable", 503, None),
    ]:
        for path, body in [(CHAT, HELLO), (TEXT, {"prompt": "a"})]:
            for streamed in (False, True):
                script = [Failed(0, kind, "it cannot be.")]
                reply = asked(Backend(script), path, {**body, "stream": streamed, "n": 2}, status)
                assert reply["error"]["message"] == "it cannot be."
                assert reply["error"]["code"] == code


def test_what_fails_in_a_stream_is_its_last_event() -> None:
    broken = [Piece(0, "text", "a"), Failed(0, "internal", "a read failed.")]
    for path, body in [(CHAT, HELLO), (TEXT, {"prompt": "a"})]:
        backend = Backend(said("b", "c"), broken)
        events = asked(backend, path, {**body, "stream": True, "n": 2})
        assert events[-1] == {
            "error": {
                "message": "a read failed.",
                "type": "server_error",
                "param": None,
                "code": None,
            }
        }
        asked(Backend(broken), path, body, 500)


def test_when_one_answer_fails_the_others_are_cancelled() -> None:
    endless = [Piece(0, "text", "a")]
    for streamed in (False, True):
        backend = Backend(endless, [*endless, Failed(0, "internal", "no.")], endless)
        body = {**HELLO, "n": 3, "stream": streamed}
        asked(backend, CHAT, body, 200 if streamed else 500)
        assert backend.cancelled == 2


def test_all_answers_find_a_place_or_none_is_begun() -> None:
    backend = Backend(places=2)
    asked(backend, CHAT, {**HELLO, "n": 3}, 429)
    assert (len(backend.asked), backend.cancelled) == (2, 2)


def test_a_client_that_does_not_wait_for_its_answers_cancels_them() -> None:
    async def work() -> None:
        backend = Backend([Piece(0, "text", "a")])
        body = json.dumps({**HELLO, "n": 2}).encode()
        messages = [{"type": "http.request", "body": body}, {"type": "http.disconnect"}]

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            pass

        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "path": CHAT,
            "query_string": b"",
            "headers": [(b"host", b"localhost")],
        }
        await app_of(backend)(scope, receive, send)
        assert (len(backend.asked), backend.cancelled) == (2, 2)

    asyncio.run(work())


def test_a_client_that_leaves_a_stream_cancels_all_its_answers() -> None:

    async def work() -> None:
        backend = Backend([Piece(0, "text", "a")])
        request = Request({"type": "http"}, asyncio.Event().wait)  # type: ignore[arg-type]
        body = ChatBody.model_validate({**HELLO, "n": 2, "stream": True})
        answers = [backend.submit(Generate(request=0, prompt=TextPrompt(text=""))) for _ in "ab"]
        writer = ChatWriter(body, tools_of(body), Heading.of("chatcmpl", None, backend))
        chunks = await begun(request, stream(answers, writer))
        for _ in range(4):
            await anext(chunks)
        assert backend.cancelled == 0
        await chunks.aclose()  # type: ignore[attr-defined]
        assert backend.cancelled == 2
        unread = await begun(request, stream(answers, writer))
        del unread
        gc.collect()
        for _ in range(4):
            await asyncio.sleep(0)
        assert backend.cancelled == 4

    asyncio.run(work())
