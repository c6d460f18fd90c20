"""The real Codex CLI against scripted answers. Set MLX_FLASH_CODEX to its binary."""

import os
from pathlib import Path

import pytest
from codex import ask
from listening import listening
from serving import InTurn, finished, said

from mlx_flash.server.messages import ChatPrompt, Failed, Piece, ToolCall

CODEX = os.environ.get("MLX_FLASH_CODEX")

pytestmark = [
    pytest.mark.skipif(CODEX is None, reason="MLX_FLASH_CODEX names no Codex"),
    pytest.mark.filterwarnings("default"),
]


def test_codex_prints_an_answer(tmp_path: Path) -> None:
    backend = InTurn([Piece(0, "reasoning", "A greeting."), None, *said("Hello", " there.")])
    with listening(backend) as url:
        done = ask(url, str(CODEX), "hello", tmp_path)
    assert done.stdout.strip() == "Hello there."
    assert "A greeting." in done.stderr
    assert done.returncode == 0
    (asked,) = backend.asked
    assert isinstance(asked.prompt, ChatPrompt)
    assert asked.prompt.messages[-1]["content"].endswith("hello")


def test_codex_runs_a_tool_and_brings_its_result(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "note.txt").write_text("the word is heron\n")
    think = Piece(0, "reasoning", "Read it.")
    call = ToolCall(0, "exec_command", '{"cmd": "cat note.txt"}')
    backend = InTurn([think, Piece(0, "text", "I look."), call, finished()], said("heron"))
    with listening(backend) as url:
        done = ask(url, str(CODEX), "which word is in note.txt?", tmp_path)
    assert done.stdout.strip().endswith("heron")
    prompt = backend.asked[1].prompt
    assert isinstance(prompt, ChatPrompt)
    turn, output = prompt.messages[-2:]
    assert (turn["content"], turn["reasoning_content"]) == ("I look.", "Read it.")
    assert turn["tool_calls"][0]["function"]["arguments"] == {"cmd": "cat note.txt"}
    assert output["role"] == "tool"
    assert output["name"] == "exec_command"
    assert "the word is heron" in output["content"]


def test_codex_is_told_that_the_context_is_full(tmp_path: Path) -> None:
    with listening(InTurn([Failed(0, "context_length", "Too long.")])) as url:
        done = ask(url, str(CODEX), "hello", tmp_path)
    assert done.returncode != 0
    assert "context window" in done.stderr
