"""Reading back what was in memory: exact whatever runs meanwhile, and never in the way."""

import gc
import os
import random
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from comparing import (
    differing,
    random_tokens,
    ranked,
    resident,
    run_logits,
    stream_of,
    streamed,
    wait_for_restorer,
)

from mlx_flash.config import ReadOptions
from mlx_flash.engine.load import LoadedModel
from mlx_flash.errors import ExpertReadError
from mlx_flash.streaming import restore
from mlx_flash.streaming.expert_stream import ExpertStream
from mlx_flash.types import ExpertKey

NUM_EXPERTS, VOCAB = 8, 128
OVERLAPPED = ReadOptions(overlap_bytes=1)
EVERYTHING = ReadOptions(overlap_bytes=1, direct=True, prefetch=True)
CAPACITIES = (1, 2, 3, NUM_EXPERTS)


def shuffled(loaded: LoadedModel, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [rng.sample(range(NUM_EXPERTS), NUM_EXPERTS) for _ in loaded.layouts]


class SlowDisk:
    """Reads after a while, and leaves other bytes where it has not read yet."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, descriptor: int, views: Sequence[memoryview], offset: int) -> int:
        for view in views:
            view[:] = b"\xa5" * view.nbytes
        time.sleep(self.seconds)
        return os.preadv(descriptor, views, offset)


@pytest.mark.parametrize("reads", [None, OVERLAPPED, EVERYTHING], ids=["once", "over", "all"])
@pytest.mark.parametrize("capacity", CAPACITIES)
def test_a_run_is_exact_while_experts_are_read_back(
    checkpoint: Path,
    capacity: int,
    device: str,
    reads: ReadOptions | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Although it waits for no pause: before each call it has some on their way."""
    monkeypatch.setattr(restore, "_QUIET_S", 0.0)
    theirs = resident(checkpoint, device)
    restored = 0
    for seed, num_tokens in enumerate((1, 40, 3)):
        ours = streamed(checkpoint, capacity, device=device, reads=reads)
        stream = stream_of(ours)
        stream.reader.preadv = SlowDisk(0.0005 * seed)
        prompt = random_tokens(num_tokens, VOCAB, seed=seed)
        expected = list(run_logits(theirs, prompt, 8))
        stream.restorer.start(stream, shuffled(ours, seed))
        assert differing(run_logits(ours.model, prompt, 8), expected) == []
        wait_for_restorer(ours)
        stream.cache.check_integrity()
        assert differing(run_logits(ours.model, prompt, 8), expected) == []
        restored += stream.counters.restored
    assert restored > 0


class Gate:
    """A disk that reads nothing until it is open, and then fails while it is `failing`."""

    def __init__(self, failing: bool = False) -> None:
        self.open = threading.Event()
        self.failing = failing
        self._arrivals = threading.Semaphore(0)

    def all_inside(self, num_reads: int) -> None:
        """Wait until so many reads stand before the gate."""
        for _ in range(num_reads):
            assert self._arrivals.acquire(timeout=60)

    def __call__(self, descriptor: int, views: Sequence[memoryview], offset: int) -> int:
        self._arrivals.release()
        self.open.wait(60)
        for view in views:
            view[:] = b"\xa5" * view.nbytes
        if self.failing:
            raise OSError(5, "Input/output error")
        return os.preadv(descriptor, views, offset)


def begin_reading(stream: ExpertStream, keys: Sequence[ExpertKey], gate: Gate) -> None:
    """Start to read experts back through a gate: they are on their way when this returns."""
    stream.reader.preadv = gate
    stream.restorer._pending.extend(enumerate(keys))
    with stream.lock:
        while stream.restorer._pending:
            stream.restorer.step(stream)
    assert list(stream.restorer._reading) == list(keys)


@pytest.mark.parametrize("failing", [False, True])
def test_what_is_asked_for_while_it_is_read_back_is_waited_for_or_an_error(
    checkpoint: Path, device: str, failing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = streamed(checkpoint, 6, device=device), resident(checkpoint, device)
    stream, gate = stream_of(ours), Gate(failing)
    begin_reading(stream, [ExpertKey(0, expert) for expert in range(6)], gate)
    hand_over, handed = stream.restorer.hand_over, []

    def hand_over_and_open(*arguments: Any) -> None:
        hand_over(*arguments)
        handed.extend(arguments[-1])
        gate.open.set()

    monkeypatch.setattr(stream.restorer, "hand_over", hand_over_and_open)
    prompt = random_tokens(2, VOCAB)
    if failing:
        with pytest.raises(ExpertReadError, match="Input/output"):
            list(run_logits(ours.model, prompt, 8))
        for _, batch in stream.restorer._reading.values():
            with batch._change:
                batch._change.wait_for(lambda batch=batch: batch.done)
        gate.failing = False
    expected = list(run_logits(theirs, prompt, 8))
    assert differing(run_logits(ours.model, prompt, 8), expected) == []
    stream.cache.check_integrity()
    assert len(handed) >= 2
    assert stream.counters.bytes_read > stream.counters.restored_bytes


def test_a_read_that_fails_in_the_background_ends_the_work_and_nothing_else(
    checkpoint: Path,
) -> None:
    ours, theirs = streamed(checkpoint, NUM_EXPERTS), resident(checkpoint)
    stream, gate = stream_of(ours), Gate(failing=True)
    stream.reader.preadv = gate
    stream.restorer.start(stream, shuffled(ours, 0))
    gate.open.set()
    wait_for_restorer(ours)
    stream.cache.check_integrity()
    assert ranked(ours) == [[] for _ in ours.layouts]
    assert stream.counters.restored == stream.counters.bytes_read == 0
    gate.failing = False
    prompt = random_tokens(5, VOCAB)
    expected = run_logits(theirs, prompt, 8)
    assert differing(run_logits(ours.model, prompt, 8), expected) == []


def test_a_call_needs_no_slot_that_another_expert_is_read_back_into(checkpoint: Path) -> None:
    """Not even where there is one: the sweep buffer serves meanwhile."""
    prompt = random_tokens(1, VOCAB)
    expected = list(run_logits(resident(checkpoint), prompt, 0))
    asks_two = streamed(checkpoint, 2)
    assert differing(run_logits(asks_two.model, prompt, 0), expected) == []
    other = min(set(range(NUM_EXPERTS)) - set(ranked(asks_two)[0]))

    ours = streamed(checkpoint, 1, reads=ReadOptions(num_threads=16))
    stream, gate = stream_of(ours), Gate()
    begin_reading(stream, [ExpertKey(0, other)], gate)
    gate.all_inside(len(ours.layouts[0].tensors))
    stream.reader.preadv = os.preadv
    try:
        assert differing(run_logits(ours.model, prompt, 0), expected) == []
        assert list(stream.restorer._reading) == [ExpertKey(0, other)]
        assert stream.counters.swept == 2 + 1  # both of this layer's, one of the other's
    finally:
        gate.open.set()


def test_nothing_is_begun_while_the_model_runs(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore, "_QUIET_S", 1000.0)
    ours = streamed(checkpoint, NUM_EXPERTS)
    stream = stream_of(ours)
    restorer = stream.restorer
    restorer._pending.extend((0, ExpertKey(0, expert)) for expert in range(NUM_EXPERTS))
    with stream.lock:
        assert restorer.turn(stream) == 1000.0
    assert restorer.turn(stream) == 1000.0  # the call has only just ended
    restorer._last_call = float("-inf")
    assert restorer.turn(stream) == restore._STEP_S
    assert len(restorer._pending) == NUM_EXPERTS - restore._STEP_EXPERTS
    list(run_logits(ours.model, random_tokens(1, VOCAB), 1))
    assert restorer.turn(stream) == 1000.0
    assert len(restorer._pending) == NUM_EXPERTS - restore._STEP_EXPERTS


def test_the_best_of_every_layer_come_first(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore, "_STEP_EXPERTS", 0)
    ours = streamed(checkpoint, NUM_EXPERTS)
    restorer = stream_of(ours).restorer
    restorer.start(stream_of(ours), [[3, 1], [2, 7, 5]])
    order = [key for _, key in restorer._pending]
    assert order == [(0, 3), (1, 2), (0, 1), (1, 7), (1, 5)]


@pytest.mark.parametrize("how", ["closed", "dropped"])
def test_the_work_ends_at_once_with_the_stream(checkpoint: Path, how: str) -> None:
    ours: LoadedModel | None = streamed(checkpoint, NUM_EXPERTS)
    assert ours is not None
    stream: ExpertStream | None = stream_of(ours)
    assert stream is not None
    gate = Gate()
    stream.reader.preadv = gate
    stream.restorer.start(stream, shuffled(ours, 0))
    thread, alive = stream.restorer.thread, weakref.ref(stream)
    assert thread is not None
    if how == "closed":
        with stream.lock:  # between two steps
            ours.close()
    else:
        ours = stream = None
        gc.collect()
    thread.join(60)
    try:
        assert not thread.is_alive()
        assert (alive() is None) == (how == "dropped")
    finally:
        gate.open.set()
