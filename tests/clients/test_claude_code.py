"""The real Claude Code against scripted answers. Set MLX_FLASH_CLAUDE_CODE to its binary."""

import os
from pathlib import Path

import pytest
from claude_code import ask
from listening import listening
from serving import InTurn, finished, said

from mlx_flash.server.messages import Failed, Piece, ToolCall

CLAUDE = os.environ.get("MLX_FLASH_CLAUDE_CODE")

pytestmark = [
    pytest.mark.skipif(CLAUDE is None, reason="MLX_FLASH_CLAUDE_CODE names no Claude Code"),
    pytest.mark.filterwarnings("default"),
]


def test_claude_code_prints_an_answer(tmp_path: Path) -> None:
    backend = InTurn([Piece(0, "reasoning", "A greeting."), None, *said("Hello", " there.")])
    with listening(backend) as url:
        report = ask(url, str(CLAUDE), "hello", tmp_path)
    assert not report["is_error"]
    assert report["result"] == "Hello there."
    assert report["usage"]["cache_read_input_tokens"] == 4
    prompt = backend.asked[0].prompt
    assert "x-anthropic-billing-header" not in prompt.messages[0]["content"]  # type: ignore[union-attr]


def test_claude_code_runs_a_tool_and_brings_its_result(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    note = tmp_path / "work" / "note.txt"
    note.write_text("the word is heron\n")
    call = ToolCall(0, "Read", f'{{"file_path": "{note}"}}')
    backend = InTurn(
        [Piece(0, "reasoning", "Read it."), Piece(0, "text", "I look."), call, finished()],
        said("heron"),
    )
    with listening(backend) as url:
        report = ask(url, str(CLAUDE), "which word is in note.txt?", tmp_path)
    assert not report["is_error"]
    assert report["result"] == "heron"
    messages = backend.asked[1].prompt.messages  # type: ignore[union-attr]
    spoken = next(one for one in messages if one["role"] == "assistant")
    assert spoken["tool_calls"][0]["function"]["arguments"]["file_path"] == str(note)
    assert spoken["reasoning_content"] == "Read it."
    result = next(one for one in messages if one["role"] == "tool")
    assert result["name"] == "Read"
    assert "the word is heron" in result["content"]


def test_claude_code_shows_why_a_prompt_is_refused(tmp_path: Path) -> None:
    message = "prompt is too long: 40000 tokens > 32767 maximum; shorten it."
    backend = InTurn([Failed(0, "context_length", message)])
    with listening(backend) as url:
        report = ask(url, str(CLAUDE), "hello", tmp_path)
    assert report["is_error"]
    assert "too long" in report["result"].lower()
