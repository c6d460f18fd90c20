"""Clients against the real server and the bundled model: whole turns, tool calls included.

`make test-clients` installs them. The model's answers may be poor; what is said between client and
server may not.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pinned import pinning
from running import RunningServer, running

anthropic = pytest.importorskip("anthropic")
ollama = pytest.importorskip("ollama")
openai = pytest.importorskip("openai")

CONTEXT = "49152"  # the coding agents send tens of kilobytes before the user's first word
QUESTION = "What does shutil.copytree do?"


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running("--max-context", CONTEXT, "--prompt-cache-gb", "0") as started:
        yield started


def program(variable: str) -> str:
    """Return the program that a variable names; skip the test without."""
    if not os.environ.get(variable):
        pytest.skip(f"{variable} names no program: run make test-clients")
    return os.environ[variable]


def url(server: RunningServer) -> str:
    return f"http://127.0.0.1:{server.port}"


def test_claude_code_calls_a_tool_and_ends_its_turn(server: RunningServer, tmp_path: Path) -> None:
    from claude_code import ask

    claude = program("MLX_FLASH_CLAUDE_CODE")
    with pinning(url(server), "Read") as (pinned, pin):
        report = ask(pinned, claude, "Read the file notes.txt", tmp_path, "--allowedTools", "Read")
    assert not report["is_error"]
    assert report["result"]
    assert report["num_turns"] == 2
    called, result = pin.seen[1]["messages"][-2:]
    (use,) = [block for block in called["content"] if block["type"] == "tool_use"]
    assert use["name"] == "Read"
    assert result["content"][0]["tool_use_id"] == use["id"]
    assert report["usage"]["cache_read_input_tokens"] > 1000  # the prompt was computed once


def test_codex_calls_a_tool_and_ends_its_turn(server: RunningServer, tmp_path: Path) -> None:
    from codex import ask

    codex = program("MLX_FLASH_CODEX")
    with pinning(url(server), "get_goal") as (pinned, pin):
        done = ask(pinned, codex, "What is the goal?", tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["answer"] is not None
    call, output = pin.seen[1]["input"][-2:]
    assert (call["type"], call["name"]) == ("function_call", "get_goal")
    assert (output["type"], output["call_id"]) == ("function_call_output", call["call_id"])


def test_the_ai_sdk_reads_every_chunk(server: RunningServer) -> None:
    folder = Path(program("MLX_FLASH_AI_SDK"))
    script = folder / "ai_sdk.mjs"
    script.write_text((Path(__file__).parent / "ai_sdk.mjs").read_text())
    done = subprocess.run(
        ["node", str(script), url(server)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["chat"]["text"] == server.chat(QUESTION, max_tokens=40)
    assert said["chat"]["reason"] == "stop"
    assert said["chat"]["usage"]["outputTokens"] > 0
    (call,) = said["call"]["calls"]
    assert call["name"] == "read"
    assert said["call"]["reason"] == "tool-calls"


def test_opencode_ends_its_turn(server: RunningServer, tmp_path: Path) -> None:
    opencode = program("MLX_FLASH_OPENCODE")
    work = tmp_path / "work"
    work.mkdir()
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "options": {"baseURL": f"{url(server)}/v1"},
        "models": {"bundled": {"limit": {"context": int(CONTEXT), "output": 60}}},
    }
    config = {"provider": {"here": provider}, "autoupdate": False, "share": "disabled"}
    (work / "opencode.json").write_text(json.dumps(config))
    done = subprocess.run(
        [opencode, "run", "--model", "here/bundled", QUESTION],
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]},
        cwd=work,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), done.stderr


def test_every_sdk_gets_the_same_answer(server: RunningServer) -> None:
    turns: list[Any] = [{"role": "user", "content": QUESTION}]
    expected = server.chat(QUESTION, max_tokens=40)
    with openai.OpenAI(base_url=f"{url(server)}/v1", api_key="none") as client:
        stream = client.chat.completions.create(
            model="bundled", messages=turns, max_tokens=40, stream=True
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == expected
        response = client.responses.create(model="bundled", input=QUESTION, max_output_tokens=40)
        assert response.output_text == expected
    with anthropic.Anthropic(base_url=url(server), api_key="none-none") as client:
        message = client.messages.create(model="bundled", messages=turns, max_tokens=40)
        assert message.content[0].text == expected
    with ollama.Client(url(server)) as client:
        chat = client.chat("bundled", turns, options={"num_predict": 40})
        assert chat.message.content == expected
