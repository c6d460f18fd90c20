"""The chat as a user meets it: in a pipe, on a terminal, and when something goes wrong."""

import contextlib
import fcntl
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from mlx_flash import folders
from mlx_flash.cli import chat
from mlx_flash.cli.answer_view import PlainView, TerminalView, split_block
from mlx_flash.cli.chat_commands import COMMANDS, status_of
from mlx_flash.cli.chat_prompt import CommandCompleter, LenientHistory, converse
from mlx_flash.cli.chat_session import Chat
from mlx_flash.config import CacheOptions, MemoryLimit
from mlx_flash.engine.conversation import Conversation, Piece
from mlx_flash.engine.generate import GenerateOptions
from mlx_flash.engine.load import LoadedModel, ModelFiles, load_model
from mlx_flash.errors import ExpertReadError, OptionError, PromptError
from mlx_flash.telemetry.counters import StreamCounters

CAPACITY = 12
QUESTION = "What does shutil.copytree do?"
ANSWER = "Recursively copy a directory tree"


def command(*arguments: str | Path) -> list[str]:
    code = "from mlx_flash.cli.main import run; run()"
    return [sys.executable, "-c", code, "chat", "--capacity", str(CAPACITY), *map(str, arguments)]


def piped(text: bytes, *arguments: str | Path) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(command(*arguments), input=text, capture_output=True, check=False)


@pytest.fixture(scope="module")
def files() -> ModelFiles:
    return ModelFiles.open(None)


@pytest.fixture(scope="module")
def model(files: ModelFiles) -> Iterator[LoadedModel]:
    options = CacheOptions(capacity=CAPACITY)
    loaded = load_model(
        files.checkpoint, MemoryLimit(), options, context_tokens=256, prefill_steps=[32]
    )
    yield loaded
    loaded.close()


@pytest.fixture
def conversation(model: LoadedModel, files: ModelFiles) -> Conversation:
    return Conversation(model, files.tokenizer, GenerateOptions(max_tokens=6), 256)


def type_in(conversation: Conversation, keys: str, history: Path | None = None) -> Chat:
    """Type keys into a chat on a terminal, the last of which must leave it."""
    talk = Chat(conversation, PlainView, interactive=True)
    with create_pipe_input() as keyboard:
        keyboard.send_text(keys)
        with create_app_session(input=keyboard, output=DummyOutput()):
            converse(talk, history, lambda: status_of(conversation, "bundled"))
    return talk


def questions(conversation: Conversation) -> list[str]:
    return [message["content"] for message in conversation.messages[::2]]


def test_lines_of_a_pipe_are_answered_in_turn_and_nothing_else_is_printed() -> None:
    result = piped(f"{QUESTION}\n\nWrite more.\n".encode(), "-n", "9")
    assert result.returncode == 0, result.stderr
    assert ANSWER.split()[0].encode() in result.stdout
    assert b"\x1b" not in result.stdout + result.stderr
    assert result.stderr.decode().splitlines() == [
        "Cut off after 9 tokens: --max-tokens and --max-context allow more."
    ] * result.stderr.count(b"\n")


def test_what_cannot_be_done_is_a_sentence_and_the_next_line_is_answered() -> None:
    lines = (
        b"/nonsense\n\xff\n" + b"word " * 400 + b"\n/load /no/such/file\n/stats\nHello\n/quit\nHi"
    )
    result = piped(lines, "-n", "2", "--max-context", "64")
    assert result.returncode == 2
    sentences = [line for line in result.stderr.decode().splitlines() if "Cut off" not in line]
    for sentence, part in zip(
        sentences,
        ["no command /nonsense", "not valid text", "the context holds 64", "cannot read"],
        strict=True,
    ):
        assert sentence.startswith("mlx-flash: ")
        assert part in sentence
    assert result.stdout.startswith(b"Nothing was answered yet.\n")
    assert len(result.stdout.splitlines()) >= 2


def test_options_that_make_no_sense_are_refused() -> None:
    result = piped(b"Hello\n", "--memory", "40%")
    assert result.returncode == 2
    (line,) = result.stderr.decode().splitlines()
    assert line.startswith("mlx-flash: ")
    assert "not both" in line
    with pytest.raises(PromptError, match="not valid text"):
        chat.command(system="half \ud800")
    with pytest.raises(OptionError, match="there is no profile"):
        chat.command(capacity=1, profile="no-such")


def test_help_needs_no_terminal_library() -> None:
    check = (
        "import sys, mlx_flash.cli.main; "
        "sys.exit(bool({'prompt_toolkit', 'mlx.core', 'rich.markdown'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", check], check=True)


@contextlib.contextmanager
def terminal(*arguments: str) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """Run a chat on a terminal of its own, where Ctrl-C is a signal."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    process = subprocess.Popen(
        command(*arguments),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    try:
        yield process, ours
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def read_until(descriptor: int, text: str) -> str:
    """Return what a terminal shows up to a text."""
    shown = b""
    while text.encode() not in shown:
        assert select.select([descriptor], [], [], 60)[0], shown
        chunk = os.read(descriptor, 4096)
        if b"\x1b[6n" in chunk:  # asks where the cursor is
            os.write(descriptor, b"\x1b[1;1R")
        shown += chunk
    return shown.decode(errors="replace")


def test_ctrl_c_stops_the_answer_and_ctrl_d_the_program() -> None:
    with terminal("-n", "2000", "--no-markdown") as (process, screen):
        read_until(screen, "slots")
        os.write(screen, b"List every function of the os module.\r")
        read_until(screen, "tokens/s \xb7 hit")
        os.write(screen, b"\x03")
        read_until(screen, "Stopped.")
        read_until(screen, "hit rate")
        os.write(screen, b"\x03")
        read_until(screen, "leaves the chat")
        os.write(screen, b"/stats\r")
        assert "session, 1 answer" in read_until(screen, "session, 1 answer")
        read_until(screen, "hit rate")
        os.write(screen, b"\x04")
        with contextlib.suppress(OSError):  # how Linux says that the other end is closed
            while os.read(screen, 4096):
                pass
        assert process.wait(60) == 0


def test_messages_and_commands_are_typed_in_turn(
    conversation: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(conversation, f"{QUESTION}\r/stats\r/memory\r/help\r/nonsense\r/system Be brief.\r\x04")
    shown = capsys.readouterr()
    assert shown.out.startswith("Recursively")
    assert "session, 1 answer: 6 tokens at" in shown.out
    assert f"{CAPACITY} slots per layer for 48 experts" in shown.out
    assert all(name in shown.out for name in COMMANDS)
    assert "no command /nonsense" in shown.err
    assert conversation.system == "Be brief."


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("one\x1b\rtwo\r", "one\ntwo"),
        ("one\\\rtwo\r", "one\ntwo"),
        ("forgotten\x03kept\r", "kept"),
        (" /quit is a command\r", " /quit is a command"),
    ],
)
def test_keys_edit_a_message(conversation: Conversation, keys: str, message: str) -> None:
    type_in(conversation, f"{keys}/quit\r")
    assert questions(conversation) == [message]


def test_ctrl_c_on_an_empty_prompt_says_how_to_leave(
    conversation: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(conversation, "\x03\x04")
    assert capsys.readouterr().err == "Ctrl-D or /quit leaves the chat.\n"


def test_what_was_typed_is_remembered_by_the_next_chat(
    conversation: Conversation, tmp_path: Path
) -> None:
    history = tmp_path / "new" / "history"
    type_in(conversation, "Hello\r\x04", history)
    assert history.stat().st_mode & 0o777 == 0o600
    type_in(conversation, "\x1b[A\r\x04", history)
    assert questions(conversation) == ["Hello", "Hello"]


def test_a_history_that_the_disk_refuses_is_none(
    conversation: Conversation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    type_in(conversation, "Hello\r\x04", tmp_path / "file" / "history")
    assert list(LenientHistory(tmp_path).load_history_strings()) == []
    assert questions(conversation) == ["Hello"]

    def fail() -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("MLX_FLASH_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", fail)
    assert folders.chat_history() is None


def test_commands_and_profiles_are_completed() -> None:
    def completed(text: str) -> list[str]:
        found = CommandCompleter().get_completions(Document(text), CompleteEvent())
        return [completion.text for completion in found]

    assert completed("/s") == ["/system", "/save", "/save!", "/stats"]
    assert completed("/profile c") == ["coding", "chat"]
    assert completed("say /s") == completed("/stats ") == []


def test_a_conversation_is_saved_once_and_loaded(
    conversation: Conversation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "talk.json"
    type_in(conversation, f"/system Be brief.\rHello\r/save {path}\r/save {path}\r\x04")
    assert f"/save! {path} overwrites it" in capsys.readouterr().err
    saved = json.loads(path.read_text())
    assert [message["role"] for message in saved["messages"]] == ["system", "user", "assistant"]
    before = list(conversation.messages)
    type_in(conversation, f"/clear\r/system -\r/load {tmp_path}\r/load\r/load {path}\r\x04")
    assert (conversation.system, conversation.messages) == ("Be brief.", before)
    assert "which file?" in capsys.readouterr().err
    type_in(conversation, f"/clear\r/save! {path}\r\x04")
    assert [message["role"] for message in json.loads(path.read_text())["messages"]] == ["system"]


def test_a_profile_takes_the_place_of_others(
    conversation: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(conversation, "Hello\r/profile coding\r/profile no-such\r/profile\r\x04")
    shown = capsys.readouterr()
    assert "experts of coding read." in shown.out
    assert "there is no profile 'no-such'" in shown.err
    stream = conversation.loaded.stream
    assert stream is not None
    stream.cache.check_integrity()
    from mlx_flash.engine.profiles import find_profile

    ranking = find_profile("coding", "bundled", [48] * len(stream.layouts))
    for layer, experts in enumerate(ranking):
        assert stream.cache.residents(layer).keys() == set(experts[:CAPACITY])


def test_the_status_bar_says_what_the_model_takes(conversation: Conversation) -> None:
    start = status_of(conversation, "bundled")
    assert start.endswith(f" · {CAPACITY} slots per layer · bundled")
    list(conversation.say("Hello"))
    assert "hit rate" in status_of(conversation, "bundled")
    assert status_of(conversation, "bundled").endswith("tokens/s · bundled")


def test_a_second_ctrl_c_does_not_wait_for_the_token(
    conversation: Conversation,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(type(conversation.loaded.model), "__call__", interrupted)
        type_in(conversation, "Hello\r\x04")
    assert "Stopped before the first token" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) == before
    type_in(conversation, "Hello\r\x04")
    assert questions(conversation) == ["Hello"]


def test_an_expert_that_cannot_be_read_is_a_sentence_and_the_chat_goes_on(
    conversation: Conversation,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*arguments: Any) -> None:
        raise ExpertReadError("torn", layer=1, expert=2, path=Path("shard"), offset=3)

    stream = conversation.loaded.stream
    assert stream is not None
    with monkeypatch.context() as patch:
        patch.setattr(type(stream), "start_reading", fail)
        talk = type_in(conversation, "/clear\rHello there\r\x04")
    shown = capsys.readouterr()
    assert "mlx-flash: cannot read expert 2 of layer 1 from shard at offset 3: torn" in shown.err
    assert talk.exit_code == 1
    type_in(conversation, "Hello\r\x04")
    assert questions(conversation)[-1] == "Hello"


def test_turns_that_are_left_out_are_told_once(
    model: LoadedModel, files: ModelFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    short = Conversation(model, files.tokenizer, GenerateOptions(max_tokens=2), 48)
    type_in(short, "one two three four five\rsix seven eight nine ten\releven twelve\r\x04")
    assert short.num_left_out > 0
    assert "no longer sent to the model." in capsys.readouterr().err


def pieces(text: str, thought: bool = False) -> list[Piece]:
    return [
        Piece(part, 1, 12.5, StreamCounters(asks=1, hits=1), thought)
        for part in text.replace(" ", " \0").split("\0")
    ]


def rendered(found: list[Piece], *, markdown: bool = True, height: int = 30) -> str:
    screen = io.StringIO()
    console = Console(
        file=screen, force_terminal=True, width=60, height=height, color_system="standard"
    )
    with TerminalView(console, markdown=markdown) as view:
        for piece in found:
            view.add(piece)
    return screen.getvalue()


def test_markdown_is_rendered_and_thoughts_are_dim() -> None:
    shown = rendered([*pieces("let me see", thought=True), *pieces("some **bold** words")])
    assert "\x1b[2mlet me see\x1b[0m" in shown
    assert "\x1b[1mbold\x1b[0m" in shown
    assert "**" not in shown.rpartition("12.5 tokens/s")[2]
    assert "**bold**" in rendered(pieces("some **bold** words"), markdown=False)


def test_an_answer_higher_than_the_terminal_is_printed_whole() -> None:
    words = [f"w{number}" for number in range(200)]
    shown = rendered(pieces(" ".join(words)), height=6)
    assert " ".join(shown.rpartition("\x1b[2K")[2].split()).endswith(" ".join(words))


def test_control_characters_of_a_model_do_not_reach_the_terminal() -> None:
    assert "\x1b]0;" not in rendered(pieces("a \x1b]0;title\x07 b"))


@pytest.mark.parametrize(
    ("text", "finished"),
    [
        ("one\n\ntw", "one\n\n"),
        ("one\ntwo", ""),
        ("one\n\n", ""),
        ("```\na\n\nb", ""),
        ("```py\na\n\nb\n```\n\nc", "```py\na\n\nb\n```\n\n"),
        ("````\n```\n\nx", ""),
        ("- a\n\n  more", ""),
    ],
)
def test_a_block_of_markdown_ends_where_nothing_can_join_it(text: str, finished: str) -> None:
    assert split_block(text) == (finished, text[len(finished) :])


def test_thoughts_stay_out_of_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with PlainView() as view:
        for piece in [*pieces("hm", thought=True), *pieces("yes")]:
            view.add(piece)
    assert capsys.readouterr().out == "yes\n"


def test_a_missing_terminal_is_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_flash.cli import chat_session

    monkeypatch.setattr(sys, "stdin", None)
    chat_session.answer_lines(SimpleNamespace())  # type: ignore[arg-type]
