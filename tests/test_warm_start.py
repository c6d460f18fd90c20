"""Warm starts: what was in memory comes back, exactly, and nothing on disk can hinder a start."""

import gc
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from comparing import (
    differing,
    opened,
    random_tokens,
    ranked,
    resident,
    run_logits,
    stream_of,
    streamed,
    wait_for_restorer,
)

from mlx_flash import find_stream, load
from mlx_flash.cache.policies import POLICIES
from mlx_flash.config import CacheOptions, MemoryLimit
from mlx_flash.engine import warm_start
from mlx_flash.engine.find import bundled_model
from mlx_flash.engine.load import LoadedModel
from mlx_flash.engine.warm_start import MAX_MODELS, ResidentRecord
from mlx_flash.streaming import restore

NUM_EXPERTS, VOCAB = 8, 128
CAPACITIES = (1, 2, 3, NUM_EXPERTS)


def warm(model: Path, folder: Path, capacity: int, policy: str = "lru") -> LoadedModel:
    """Load a model that starts warm; what it remembers is in memory when this returns."""
    options = CacheOptions(capacity=capacity, policy=policy, warm_start=folder)
    loaded = opened(model, options, MemoryLimit(), "cpu")
    wait_for_restorer(loaded)
    return loaded


def decode(loaded: LoadedModel, seed: int = 0) -> None:
    list(run_logits(loaded.model, random_tokens(3, VOCAB, seed=seed), 20))


def the_record(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def recorded(folder: Path) -> list[list[int]]:
    experts: list[list[int]] = json.loads(the_record(folder).read_bytes())["experts"]
    return experts


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("capacity", CAPACITIES)
def test_what_was_in_memory_comes_back_in_the_same_order(
    checkpoint: Path, tmp_path: Path, capacity: int, policy: str
) -> None:
    first = warm(checkpoint, tmp_path, capacity, policy)
    assert stream_of(first).counters.restored == 0
    decode(first)
    before = ranked(first)
    first.close()
    assert recorded(tmp_path) == before

    second = warm(checkpoint, tmp_path, capacity, policy)
    stream = stream_of(second)
    stream.cache.check_integrity()
    assert ranked(second) == before
    counters, sizes = stream.counters, [layout.expert_bytes for layout in second.layouts]
    assert counters.restored == sum(map(len, before))
    num_bytes = sum(len(experts) * size for experts, size in zip(before, sizes, strict=True))
    assert counters.restored_bytes == counters.bytes_read == num_bytes
    assert (counters.asks, counters.hits) == (0, 0)
    prompt = random_tokens(3, VOCAB)
    expected = run_logits(resident(checkpoint), prompt, 20)
    assert differing(run_logits(second.model, prompt, 20), expected) == []
    assert counters.hits > 0


def test_fewer_slots_hold_the_most_valuable_and_forget_nothing(
    checkpoint: Path, tmp_path: Path
) -> None:
    first = warm(checkpoint, tmp_path, 5)
    decode(first)
    before = ranked(first)
    first.close()
    for capacity in (3, 1):
        smaller = warm(checkpoint, tmp_path, capacity)
        assert ranked(smaller) == [experts[:capacity] for experts in before]
        smaller.close()
        assert recorded(tmp_path) == before


def test_what_was_not_yet_read_back_stays_on_record(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = warm(checkpoint, tmp_path, 4)
    decode(first)
    before = ranked(first)
    first.close()
    with monkeypatch.context() as idle:
        idle.setattr(restore, "_STEP_EXPERTS", 0)
        options = CacheOptions(capacity=4, warm_start=tmp_path)
        hasty = opened(checkpoint, options, MemoryLimit(), "cpu")
        with stream_of(hasty).cache.admit(0, [before[0][-1]]):
            pass
        hasty.close()
    assert recorded(tmp_path) == [[before[0][-1], *before[0][:-1]], *before[1:]]


def test_the_end_of_a_model_that_nobody_closes_is_remembered(
    checkpoint: Path, tmp_path: Path
) -> None:
    loaded = warm(checkpoint, tmp_path, 2)
    decode(loaded)
    before = ranked(loaded)
    assert list(tmp_path.iterdir()) == []
    del loaded
    gc.collect()
    assert recorded(tmp_path) == before


def test_load_takes_the_folder_and_is_cold_without(tmp_path: Path) -> None:
    model, _ = load(capacity=4, context_tokens=64, warm_start=tmp_path)
    list(run_logits(model, random_tokens(3, 100), 1))
    stream = find_stream(model)
    assert stream is not None
    stream.close()
    assert the_record(tmp_path).stat().st_size < 10_000
    cold = find_stream(load(capacity=4, context_tokens=64)[0])
    assert cold is not None
    assert cold.restorer.thread is None
    assert cold.at_close == []


def test_a_program_ends_while_experts_are_read_back(tmp_path: Path) -> None:
    """Without a word, and without waiting for the rest; what was read by then is remembered."""
    script = f"""
import os, threading
from mlx_flash import find_stream, load
stream = find_stream(load(capacity=48, context_tokens=64, warm_start={str(tmp_path)!r})[0])
arrived = threading.Semaphore(0)
def slowly(*arguments):
    arrived.release()
    threading.Event().wait(0.02)
    return os.preadv(*arguments)
stream.reader.preadv = slowly
stream.restorer.start(stream, [list(range(48))] * 10)
for _ in range(100):
    arrived.acquire()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert 0 < sum(map(len, recorded(tmp_path))) < 480


def record_of(loaded: LoadedModel, folder: Path) -> ResidentRecord:
    return ResidentRecord(folder, loaded.checkpoint.folder, loaded.layouts)


UNSOUND: dict[str, Any] = {
    "empty": b"",
    "garbage": b"\xff\xfe\x00garbage",
    "cut short": b'{"version":1,"experts":[[1,2',
    "a list": b"[]",
    "nested": b"[" * 100_000,
    "huge": b" " * 3 * 1024 * 1024,
    "another version": {"version": 2},
    "another folder": {"model": "/elsewhere"},
    "other files": {"files": {}},
    "no experts": {"experts": None},
    "too few layers": {"experts": [[1]]},
    "not a layer": {"experts": [[1], 7]},
    "out of range": {"experts": [[1], [NUM_EXPERTS]]},
    "below zero": {"experts": [[1], [-1]]},
    "no number": {"experts": [[1], ["2"]]},
    "a truth": {"experts": [[1], [True]]},
    "a fraction": {"experts": [[1], [1.0]]},
    "twice": {"experts": [[1], [3, 3]]},
}


@pytest.mark.parametrize("unsound", UNSOUND.values(), ids=UNSOUND)
def test_a_record_that_is_not_sound_gives_a_cold_start(
    checkpoint: Path, tmp_path: Path, unsound: Any
) -> None:
    record = record_of(streamed(checkpoint, 2), tmp_path)
    record.write([[1], [3, 2]])
    assert record.read() == [[1], [3, 2]]
    if isinstance(unsound, bytes):
        record.path.write_bytes(unsound)
    else:
        record.path.write_text(json.dumps(json.loads(record.path.read_text()) | unsound))
    loaded = warm(checkpoint, tmp_path, 2)
    assert stream_of(loaded).restorer.thread is None
    assert stream_of(loaded).counters.restored == 0
    decode(loaded)
    loaded.close()
    assert recorded(tmp_path) == ranked(loaded)


def test_a_folder_in_the_records_place_gives_a_cold_start(checkpoint: Path, tmp_path: Path) -> None:
    record = record_of(streamed(checkpoint, 2), tmp_path)
    record.path.mkdir()
    loaded = warm(checkpoint, tmp_path, 2)
    decode(loaded)
    loaded.close()
    assert list(tmp_path.iterdir()) == [record.path]


def test_a_model_that_changed_starts_cold_and_has_one_record(
    checkpoint: Path, tmp_path: Path
) -> None:
    model, folder = Path(shutil.copytree(checkpoint, tmp_path / "model")), tmp_path / "records"
    for _ in range(2):
        loaded = warm(model, folder, 2)
        assert stream_of(loaded).counters.restored == 0
        decode(loaded)
        loaded.close()
        the_record(folder)
        assert stream_of(warm(model, folder, 2)).counters.restored > 0
        for shard in model.glob("*.safetensors"):
            os.utime(shard, (1, 1))


def test_a_folder_that_cannot_be_written_is_no_error(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    loaded = warm(checkpoint, tmp_path / "file" / "folder", 2)
    decode(loaded)
    with caplog.at_level(logging.DEBUG, warm_start.__name__):
        loaded.close()
    (line,) = caplog.messages
    assert line.startswith("cannot remember the experts in memory in ")


def test_a_record_is_replaced_at_once_or_not_at_all(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = record_of(streamed(checkpoint, 2), tmp_path)
    record.write([[1], [2]])

    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(Path, "replace", fail)
        record.write([[3], [4]])
    assert list(tmp_path.iterdir()) == [record.path]
    assert record.read() == [[1], [2]]


def test_the_oldest_of_too_many_models_go_and_no_other_file(
    checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes.json").touch()
    others = [tmp_path / f"{number:032x}.json" for number in range(MAX_MODELS)]
    half_written = tmp_path / f"{0:032x}.json.17-4711"
    for age, path in enumerate([*others, half_written, tmp_path / "notes.json"]):
        path.touch()
        os.utime(path, (10**9 - age, 10**9 - age))
    record = record_of(streamed(checkpoint, 2), tmp_path)
    record.write([[1], [2]])
    kept = {tmp_path / "notes.json", record.path, *others[: MAX_MODELS - 1]}
    assert set(tmp_path.iterdir()) == kept


def test_two_models_have_two_records(checkpoint: Path, tmp_path: Path) -> None:
    loaded = streamed(checkpoint, 2)
    here = ResidentRecord(tmp_path, checkpoint, loaded.layouts)
    there = ResidentRecord(tmp_path, bundled_model(), loaded.layouts)
    assert here.path != there.path
