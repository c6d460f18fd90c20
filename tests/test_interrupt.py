"""Ctrl-C anywhere in a call: what it leaves is in the books, and the next call is exact."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from types import FrameType
from typing import Any

import mlx.core as mx
import pytest
from comparing import differing, random_tokens, resident, run_logits, stream_of, streamed

from mlx_flash.config import ReadOptions
from mlx_flash.store.reader import ReadBatch
from mlx_flash.streaming.expert_stream import ExpertStream
from mlx_flash.telemetry.counters import StreamCounters
from mlx_flash.types import ExpertKey

VOCAB = 128
OVERLAPPED = ReadOptions(overlap_bytes=1, prefetch=False)
READING_AHEAD = ReadOptions(overlap_bytes=1, prefetch=True)
PROMPT = random_tokens(1, VOCAB)
FILES = ("layer_stream.py", "restore.py", "reader.py", "expert_cache.py", "contextlib.py")


@pytest.fixture(autouse=True)
def _on_the_cpu() -> Iterator[None]:
    before = mx.default_device()
    mx.set_default_device(mx.Device(mx.cpu))
    yield
    mx.set_default_device(before)


class Gate:
    """A disk that reads nothing until it is open."""

    def __init__(self) -> None:
        self.open = threading.Event()

    def __call__(self, descriptor: int, views: Sequence[memoryview], offset: int) -> int:
        self.open.wait(60)
        return os.preadv(descriptor, views, offset)


class Recorded:
    """A reader's queue that remembers the batches whose reads were started."""

    def __init__(self, stream: ExpertStream) -> None:
        self._queue: SimpleQueue[Any] = stream.reader._work
        self.batches: list[ReadBatch] = []
        self.get = self._queue.get
        stream.reader._work = self  # type: ignore[assignment]

    def put(self, item: Any) -> None:
        if item is not None:
            self.batches.append(item[0])
        self._queue.put(item)


def known_reads(stream: ExpertStream) -> dict[ExpertKey, ReadBatch]:
    """Return the reads under way that somebody will end."""
    found = {key: batch for key, (_, batch) in stream.restorer._reading.items()}
    for number, layer in stream.layer_streams.items():
        for expert, batch in (layer._ahead | layer._leaving).items():
            found[ExpertKey(number, expert)] = batch
    return found


def reserved(stream: ExpertStream) -> set[ExpertKey]:
    return {
        ExpertKey(number, expert)
        for number, slots in enumerate(stream.cache._layers)
        for expert in slots.reserved
    }


def test_an_interrupt_while_a_read_is_registered_starts_none(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = list(run_logits(resident(checkpoint), PROMPT, 8))
    ours = streamed(checkpoint, 2, reads=OVERLAPPED)
    stream, gate = stream_of(ours), Gate()
    started, stream.reader.preadv = Recorded(stream), gate

    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(contextlib.ExitStack, "callback", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(run_logits(ours.model, PROMPT, 1))
    try:
        assert all(batch.settled for batch in started.batches)
    finally:
        gate.open.set()
    assert differing(run_logits(ours.model, PROMPT, 8), expected) == []


class Bomb(StreamCounters):
    """Counters that an interrupt meets when they count a call."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "calls" and value:
            raise KeyboardInterrupt
        super().__setattr__(name, value)


def test_an_interrupt_after_the_admission_ends_what_was_read_ahead(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = list(run_logits(resident(checkpoint), PROMPT, 8))
    ours = streamed(checkpoint, 2, reads=OVERLAPPED)
    stream, gate, close = stream_of(ours), Gate(), ReadBatch.close
    layer = stream.layer_streams[1]
    stream.reader.preadv = gate
    layer.prefetch([5])
    batch = layer._ahead[5]

    def open_and_close(self: ReadBatch) -> None:
        gate.open.set()
        close(self)

    with monkeypatch.context() as patch:
        patch.setattr(ReadBatch, "close", open_and_close)
        patch.setattr(stream, "counters", Bomb())
        with pytest.raises(KeyboardInterrupt):
            layer.run(mx.zeros((1, 1, 256)), mx.array([[[5, 6]]]))
    try:
        assert batch.settled
        assert known_reads(stream) == {}
        assert reserved(stream) == set()
    finally:
        gate.open.set()
    assert differing(run_logits(ours.model, PROMPT, 8), expected) == []


def test_an_interrupt_while_a_read_is_handed_over_loses_it_not(checkpoint: Path) -> None:
    ours = streamed(checkpoint, 2, reads=OVERLAPPED)
    stream, key, gate = stream_of(ours), ExpertKey(1, 5), Gate()
    stream.reader.preadv = gate
    stream.restorer._pending.append((0, key))
    with stream.lock:
        stream.restorer.step(stream)

    class Interrupted(dict[int, ReadBatch]):
        def __setitem__(self, expert: int, batch: ReadBatch) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream.restorer.hand_over(stream, 1, {5}, Interrupted())
    gate.open.set()
    assert known_reads(stream).keys() == reserved(stream) == {key}


class Interrupt:
    """Raises KeyboardInterrupt where Python does: when the n-th function begins or has ended."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event in ("call", "c_return") and frame.f_code.co_filename.endswith(FILES):
            self.left -= 1
            if self.left == 0:
                sys.setprofile(None)
                raise KeyboardInterrupt


@pytest.mark.parametrize("capacity", [1, 2])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_call_after_an_interrupt_is_exact_wherever_it_came(
    checkpoint: Path, capacity: int
) -> None:
    """An interrupt in a finalizer is reported and ignored, as Python does."""
    expected = list(run_logits(resident(checkpoint), PROMPT, 1))
    ours = streamed(checkpoint, capacity, reads=READING_AHEAD)
    stream = stream_of(ours)
    started, num_interrupts = Recorded(stream), 0
    for at in range(1, 10_000, 11):
        started.batches.clear()
        interrupt = Interrupt(at)
        sys.setprofile(interrupt)
        try:
            list(run_logits(ours.model, random_tokens(1, VOCAB, seed=at), 1))
        except KeyboardInterrupt:
            num_interrupts += 1
        finally:
            sys.setprofile(None)
        known = known_reads(stream)
        assert all(batch.settled or batch in known.values() for batch in started.batches)
        assert known.keys() <= reserved(stream)
        assert differing(run_logits(ours.model, PROMPT, 1), expected) == []
        stream.cache.check_integrity()
        if interrupt.left > 0:
            break
    assert num_interrupts > 10
