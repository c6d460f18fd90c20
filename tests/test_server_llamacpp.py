"""What clients of llama.cpp's server see outside /v1: its state, tokens and completions."""

import asyncio
import json
from typing import Any

import httpx
import msgspec
import pytest
from serving import CARD, FakeBackend, client_of, finished, said

from mlx_flash.server.messages import (
    ChatPrompt,
    Failed,
    Grammar,
    Piece,
    Prefilled,
    Prompt,
    Sampling,
    Snapshot,
    TextPrompt,
    Tokenized,
    TokenLogprob,
    TokenPrompt,
)


class Tokenizer(FakeBackend):
    """Tokens are bytes; notes what was to be tokenized."""

    prompt: Prompt | None = None
    add_special = False

    async def tokenize(self, prompt: Prompt, add_special: bool = False) -> Tokenized:
        self.prompt, self.add_special = prompt, add_special
        if isinstance(prompt, ChatPrompt):
            return Tokenized(0, [1, 2], [b"<", b">"])
        return await super().tokenize(prompt, add_special)


def ask(method: str, path: str, body: Any = None, backend: FakeBackend | None = None) -> Any:
    async def asked() -> httpx.Response:
        async with client_of(backend or FakeBackend()) as client:
            return await client.request(method, path, json=body)

    return asyncio.run(asked())


def post(path: str, backend: FakeBackend | None = None, **body: Any) -> Any:
    response = ask("POST", path, body, backend)
    assert response.status_code == 200, response.text
    return response.json()


def refusal(response: httpx.Response, status: int = 400) -> str:
    error = response.json()["error"]
    assert set(error) == {"code", "message", "type"}
    assert response.status_code == error["code"] == status
    return str(error["message"])


def events(response: httpx.Response) -> list[Any]:
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.removesuffix("\n\n").split("\n\n")
    return [
        json.loads(block.removeprefix("data: ")) if block.startswith("data: ") else block
        for block in blocks
    ]


def busy(running: int) -> FakeBackend:
    backend = FakeBackend()
    zeros: dict[str, Any] = {}
    for field in msgspec.structs.fields(Snapshot):
        zeros[field.name] = [] if field.name in ("layers", "more_memory_gains") else 0
    zeros |= {"running": running, "direct_io": False}
    backend.snapshot = Snapshot(**zeros)
    return backend


def test_props_say_what_runs_and_no_path() -> None:
    props = ask("GET", "/props").json()
    settings = props.pop("default_generation_settings")
    assert settings["n_ctx"] == 4096
    assert settings["is_processing"] is False
    assert settings["params"]["n_predict"] == -1
    assert props.pop("build_info").startswith("mlx-flash ")
    assert props == {
        "total_slots": 16,
        "model_alias": "tiny-moe",
        "model_path": "tiny-moe",
        "chat_template": CARD.chat_template,
        "chat_template_caps": {
            "supports_tools": True,
            "supports_tool_calls": True,
            "supports_system_role": True,
        },
        "modalities": {"vision": False, "audio": False},
        "bos_token": "",
        "eos_token": "",
        "is_sleeping": False,
    }


def test_slots_are_places_in_the_batch() -> None:
    def busy_slots(backend: FakeBackend) -> list[bool]:
        slots = ask("GET", "/slots", backend=backend).json()
        assert [slot["id"] for slot in slots] == list(range(16))
        assert all(slot["n_ctx"] == 4096 for slot in slots)
        return [slot["is_processing"] for slot in slots]

    assert busy_slots(FakeBackend()) == [False] * 16
    assert busy_slots(busy(3)) == [True] * 3 + [False] * 13
    assert busy_slots(busy(20)) == [True] * 16


def test_slots_fail_when_asked_to_and_none_is_free() -> None:
    assert ask("GET", "/slots?fail_on_no_slot=1", backend=busy(15)).status_code == 200
    assert ask("GET", "/slots", backend=busy(16)).status_code == 200
    assert ask("GET", "/slots?fail_on_no_slot=0", backend=busy(16)).status_code == 200
    full = ask("GET", "/slots?fail_on_no_slot=1", backend=busy(16))
    assert refusal(full, 503) == "no slot is free: try again in a while."


def test_state_is_unavailable_while_the_model_loads() -> None:
    backend = FakeBackend()
    backend.card, backend.state = None, "loading"
    for path in ("/props", "/slots"):
        assert "not loaded" in refusal(ask("GET", path, backend=backend), 503)


def test_tokens_are_numbers_or_have_their_pieces() -> None:
    assert post("/tokenize", content="hé")["tokens"] == [104, 195, 169]
    assert post("/tokenize", content="hé", with_pieces=True)["tokens"] == [
        {"id": 104, "piece": "h"},
        {"id": 195, "piece": [195]},
        {"id": 169, "piece": [169]},
    ]
    assert post("/tokenize", content="")["tokens"] == []


def test_vllm_has_its_tokens_counted() -> None:
    backend = Tokenizer()
    assert post("/tokenize", backend, prompt="hi", return_token_strs=True) == {
        "tokens": [104, 105],
        "count": 2,
        "max_model_len": 4096,
        "token_strs": ["h", "i"],
    }
    chat = post("/tokenize", backend, messages=[{"role": "user", "content": "hi"}])
    assert (chat["count"], chat["tokens"], chat["token_strs"]) == (2, [1, 2], None)
    assert isinstance(backend.prompt, ChatPrompt)


def test_special_tokens_are_added_as_each_api_has_it() -> None:
    backend = Tokenizer()
    for body, added in (
        ({"content": "x"}, False),
        ({"content": "x", "add_special": True}, True),
        ({"prompt": "x"}, True),
        ({"prompt": "x", "add_special_tokens": False}, False),
    ):
        post("/tokenize", backend, **body)
        assert backend.add_special is added


def test_detokenized_text_has_both_names() -> None:
    assert post("/detokenize", tokens=[104, 105]) == {"content": "hi", "prompt": "hi"}
    assert post("/detokenize", tokens=[]) == {"content": "", "prompt": ""}


def test_a_template_is_applied_without_an_answer() -> None:
    backend = FakeBackend()
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    ]
    applied = post("/apply-template", backend, messages=messages)
    assert applied == {"prompt": "system: Be brief.\nuser: hi"}
    assert backend.asked == []


def test_a_completion_is_llama_cpps() -> None:
    backend = FakeBackend()
    body = post("/completion", backend, prompt="Say", n_predict=9, temperature=0.5)
    timings = body.pop("timings")
    assert timings["prompt_n"] == 3
    assert timings["predicted_per_second"] == pytest.approx(2 / 0.03)
    assert body == {
        "index": 0,
        "content": "Hello",
        "tokens": [],
        "id_slot": -1,
        "stop": True,
        "model": "tiny-moe",
        "prompt": "Say",
        "tokens_predicted": 2,
        "tokens_evaluated": 7,
        "tokens_cached": 4,
        "truncated": False,
        "stop_type": "eos",
        "stopping_word": "",
        "has_new_line": False,
        "generation_settings": {"model": "tiny-moe", "n_predict": 9, "temperature": 0.5},
    }
    assert backend.asked[-1].prompt == TextPrompt(text="Say")


@pytest.mark.parametrize(
    ("end", "kind", "word"),
    [
        ({"reason": "stop"}, "eos", ""),
        ({"reason": "length"}, "limit", ""),
        ({"reason": "context"}, "limit", ""),
        ({"reason": "stop", "stop_text": "END"}, "word", "END"),
    ],
)
def test_a_completion_says_what_ended_it(end: dict[str, Any], kind: str, word: str) -> None:
    body = post("/completion", FakeBackend([finished(**end)]), prompt="Say")
    assert (body["stop_type"], body["stopping_word"]) == (kind, word)
    assert body["truncated"] is (end["reason"] == "context")


def test_a_completion_streams_its_pieces_and_then_all_about_them() -> None:
    script = [None, Prefilled(0, 5, 7), *said("a\n", "b")]
    got = events(ask("POST", "/completion", {"prompt": "x", "stream": True}, FakeBackend(script)))
    assert got[:2] == [": working", ": working"]
    assert [(event["content"], event["stop"]) for event in got[2:]] == [
        ("a\n", False),
        ("b", False),
        ("", True),
    ]
    assert [event["tokens_predicted"] for event in got[2:]] == [1, 2, 2]
    assert got[-1]["has_new_line"] is True
    assert "timings" in got[-1]


def test_progress_of_the_prompt_is_told_when_asked_for() -> None:
    body = {"prompt": "x", "stream": True, "return_progress": True}
    first = events(ask("POST", "/completion", body, FakeBackend([Prefilled(0, 5, 7), *said()])))[0]
    progress = first["prompt_progress"]
    assert progress.pop("time_ms") >= 0
    assert progress == {"total": 7, "cache": 4, "processed": 5}


def test_a_completion_fails_with_a_status_or_by_an_event() -> None:
    refused = ask(
        "POST",
        "/completion",
        {"prompt": "x", "stream": True},
        FakeBackend([Failed(0, "overloaded", "full.")]),
    )
    assert refusal(refused, 429) == "full."
    broken = FakeBackend([Piece(0, "text", "a"), Failed(0, "internal", "disk broke.")])
    last = events(ask("POST", "/completion", {"prompt": "x", "stream": True}, broken))[-1]
    assert last["error"]["message"] == "disk broke."


def test_options_of_a_completion_reach_the_model() -> None:
    backend = FakeBackend()
    post(
        "/completion",
        backend,
        prompt=[1, 2],
        seed=3,
        top_k=-1,
        stop=["END"],
        repeat_penalty=1.1,
        logit_bias=[[5, 1.5], [6, False]],
        json_schema={"type": "object"},
        samplers=["top_k"],
        cache_prompt=True,
    )
    wanted = backend.asked[-1]
    assert wanted.prompt == TokenPrompt(tokens=[1, 2])
    assert wanted.max_tokens is None
    assert wanted.stop == ["END"]
    assert wanted.grammar == Grammar(kind="schema", text='{"type": "object"}')
    assert wanted.sampling == Sampling(
        seed=3, top_k=0, repetition_penalty=1.1, logit_bias={5: 1.5, 6: -100.0}
    )
    post("/completion", backend, prompt=["x"], seed=-1, logit_bias={"7": -1}, n_predict=-1)
    assert backend.asked[-1].prompt == TextPrompt(text="x")
    assert backend.asked[-1].sampling == Sampling(logit_bias={7: -1.0})


def test_no_tokens_can_be_asked_for() -> None:
    backend = FakeBackend([Piece(0, "prompt", "Say", 0), finished(completion_tokens=0)])
    body = post("/completion", backend, prompt="Say", n_predict=0)
    assert (backend.asked[-1].max_tokens, backend.asked[-1].echo) == (0, True)
    assert (body["content"], body["tokens_predicted"]) == ("", 0)


def test_tokens_and_probabilities_come_when_asked_for() -> None:
    token = TokenLogprob(5, "a", b"a", -0.5, [(5, "a", b"a", -0.5)])
    backend = FakeBackend([Piece(0, "text", "a", 1, [token]), finished()])
    a = {"id": 5, "token": "a", "bytes": [97], "logprob": -0.5}
    body = post("/completion", backend, prompt="x", n_probs=1)
    assert body["completion_probabilities"] == [{**a, "top_logprobs": [a]}]
    assert backend.asked[-1].top_logprobs == 1
    body = post("/completion", backend, prompt="x", return_tokens=True)
    assert body["tokens"] == [5]
    assert "completion_probabilities" not in body
    assert backend.asked[-1].top_logprobs == 0


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"content": 3}),
        ("/tokenize", {"messages": []}),
        ("/detokenize", {}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": ["a"]}),
        ("/apply-template", {}),
        ("/apply-template", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
        ("/completion", {}),
        ("/completion", {"prompt": []}),
        ("/completion", {"prompt": [1, "a"]}),
        ("/completion", {"prompt": ["a", "b"]}),
        ("/completion", {"prompt": {"prompt_string": "a", "multimodal_data": ["aGk="]}}),
        ("/completion", {"prompt": "a", "temperature": -1}),
        ("/completion", {"prompt": "a", "grammar": 'root ::= "a"'}),
        ("/completion", {"prompt": "a", "grammar": 'start: "a"', "json_schema": {}}),
        ("/completion", {"prompt": "a", "logit_bias": [[1]]}),
        ("/completion", {"prompt": "a", "logit_bias": {"word": 1}}),
        ("/completion", {"prompt": "a", "n_probs": 21}),
    ],
)
def test_nonsense_is_refused_with_a_sentence(path: str, body: dict[str, Any]) -> None:
    assert refusal(ask("POST", path, body)).endswith(".")


def test_a_grammar_is_larks() -> None:
    backend = FakeBackend()
    post("/completion", backend, prompt="a", grammar='start: "a"')
    assert backend.asked[-1].grammar == Grammar(kind="lark", text='start: "a"')
