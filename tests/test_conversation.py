"""A conversation: what carries over from turn to turn changes no answer, and nothing breaks it."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mlx_flash.config import CacheOptions, MemoryLimit
from mlx_flash.engine import conversation as conversation_module
from mlx_flash.engine.conversation import Conversation
from mlx_flash.engine.conversation_cache import ConversationCache
from mlx_flash.engine.generate import GenerateOptions
from mlx_flash.engine.load import LoadedModel, ModelFiles, load_model
from mlx_flash.engine.transcript import load_transcript, save_transcript
from mlx_flash.errors import ExpertReadError, PromptError, TranscriptError
from mlx_flash.streaming import tokens as token_seam

QUESTIONS = ("What does shutil.copytree do?", "And how do I use itertools.chain?", "Write more.")
CONTEXT = 512


@pytest.fixture(scope="module")
def files() -> ModelFiles:
    return ModelFiles.open(None)


@pytest.fixture(scope="module", params=[3, None], ids=["streamed", "resident"])
def model(files: ModelFiles, request: pytest.FixtureRequest) -> Iterator[LoadedModel]:
    loaded = opened(files, request.param)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def streamed(files: ModelFiles) -> Iterator[LoadedModel]:
    loaded = opened(files, 3)
    yield loaded
    loaded.close()


def opened(files: ModelFiles, capacity: int | None) -> LoadedModel:
    limit = MemoryLimit(everything=capacity is None)
    options = CacheOptions(capacity=capacity)
    return load_model(files.checkpoint, limit, options, context_tokens=CONTEXT, prefill_steps=[32])


def new(
    loaded: LoadedModel, files: ModelFiles, num_tokens: int = 8, context: int = CONTEXT
) -> Conversation:
    options = GenerateOptions(max_tokens=num_tokens)
    return Conversation(loaded, files.tokenizer, options, context)


def said(conversation: Conversation, text: str) -> str:
    return "".join(piece.text for piece in conversation.say(text))


def answer_to_the_same(conversation: Conversation, files: ModelFiles) -> str:
    """Return the last answer as a conversation gives it that has computed nothing before."""
    fresh = new(conversation.loaded, files)
    *before, question, _ = conversation.messages
    fresh.restore(conversation.system, before)
    answer = said(fresh, question["content"])
    assert fresh.last.cached_tokens == 0
    return answer


def test_every_answer_is_that_of_a_fresh_conversation(
    model: LoadedModel, files: ModelFiles
) -> None:
    conversation = new(model, files)
    for number, question in enumerate(QUESTIONS):
        answer = said(conversation, question)
        assert answer
        assert answer == answer_to_the_same(conversation, files)
        assert (conversation.last.cached_tokens > 0) == (number > 0)
    assert conversation.session.turns == len(QUESTIONS)
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"] * 3


def test_streamed_answers_are_resident_answers(streamed: LoadedModel, files: ModelFiles) -> None:
    ours, theirs = new(streamed, files), new(opened(files, None), files)
    for question in QUESTIONS[:2]:
        assert said(ours, question) == said(theirs, question)


def test_only_new_tokens_are_computed(streamed: LoadedModel, files: ModelFiles) -> None:
    conversation = new(streamed, files, num_tokens=40)
    said(conversation, QUESTIONS[0])
    assert conversation.finish_reason == "stop"
    first = conversation.last
    said(conversation, QUESTIONS[1])
    assert conversation.last.cached_tokens == first.prompt_tokens + first.generation_tokens


def test_another_system_message_is_followed_at_once(
    streamed: LoadedModel, files: ModelFiles
) -> None:
    conversation = new(streamed, files)
    said(conversation, QUESTIONS[0])
    conversation.system = "You are terse."
    assert said(conversation, QUESTIONS[1]) == answer_to_the_same(conversation, files)


def test_a_full_context_leaves_the_oldest_turns_out_and_the_system_message_in(
    streamed: LoadedModel, files: ModelFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[list[str]] = []
    encode = token_seam.encode_messages

    def recording(tokenizer: Any, messages: Sequence[token_seam.Message]) -> list[int]:
        sent.append([message["content"] for message in messages])
        return encode(tokenizer, messages)

    monkeypatch.setattr(conversation_module, "encode_messages", recording)
    conversation = new(streamed, files, num_tokens=2, context=80)
    conversation.system = "Be brief."
    for number in range(5):
        said(conversation, f"Question {number}: what does shutil.copytree do with a tree?")
        assert len(conversation._cache.tokens) <= 80
        assert sent[-1][0] == "Be brief."
        assert sent[-1][-1].startswith(f"Question {number}")
    assert conversation.num_left_out > 0
    assert len(conversation.messages) == 10
    assert not any(content.startswith("Question 0") for content in sent[-1])


def test_a_message_that_does_not_fit_alone_changes_nothing(
    streamed: LoadedModel, files: ModelFiles
) -> None:
    conversation = new(streamed, files, context=64)
    said(conversation, "Hello")
    messages = list(conversation.messages)
    with pytest.raises(PromptError, match="the context holds 64"):
        conversation.say("word " * 100)
    for text in ("", " \n", "half \ud800"):
        with pytest.raises(PromptError):
            conversation.say(text)
    assert (conversation.messages, conversation.num_left_out) == (messages, 0)
    assert said(conversation, "Hello")


def test_what_was_said_before_a_stop_stays(streamed: LoadedModel, files: ModelFiles) -> None:
    conversation = new(streamed, files)
    heard = ""
    for piece in conversation.say(QUESTIONS[0]):
        heard += piece.text
        if piece.num_tokens == 3:
            conversation.stop()
    assert conversation.finish_reason == "interrupted"
    assert conversation.last.generation_tokens == 3
    assert conversation.messages[-1]["content"] == heard
    assert said(conversation, QUESTIONS[1]) == answer_to_the_same(conversation, files)
    assert conversation.last.cached_tokens > 0


def test_an_answer_that_nobody_takes_to_its_end_stays_as_far_as_it_was_taken(
    streamed: LoadedModel, files: ModelFiles
) -> None:
    conversation = new(streamed, files)
    pieces = conversation.say(QUESTIONS[0])
    heard = next(pieces).text
    pieces.close()
    assert conversation.messages[-1]["content"] == heard
    assert said(conversation, QUESTIONS[1]) == answer_to_the_same(conversation, files)


def test_a_stop_within_the_prompt_keeps_what_was_computed_and_no_message(
    streamed: LoadedModel, files: ModelFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = new(streamed, files)
    question = "What does shutil.copytree do? " * 12
    call = type(streamed.model).__call__

    def stopping(self: Any, *arguments: Any, **options: Any) -> Any:
        conversation.stop()
        return call(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(streamed.model), "__call__", stopping)
        assert said(conversation, question) == ""
    assert conversation.messages == []
    assert len(conversation._cache.tokens) == streamed.prefill_step
    assert said(conversation, question) == answer_to_the_same(conversation, files)
    assert conversation.last.cached_tokens == streamed.prefill_step


class BrokenDisk:
    """Reads as the system does, until it breaks."""

    def __init__(self) -> None:
        self.broken = False

    def __call__(self, descriptor: int, views: Sequence[memoryview], offset: int) -> int:
        if self.broken:
            raise OSError(5, "Input/output error")
        return os.preadv(descriptor, views, offset)


def test_an_expert_that_cannot_be_read_ends_the_answer_and_not_the_conversation(
    files: ModelFiles,
) -> None:
    loaded, disk = opened(files, 3), BrokenDisk()
    assert loaded.stream is not None
    loaded.stream.reader.preadv = disk
    conversation = new(loaded, files)
    said(conversation, QUESTIONS[0])
    pieces = conversation.say(QUESTIONS[1])
    assert next(pieces).text
    disk.broken = True
    with pytest.raises(ExpertReadError, match="Input/output error"):
        list(pieces)
    assert conversation.messages[-1]["content"]
    assert conversation._cache.tokens == []
    disk.broken = False
    assert said(conversation, QUESTIONS[2]) == answer_to_the_same(conversation, files)


def test_clearing_forgets_messages_and_keys_and_values(
    streamed: LoadedModel, files: ModelFiles
) -> None:
    conversation = new(streamed, files)
    conversation.system = "Be brief."
    said(conversation, QUESTIONS[0])
    assert conversation.memory().kv_bytes > 0
    conversation.clear()
    assert (conversation.messages, conversation.memory().kv_bytes) == ([], 0)
    assert conversation.system == "Be brief."


class Unyielding:
    """A cache that cannot go back, as that of a recurrent layer."""

    def is_trimmable(self) -> bool:
        return False


class Recurrent:
    """A model whose cache cannot go back."""

    def make_cache(self) -> list[Any]:
        return [Unyielding()]


def test_a_cache_that_cannot_go_back_begins_anew() -> None:
    cache = ConversationCache(Recurrent())  # type: ignore[arg-type]
    assert cache.begin([1, 2, 3]) == [1, 2, 3]
    cache.tokens, entries = [1, 2, 3], cache.entries
    assert cache.begin([1, 2, 3, 4]) == [4]
    assert cache.entries is entries
    assert cache.begin([1, 2, 9]) == [1, 2, 9]
    assert cache.entries is not entries
    assert cache.tokens == []


def test_a_prompt_that_is_known_leaves_its_last_token_to_compute() -> None:
    cache = ConversationCache(Recurrent())  # type: ignore[arg-type]
    assert cache.begin([1]) == [1]
    cache.tokens = [1]
    assert cache.begin([1]) == [1]


MESSAGES = [{"role": "user", "content": "Grüße"}, {"role": "assistant", "content": "Hello\n"}]


def test_a_transcript_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    save_transcript(path, "bundled", "Be brief.", MESSAGES)
    assert load_transcript(path) == ("Be brief.", MESSAGES)
    with pytest.raises(TranscriptError, match="is there already"):
        save_transcript(path, "bundled", "", [])
    save_transcript(path, "bundled", "", [], overwrite=True)
    assert load_transcript(path) == ("", [])
    with pytest.raises(TranscriptError, match="cannot write"):
        save_transcript(tmp_path / "no" / "folder", "bundled", "", [])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b"[]",
        b"{}",
        json.dumps({"messages": MESSAGES[:1]}).encode(),
        json.dumps({"messages": MESSAGES[::-1]}).encode(),
        json.dumps({"messages": [{"role": "user", "content": 7}]}).encode(),
        json.dumps({"messages": [{"role": ["user"], "content": "x"}]}).encode(),
        json.dumps({"messages": [{"role": "user", "content": "\ud800"}, MESSAGES[1]]}).encode(),
    ],
)
def test_a_file_that_is_no_transcript_is_refused_in_a_sentence(
    content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "chat.json"
    path.write_bytes(content)
    with pytest.raises(TranscriptError, match="is no conversation"):
        load_transcript(path)
    with pytest.raises(TranscriptError, match="cannot read"):
        load_transcript(tmp_path)
