"""Sparing the disk: reads keep to a rate, and pause while it is hot."""

import itertools
import random
import shutil
import sys
import threading
from pathlib import Path

import mlx.core as mx
import pytest
from comparing import opened, stream_of, streamed
from packing import packed

from mlx_flash.config import CacheOptions, MemoryLimit, ReadOptions
from mlx_flash.store.throttle import HeatPause, RateCap
from mlx_flash.streaming import install
from mlx_flash.streaming.expert_stream import ExpertStream
from mlx_flash.types import ExpertKey

GBPS = 0.001  # 1000 bytes per millisecond, 50_000 in a burst
BURST = 50_000


class FakeTime:
    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept.append(seconds)
        self.now += seconds


def starts(sizes: list[int], idle_s: list[float]) -> list[float]:
    """Return when each read starts that one thread asks for, so long after the one before."""
    time = FakeTime()
    cap = RateCap(GBPS, time, time.sleep)
    found = []
    for nbytes, pause in zip(sizes, idle_s, strict=True):
        time.now += pause
        cap.wait(nbytes)
        found.append(time.now)
        assert len(time.slept) <= len(found)  # once per read at most: nobody spins
    return found


@pytest.mark.parametrize("largest", [1000, BURST, 4 * BURST])
@pytest.mark.parametrize("longest_idle_s", [0.0, 0.01, 0.2])
def test_no_interval_holds_more_than_the_rate_and_one_burst(
    largest: int, longest_idle_s: float
) -> None:
    chance = random.Random(5)
    sizes = [chance.randint(1, largest) for _ in range(200)]
    times = starts(sizes, [chance.random() * longest_idle_s for _ in sizes])
    for first, last in itertools.combinations(range(200), 2):
        allowed = (times[last] - times[first]) * GBPS * 1e9 + max(BURST, largest)
        assert sum(sizes[first : last + 1]) <= allowed + 1


@pytest.mark.parametrize("nbytes", [777, BURST, 4 * BURST])
def test_the_rate_is_used_up(nbytes: int) -> None:
    times = starts([nbytes] * 1000, [0.0] * 1000)
    assert times[-1] - times[0] <= 999 * nbytes / (GBPS * 1e9) + 1e-6


def test_a_burst_passes_after_a_rest_and_what_follows_waits() -> None:
    times = starts([10_000] * 7, [0.0, 0, 0, 0, 0, 0, 9.0])
    assert [round(time - 1000, 6) for time in times] == [0, 0, 0, 0, 0, 0.01, 9.01]


def test_a_read_larger_than_a_burst_passes_alone() -> None:
    times = starts([200_000, 1000, 200_000], [0.0] * 3)
    assert [round(time - 1000, 6) for time in times] == [0, 0.151, 0.201]


def test_without_a_cap_nobody_waits() -> None:
    time = FakeTime()
    cap = RateCap(None, time, time.sleep)
    for _ in range(100):
        cap.wait(10**12)
    assert time.slept == []


def test_threads_share_one_rate() -> None:
    """The clock stands still: so each read that waits must have a place of its own in the line."""
    slept: list[float] = []
    cap = RateCap(GBPS, lambda: 0.0, slept.append)
    threads = [
        threading.Thread(target=lambda: [cap.wait(1000) for _ in range(500)]) for _ in range(8)
    ]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
    finally:
        sys.setswitchinterval(interval)
    waited = [round(seconds, 6) for seconds in sorted(slept) if seconds > 1e-9]
    assert waited == [round(place / 1000, 6) for place in range(1, 4001 - 50)]


def pause_of(
    temperatures: list[float | None], limit: float | None = 70
) -> tuple[HeatPause, FakeTime]:
    """Return a pause whose disk has these temperatures, one a second, and its time."""
    time = FakeTime()
    read = [0.0]

    def disk_c() -> float | None:
        assert read[-1] == 0.0 or time.now - read[-1] >= 1.0, "read more than once a second"
        read.append(time.now)
        return temperatures[min(len(temperatures) - 1, int(time.now - 1000))]

    return HeatPause(70, disk_c, time, time.sleep), time


@pytest.mark.parametrize(
    ("temperatures", "pauses"),
    [
        pytest.param([70.0, 70.0, 65.0], [0, 0, 0], id="at the limit"),
        pytest.param([70.1, 66.0, 65.1, 65.0, 69.0], [1, 1, 1, 0, 0], id="until 5 below"),
        pytest.param([60.0, 71.0, 64.0, 70.0, 71.0], [0, 1, 0, 0, 1], id="again"),
        pytest.param([None, None], [0, 0], id="unreadable"),
        pytest.param([75.0, None, 75.0], [1, 0, 1], id="unreadable for a while"),
    ],
)
def test_reads_pause_over_the_limit_until_five_degrees_below(
    temperatures: list[float | None], pauses: list[float]
) -> None:
    pause, time = pause_of(temperatures)
    found = []
    for temperature in temperatures:
        found.append(pause.pause_s())
        assert pause.unreadable == (temperature is None)
        assert pause.temperature_c == temperature
        time.now += 1.0
    assert found == pauses


def test_the_temperature_is_read_once_a_second_however_many_ask() -> None:
    pause, time = pause_of([60.0, 80.0, 60.0])
    for tenth in range(30):
        time.now = 1000 + tenth / 10
        assert pause.pause_s() == (1 <= time.now - 1000 < 2)


def test_waiting_ends_when_the_disk_is_cool_and_is_counted() -> None:
    pause, time = pause_of([80.0, 75.0, 70.0, 64.0])
    pause.wait()
    pause.wait()
    assert time.slept == [1.0, 1.0, 1.0]
    assert pause.paused_s == 3.0


class Hot:
    """A disk that is too hot for ever: who waits for it is interrupted."""

    def __init__(self, stream: ExpertStream) -> None:
        stream.reader.heat_pause = HeatPause(66, lambda: 80.0, sleep=self.interrupt)

    def interrupt(self, seconds: float) -> None:
        raise KeyboardInterrupt


def test_a_hot_disk_keeps_who_needs_its_bytes_and_nobody_else(checkpoint: Path) -> None:
    ours = streamed(checkpoint, 4, reads=ReadOptions(overlap_bytes=1, prefetch=True))
    stream = stream_of(ours)
    first, second = (stream.layer_streams[layer] for layer in (0, 1))
    x, asked = mx.zeros((1, 1, 256)), mx.array([[[3, 5]]])
    expected = first.run(x, asked).tolist()
    for batch in second._ahead.values():
        batch.wait()
    second.run(x, asked)
    Hot(stream)
    assert first.run(x, asked).tolist() == expected
    second.prefetch([6])
    assert second._ahead == {}
    stream.restorer._pending.append((0, ExpertKey(0, 6)))
    stream.restorer._last_call = float("-inf")
    assert stream.restorer.turn(stream) == 1.0
    assert len(stream.restorer._pending) == 1
    with pytest.raises(KeyboardInterrupt):
        first.run(x, mx.array([[[6, 7]]]))
    stream.cache.check_integrity()


def test_a_packed_model_that_fits_is_loaded_while_the_disk_is_cool(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, waits = packed(shutil.copytree(checkpoint, tmp_path / "model")), []
    monkeypatch.setattr(install, "disk_temperature_c", lambda path: 80.0)
    monkeypatch.setattr(HeatPause, "wait", lambda self: waits.append(self.temperature_c))
    everything, reads = MemoryLimit(everything=True), ReadOptions(max_temperature_c=66)
    opened(folder, CacheOptions(), everything, "cpu", reads)
    assert waits == [80.0, 80.0]


def test_without_a_limit_no_temperature_is_read() -> None:
    def never() -> float:
        raise AssertionError("read")

    pause = HeatPause(None, never)
    pause.wait()
    assert not pause.unreadable
