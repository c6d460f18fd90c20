"""The official Ollama client against the server on a socket, in front of a stand-in's answers."""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from serving import FakeBackend, app_of, finished, said

from mlx_flash.server.messages import Failed, Grammar, Piece, TokenLogprob, ToolCall

ollama = pytest.importorskip("ollama")

HELLO = [{"role": "user", "content": "Hello"}]


@contextlib.contextmanager
def served(backend: FakeBackend) -> Iterator[str]:
    """Serve a stand-in on a free port; yield its address. The socket takes calls from the start."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(app_of(backend), lifespan="off", ws="none", log_level="error")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@contextlib.contextmanager
def client_for(script: Any = ()) -> Iterator[tuple[Any, FakeBackend]]:
    backend = FakeBackend(script)
    with served(backend) as address:
        client = ollama.Client(host=address)
        with contextlib.closing(client._client):
            yield client, backend


def test_lists_show_the_model() -> None:
    with client_for() as (client, _):
        (listed,) = client.list().models
        assert listed.model == "tiny-moe"
        assert listed.size == 46_000_000
        assert listed.modified_at.tzinfo is not None
        shown = client.show("tiny-moe")
        assert shown.capabilities == ["completion", "tools", "thinking"]
        assert shown.modelinfo["qwen3_moe.context_length"] == 4096
        assert shown.details.family == "qwen3_moe"
        (loaded,) = client.ps().models
        assert loaded.context_length == 4096
        assert loaded.expires_at.year == 9999


def test_a_chat_comes_whole_or_piece_by_piece() -> None:
    with client_for() as (client, _):
        whole = client.chat("tiny-moe", HELLO)
        assert whole.message.content == "Hello"
        assert (whole.done_reason, whole.eval_count) == ("stop", 2)
        parts = list(client.chat("tiny-moe", HELLO, stream=True))
        assert [part.message.content for part in parts] == ["Hel", "lo", ""]
        assert [part.done for part in parts] == [False, False, True]


def test_a_tool_is_called_and_its_result_taken() -> None:
    def weather(city: str) -> str:
        """Tell the weather.

        Args:
            city: where
        """
        return f"rain in {city}"

    script = [ToolCall(0, "weather", '{"city": "Ulm"}'), finished(reason="tools")]
    with client_for(script) as (client, backend):
        got = client.chat("tiny-moe", HELLO, tools=[weather])
        (call,) = got.message.tool_calls
        assert (call.function.name, call.function.arguments) == ("weather", {"city": "Ulm"})
        (tool,) = backend.asked[-1].prompt.tools
        assert tool["function"]["parameters"]["required"] == ["city"]
        result = {"role": "tool", "content": "rain", "tool_name": "weather"}
        backend.script = said("It rains.")
        client.chat("tiny-moe", [*HELLO, got.message, result])
        assistant, answer = backend.asked[-1].prompt.messages[1:]
        assert assistant["tool_calls"][0]["function"]["arguments"] == {"city": "Ulm"}
        assert answer["tool_call_id"] == assistant["tool_calls"][0]["id"]


def test_thinking_is_apart_from_the_answer() -> None:
    with client_for([Piece(0, "reasoning", "hm"), *said("4")]) as (client, backend):
        got = client.chat("tiny-moe", HELLO, think=True)
        assert (got.message.thinking, got.message.content) == ("hm", "4")
        assert backend.asked[-1].prompt.template_options == {"enable_thinking": True}
        parts = list(client.generate("tiny-moe", "2+2?", think="high", stream=True))
        assert "".join(part.thinking or "" for part in parts) == "hm"


def test_format_and_options_arrive() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    with client_for() as (client, backend):
        client.chat("tiny-moe", HELLO, format=schema, options={"num_predict": 4, "stop": ["x"]})
        assert json.loads(backend.asked[-1].grammar.text) == schema
        assert (backend.asked[-1].max_tokens, backend.asked[-1].stop) == (4, ["x"])
        client.generate("tiny-moe", "a", format="json", options=ollama.Options(temperature=0.5))
        assert backend.asked[-1].grammar == Grammar(kind="json")
        assert backend.asked[-1].sampling.temperature == 0.5


def test_a_prompt_is_answered_loaded_and_unloaded() -> None:
    with client_for() as (client, _):
        assert client.generate("tiny-moe", "Hello", system="Be brief.").response == "Hello"
        assert client.generate("tiny-moe", "x", raw=True).response == "Hello"
        assert client.generate("tiny-moe").done_reason == "load"
        assert client.generate("tiny-moe", keep_alive=0).done_reason == "unload"
        assert client.chat("tiny-moe", keep_alive="0s").done_reason == "unload"


def test_logprobs_arrive() -> None:
    token = TokenLogprob(5, "a", b"a", -0.5, [(5, "a", b"a", -0.5)])
    with client_for([Piece(0, "text", "a", 1, [token]), finished()]) as (client, _):
        (got,) = client.chat("tiny-moe", HELLO, logprobs=True, top_logprobs=1).logprobs
        assert (got.token, got.logprob) == ("a", -0.5)
        assert got.top_logprobs[0].token == "a"


def test_errors_are_response_errors() -> None:
    with client_for([Failed(0, "overloaded", "full.")]) as (client, backend):
        with pytest.raises(ollama.ResponseError, match=r"full\.") as refused:
            client.chat("tiny-moe", HELLO)
        assert refused.value.status_code == 429
        with pytest.raises(ollama.ResponseError, match=r"full\."):
            list(client.chat("tiny-moe", HELLO, stream=True))
        backend.script = [Piece(0, "text", "a"), Failed(0, "internal", "disk broke.")]
        with pytest.raises(ollama.ResponseError, match=r"disk broke\."):
            list(client.chat("tiny-moe", HELLO, stream=True))
        for refuse in (
            lambda: client.embed("tiny-moe", "x"),
            lambda: client.embeddings("tiny-moe", "x"),
            lambda: client.create("other", from_="tiny-moe"),
            lambda: client.push("tiny-moe"),
            lambda: client.copy("tiny-moe", "other"),
            lambda: client.delete("tiny-moe"),
        ):
            with pytest.raises(ollama.ResponseError) as unsupported:
                refuse()
            assert unsupported.value.status_code == 501


def test_pull_ends_at_once_for_the_model_that_is_there() -> None:
    with client_for() as (client, _):
        assert client.pull("tiny-moe").status == "success"
        assert [part.status for part in client.pull("tiny-moe", stream=True)][-1] == "success"
        with pytest.raises(ollama.ResponseError, match="not here"):
            client.pull("llama3")


def test_raw_answers_are_of_the_clients_types() -> None:
    logprob = TokenLogprob(5, "a", b"a", -0.5, [(5, "a", b"a", -0.5)])
    script = [
        None,
        Piece(0, "reasoning", "hm"),
        Piece(0, "text", "a", 1, [logprob]),
        ToolCall(0, "f", '{"x": 1}'),
        finished(reason="length"),
    ]
    asked = {"messages": HELLO, "prompt": "Hello", "logprobs": True, "top_logprobs": 1}
    kinds = {"chat": ollama.ChatResponse, "generate": ollama.GenerateResponse}
    lists = {"tags": ollama.ListResponse, "ps": ollama.ProcessResponse}
    with served(FakeBackend(script)) as address, httpx.Client(base_url=address) as client:
        for path, kind in kinds.items():
            whole = client.post(f"/api/{path}", json={**asked, "stream": False})
            kind.model_validate_json(whole.content, strict=True)
            lines = client.post(f"/api/{path}", json=asked).text.splitlines()
            assert len(lines) == 5
            for line in lines:
                kind.model_validate_json(line, strict=True)
        for path, kind in lists.items():
            kind.model_validate_json(client.get(f"/api/{path}").content, strict=True)
        shown = client.post("/api/show", json={"model": "x"})
        ollama.ShowResponse.model_validate_json(shown.content, strict=True)
        for line in client.post("/api/pull", json={"model": "tiny-moe"}).text.splitlines():
            ollama.ProgressResponse.model_validate_json(line, strict=True)
