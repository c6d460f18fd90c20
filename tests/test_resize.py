"""Slots given back and taken again: nothing changes in the results, and the memory is free."""

import gc
import itertools
import random
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import mlx.core as mx
import pytest
from comparing import differing, random_tokens, resident, run_logits, stream_of, streamed

from mlx_flash.config import ReadOptions
from mlx_flash.engine.backend import Memory
from mlx_flash.engine.guard import MemoryGuard
from mlx_flash.engine.load import LoadedModel
from mlx_flash.formats.layout import ExpertLayout, ExpertTensor
from mlx_flash.formats.safetensors import FileStamp
from mlx_flash.streaming import slots
from mlx_flash.streaming.pages import give_pages_back
from mlx_flash.streaming.slots import SlotPool
from mlx_flash.telemetry.machine import rss_bytes
from mlx_flash.telemetry.pressure import MemoryPressure

NUM_EXPERTS, VOCAB = 8, 128
EVERYTHING = ReadOptions(overlap_bytes=1, direct=True, prefetch=True)
PROMPT = random_tokens(40, VOCAB)
GIGABYTE = 10**9
STAMP = FileStamp(0, 0, 0, 0)


@pytest.fixture(autouse=True)
def _on_the_cpu() -> Iterator[None]:
    before = mx.default_device()
    mx.set_default_device(mx.Device(mx.cpu))
    yield
    mx.set_default_device(before)


@pytest.mark.parametrize("reads", [None, EVERYTHING], ids=["at once", "everything"])
@pytest.mark.parametrize("policy", ["lru", "lfu", "lcp"])
def test_logits_stay_exact_when_slots_change_between_steps(
    checkpoint: Path, device: str, policy: str, reads: ReadOptions | None
) -> None:
    ours = streamed(checkpoint, 5, policy, device, reads)
    stream, rng = stream_of(ours), random.Random(0)
    held = [stream.capacity]

    def resizing() -> Iterator[mx.array]:
        for logits in run_logits(ours.model, PROMPT, 24):
            yield logits
            assert stream.resize(rng.randint(1, NUM_EXPERTS + 1))
            held.append(stream.capacity)
            stream.cache.check_integrity()

    assert differing(resizing(), run_logits(resident(checkpoint, device), PROMPT, 24)) == []
    assert stream.counters.resized == sum(a != b for a, b in itertools.pairwise(held)) > 15


@pytest.mark.parametrize("device", ["cpu", "kernels"], indirect=True)
def test_logits_stay_exact_when_another_thread_changes_the_slots(
    checkpoint: Path, device: str
) -> None:
    ours = streamed(checkpoint, 5, device=device, reads=EVERYTHING)
    stream, rng, ended = stream_of(ours), random.Random(1), threading.Event()

    def resize_again_and_again() -> None:
        with mx.stream(mx.new_stream(mx.cpu)):
            while not ended.is_set():
                stream.resize(rng.randint(1, NUM_EXPERTS))

    thread = threading.Thread(target=resize_again_and_again)
    thread.start()
    try:
        found = list(run_logits(ours.model, PROMPT, 40))
    finally:
        ended.set()
        thread.join()
    assert differing(found, run_logits(resident(checkpoint, device), PROMPT, 40)) == []
    assert stream.counters.resized > 10
    stream.cache.check_integrity()


def test_the_best_experts_stay_when_slots_go(checkpoint: Path) -> None:
    ours = streamed(checkpoint, 4, "lru")
    stream = stream_of(ours)
    for expert in (3, 1, 7, 5, 1):
        with stream.cache.admit(0, [expert]):
            pass
    stream.resize(2)
    assert stream.cache.residents(0) == {1: 1, 5: 0}
    stream.resize(4)
    assert stream.cache.residents(0) == {1: 1, 5: 0}
    assert stream.cache.capacities == [4, 4]


def resize(pool: SlotPool, capacity: int, moves: Mapping[int, int]) -> bool:
    return pool.resize(capacity, moves, pool.memory_for(capacity))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere slots move to new memory")
def test_slots_are_given_back_where_they_are_and_their_memory_with_them() -> None:
    nbytes = 8 * 2**20
    tensors = (ExpertTensor("w.weight", "U8", (nbytes,), nbytes, Path("x"), 0, nbytes, STAMP),)
    pool = SlotPool(ExpertLayout(0, "w", 16, tensors), 12)
    for slot in range(12):
        pool.view("w.weight", slot)[:] = bytes([slot + 1]) * nbytes
    full, array = rss_bytes(), pool.arrays["w.weight"]
    assert not resize(pool, 3, {1: 1, 7: 0, 11: 2})
    assert full - rss_bytes() > 8.5 * nbytes
    assert pool.arrays["w.weight"] is array
    assert [pool.view("w.weight", slot)[-1] for slot in range(3)] == [8, 2, 12]
    assert not resize(pool, 12, {0: 0, 1: 1, 2: 2})
    assert [pool.view("w.weight", slot)[-1] for slot in range(4)] == [8, 2, 12, 0]
    assert resize(pool, 16, {0: 0, 1: 1, 2: 2})
    assert [pool.view("w.weight", slot)[0] for slot in range(3)] == [8, 2, 12]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere slots move to new memory")
def test_experts_stay_whole_when_the_system_takes_only_some_pages_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nbytes = 16384
    tensors = tuple(
        ExpertTensor(name, "U8", (nbytes,), nbytes, Path("x"), 0, nbytes, STAMP) for name in "ab"
    )
    pool = SlotPool(ExpertLayout(0, "w", 16, tensors), 8)
    for slot in range(8):
        for name in "ab":
            pool.view(name, slot)[:] = bytes([slot + 1]) * nbytes
    answers = [False, True]

    def take_some(address: int, nbytes: int) -> bool:
        return answers.pop() and give_pages_back(address, nbytes)

    monkeypatch.setattr(slots, "give_pages_back", take_some)
    assert resize(pool, 4, {0: 0, 5: 1, 2: 2, 7: 3})
    for name in "ab":
        assert [pool.view(name, slot)[-1] for slot in range(4)] == [1, 6, 3, 8]


def test_without_memory_for_more_slots_a_layer_stays_as_it_is(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = list(run_logits(resident(checkpoint), PROMPT, 4))
    ours = streamed(checkpoint, 2)
    stream = stream_of(ours)
    assert differing(run_logits(ours.model, PROMPT, 4), expected) == []

    def refuse(*arguments: object) -> mx.array:
        raise RuntimeError("Unable to allocate")

    with monkeypatch.context() as patch:
        patch.setattr(slots, "new_slab", refuse)
        with pytest.raises(RuntimeError, match="Unable"):
            stream.resize(4)
    assert stream.cache.capacities == [2, 2]
    assert differing(run_logits(ours.model, PROMPT, 4), expected) == []
    stream.resize(4)
    assert stream.cache.capacities == [4, 4]


def test_a_layer_that_is_being_filled_keeps_its_slots_and_the_books(checkpoint: Path) -> None:
    ours = streamed(checkpoint, 4)
    stream = stream_of(ours)
    assert len(stream.cache.reserve(0, [2])) == 1
    assert not stream.resize(1)
    assert stream.cache.capacities == [4, 1]
    assert not stream.resize(1)
    assert stream.counters.resized == 1
    stream.cache.release(0, 2, resident=False)
    assert stream.resize(1)
    assert stream.cache.capacities == [1, 1]
    assert stream.counters.resized == 2
    stream.cache.check_integrity()


class Machine:
    """A machine whose free memory is told."""

    def __init__(self) -> None:
        self.free_bytes = 10 * GIGABYTE

    def __call__(self) -> MemoryPressure:
        return MemoryPressure(self.free_bytes, must_give_back=False)


def guarded(loaded: LoadedModel) -> tuple[MemoryGuard, Machine]:
    machine, memory = Machine(), Memory(10 * GIGABYTE, 16 * GIGABYTE)
    return MemoryGuard(stream_of(loaded), loaded.plan, memory, machine), machine


def test_a_guard_gives_slots_back_at_once_and_takes_them_again_later(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = streamed(checkpoint, 5)
    stream = stream_of(ours)
    guard, machine = guarded(ours)
    guard.look()
    assert stream.capacity == 5
    machine.free_bytes = 0
    guard.look()
    assert stream.cache.capacities == [1, 1]
    now = time.monotonic()
    machine.free_bytes = 10 * GIGABYTE
    for seconds in range(1, 400):
        monkeypatch.setattr(time, "monotonic", lambda seconds=seconds: now + seconds)
        guard.look()
        assert stream.capacity == 1 or seconds > 9
    assert stream.capacity == 5
    assert (
        differing(run_logits(ours.model, PROMPT, 4), run_logits(resident(checkpoint), PROMPT, 4))
        == []
    )


def test_a_guard_goes_back_to_a_layer_that_could_not_grow(checkpoint: Path) -> None:
    ours = streamed(checkpoint, 4)
    stream = stream_of(ours)
    guard, _ = guarded(ours)
    stream.resize(2)
    assert len(stream.cache.reserve(0, [7])) == 1
    stream.resize(4)
    guard.look()
    assert stream.cache.capacities == [2, 4]
    stream.cache.release(0, 7, resident=False)
    guard.look()
    assert stream.cache.capacities == [4, 4]


def test_a_guard_reports_a_failure_once_and_goes_on(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ours = streamed(checkpoint, 5)
    stream = stream_of(ours)
    guard, machine = guarded(ours)
    looks: list[float] = []

    def look_again(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            machine.free_bytes = 0
            monkeypatch.undo()
            monkeypatch.setattr(time, "sleep", lambda seconds: stream.close())

    monkeypatch.setattr(time, "sleep", look_again)
    monkeypatch.setattr(stream, "resize", lambda capacity: 1 / 0)
    guard._watch()
    assert [record.message for record in caplog.records] == [
        "cannot look after the memory: division by zero"
    ]
    assert stream.cache.capacities == [1, 1]


def test_a_guard_ends_with_its_stream(checkpoint: Path) -> None:
    ours = streamed(checkpoint, 5)
    guard, _ = guarded(ours)
    del ours
    gc.collect()
    guard.look()  # nothing happens
    guard._watch()  # its thread ends
