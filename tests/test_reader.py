"""Reading: bytes arrive where they should, failures are retried, reported and leave no writer."""

import contextlib
import errno
import fcntl
import mmap
import os
import sys
import threading
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mlx_flash.config import ReadOptions
from mlx_flash.engine import disk
from mlx_flash.errors import ExpertReadError, FormatError
from mlx_flash.formats.safetensors import FileStamp
from mlx_flash.store import files as files_module
from mlx_flash.store.direct import Preadv
from mlx_flash.store.files import CheckpointFiles
from mlx_flash.store.reader import ExpertReader, Read, ReadBatch, coalesce
from mlx_flash.types import ExpertKey

CONTENT = bytes(os.urandom(64 * 1024))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(CONTENT)
    return path


def read_at(path: Path, offset: int, nbytes: int, expert: int = 0) -> Read:
    return Read(ExpertKey(3, expert), path, offset, (memoryview(bytearray(nbytes)),))


def stamp_of(path: Path) -> FileStamp:
    with path.open("rb") as opened:
        return FileStamp.of(opened.fileno())


def do_reads(reader: ExpertReader, reads: Sequence[Read]) -> int:
    return reader.start(reads).wait()


def reader_of(
    path: Path, preadv: Preadv = os.preadv, direct: bool = False, **options: Any
) -> ExpertReader:
    files = CheckpointFiles({path: stamp_of(path)}, direct)
    return ExpertReader(files, ReadOptions(**options), preadv)


def test_every_view_gets_its_own_bytes_whatever_the_grouping(file: Path) -> None:
    places = [(0, 100), (100, 4096), (9000, 1), (60_000, 5536), (4196, 300), (30_000, 20_000)]
    for split_bytes in (4096, 8192, 1 << 22):
        for num_threads in (1, 3, 8):
            reads = [read_at(file, *place) for place in places]
            reader = reader_of(file, split_bytes=split_bytes, num_threads=num_threads)
            assert do_reads(reader, reads) == sum(nbytes for _, nbytes in places)
            for read, (offset, nbytes) in zip(reads, places, strict=True):
                assert bytes(read.into[0]) == CONTENT[offset : offset + nbytes]


@pytest.mark.parametrize("in_step", [True, False])
def test_direct_reads_fill_views_in_step_without_a_copy_and_the_others_too(
    file: Path, in_step: bool
) -> None:
    filled = []

    def preadv(descriptor: int, views: Sequence[memoryview], offset: int) -> int:
        assert offset % 4096 == 0
        assert all(view.nbytes % 4096 == 0 for view in views)
        filled.extend(view.nbytes for view in views)
        return os.preadv(descriptor, list(views), offset)

    reader = reader_of(file, preadv, direct=True, split_bytes=1 << 20)
    assert reader._files.needs_alignment(file)
    places = [(8, 40_000), (40_008, 24), (40_032, 20_000), (65_000, 536), (3, 1)]
    reads = []
    for offset, nbytes in places:
        phase = offset % 4096 if in_step else (offset + 16) % 4096
        view = memoryview(mmap.mmap(-1, nbytes + 4096))[phase : phase + nbytes]
        reads.append(Read(ExpertKey(0, 0), file, offset, (view,)))
    for read in reads:
        assert do_reads(reader, [read]) == read.nbytes
    assert do_reads(reader, reads[:3]) == 60_024
    for read, (offset, nbytes) in zip(reads, places, strict=True):
        assert bytes(read.into[0]) == CONTENT[offset : offset + nbytes]
    assert (36_864 - 4096 in filled) == in_step  # the whole blocks of the first view


def test_direct_reads_leave_memory_to_the_processor_that_may_be_moved(file: Path) -> None:
    """Where CUDA moves memory to the card while a disk writes into it, the bytes are lost."""
    views = (memoryview(mmap.mmap(-1, 8192)), memoryview(mmap.mmap(-1, 4096)))
    addresses = {np.frombuffer(view, np.uint8).ctypes.data for view in views}

    def preadv(descriptor: int, targets: Sequence[memoryview], offset: int) -> int:
        (target,) = targets
        assert np.frombuffer(target, np.uint8).ctypes.data not in addresses
        return os.preadv(descriptor, list(targets), offset)

    files = CheckpointFiles({file: stamp_of(file)}, direct=True)
    reader = ExpertReader(files, ReadOptions(), preadv, straight=False)
    assert do_reads(reader, [Read(ExpertKey(0, 0), file, 4096, views)]) == 12_288
    assert b"".join(views) == CONTENT[4096 : 4096 + 12_288]


@pytest.mark.skipif(sys.platform == "darwin", reason="F_NOCACHE works on every file")
def test_reads_that_the_file_system_refuses_to_do_directly_are_not_called_direct(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, views: Sequence[memoryview], offset: int) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "preadv", refuse)
    with contextlib.closing(CheckpointFiles({file: stamp_of(file)}, direct=True)) as files:
        assert not ExpertReader(files, ReadOptions(direct=True)).direct


def test_a_direct_read_that_stops_early_goes_on(file: Path) -> None:
    calls = []

    def short(descriptor: int, views: Sequence[memoryview], offset: int) -> int:
        calls.append(offset)
        return os.preadv(descriptor, [views[0][:4096]], offset)

    reader = reader_of(file, short, direct=True)
    read = read_at(file, 5000, 20_000)
    assert do_reads(reader, [read]) == 20_000
    assert bytes(read.into[0]) == CONTENT[5000:25_000]
    assert len(calls) > 3


def test_a_direct_read_past_the_end_is_short(file: Path) -> None:
    with pytest.raises(ExpertReadError, match="the file ends after 536 of 1000 bytes"):
        do_reads(reader_of(file, direct=True), [read_at(file, 65_000, 1000)])


def test_neighbours_are_read_by_one_call_and_large_reads_are_split(file: Path) -> None:
    reads = [read_at(file, offset, 1000) for offset in (2000, 0, 1000, 9000)]
    runs = coalesce(reads, split_bytes=1 << 20)
    assert [(run.offset, run.nbytes) for run in runs] == [(0, 3000), (9000, 1000)]
    split = coalesce([read_at(file, 0, 50_000)], split_bytes=20_000)
    assert [run.nbytes for run in split] == [20_480, 20_480, 9040]


def test_partial_reads_are_continued(file: Path) -> None:
    def trickle(descriptor: int, views: Sequence[memoryview], offset: int) -> int:
        return os.preadv(descriptor, [views[0][:7]], offset)

    reads = [read_at(file, 0, 20), read_at(file, 20, 30)]
    assert do_reads(reader_of(file, trickle), reads) == 50
    assert bytes(reads[0].into[0]) + bytes(reads[1].into[0]) == CONTENT[:50]


def test_a_passing_error_is_retried(file: Path) -> None:
    failures = [OSError(5, "Input/output error")] * 2

    def flaky(descriptor: int, views: Sequence[memoryview], offset: int) -> int:
        if failures:
            raise failures.pop()
        return os.preadv(descriptor, list(views), offset)

    read = read_at(file, 10, 100)
    assert do_reads(reader_of(file, flaky, num_retries=2), [read]) == 100
    assert bytes(read.into[0]) == CONTENT[10:110]


def test_a_lasting_error_names_layer_expert_file_and_offset(file: Path) -> None:
    def broken(descriptor: int, views: Sequence[memoryview], offset: int) -> int:
        raise OSError(5, "Input/output error")

    with pytest.raises(ExpertReadError) as caught:
        do_reads(reader_of(file, broken), [read_at(file, 10, 100, expert=6)])
    error = caught.value
    assert (error.layer, error.expert, error.path, error.offset) == (3, 6, file, 10)
    assert str(error) == (
        f"cannot read expert 6 of layer 3 from {file} at offset 10: Input/output error"
    )


def test_a_short_file_is_an_error_not_zeros(file: Path) -> None:
    with pytest.raises(ExpertReadError, match="the file ends after 536 of 1000 bytes"):
        do_reads(reader_of(file), [read_at(file, 65_000, 1000)])


def test_a_file_that_changes_underneath_is_an_error(file: Path) -> None:
    reader = reader_of(file)
    do_reads(reader, [read_at(file, 0, 10)])
    file.write_bytes(CONTENT[:-1] + b"!!")
    with pytest.raises(ExpertReadError, match="changed after it was opened"):
        do_reads(reader, [read_at(file, 0, 10)])


def test_a_failing_batch_is_quiet_before_its_error_arrives(file: Path) -> None:
    """The error must not overtake a slower read that still writes into its view."""
    slow_may_finish, finished = threading.Event(), []

    def preadv(descriptor: int, views: Sequence[memoryview], offset: int) -> int:
        if offset == 0:
            slow_may_finish.wait(timeout=10)
            finished.append(offset)
            return os.preadv(descriptor, list(views), offset)
        slow_may_finish.set()
        raise OSError(5, "Input/output error")

    reads = [read_at(file, 0, 10), read_at(file, 5000, 10)]
    with pytest.raises(ExpertReadError):
        do_reads(reader_of(file, preadv, num_retries=0), reads)
    assert finished == [0]


@pytest.mark.parametrize("interrupts", [1, 3])
def test_an_interrupt_leaves_no_thread_writing(
    file: Path, monkeypatch: pytest.MonkeyPatch, interrupts: int
) -> None:
    """Ctrl-C, once or again and again, while one read hangs and others wait for a thread."""
    may_read, writing = threading.Event(), []

    def slow(descriptor: int, views: Sequence[memoryview], offset: int) -> int:
        may_read.wait(timeout=30)
        writing.append(offset)
        return os.preadv(descriptor, list(views), offset)

    wait_for = threading.Condition.wait_for

    def interrupted(self: threading.Condition, *args: Any) -> Any:
        nonlocal interrupts
        interrupts -= 1
        if interrupts >= 0:
            raise KeyboardInterrupt
        may_read.set()
        return wait_for(self, *args)

    monkeypatch.setattr(threading.Condition, "wait_for", interrupted)
    reads = [read_at(file, offset, 10) for offset in range(0, 50_000, 5000)]
    with pytest.raises(KeyboardInterrupt):
        do_reads(reader_of(file, slow, num_threads=2), reads)
    before = list(writing)
    assert len(before) <= len(reads)
    may_read.wait(timeout=1)
    assert writing == before


@pytest.mark.parametrize("num_startable", [0, 2])
def test_threads_that_cannot_start_are_done_without(
    file: Path, monkeypatch: pytest.MonkeyPatch, num_startable: int
) -> None:
    reader, started = reader_of(file, num_threads=4), []
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if len(started) == num_startable:
            raise RuntimeError("can't start new thread")
        started.append(self)
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    reads = [read_at(file, offset, 10) for offset in (0, 5000, 10_000, 15_000)]
    if num_startable:
        assert do_reads(reader, reads) == 40
        assert len(started) == num_startable
    else:
        with pytest.raises(RuntimeError, match="new thread"):
            do_reads(reader, reads)


def test_a_wrong_checksum_is_an_error_and_a_right_one_is_none(file: Path) -> None:
    views = tuple(memoryview(bytearray(nbytes)) for nbytes in (5000, 3, 0, 20_000))
    right = Read(ExpertKey(1, 2), file, 77, views, zlib.crc32(CONTENT[77 : 77 + 25_003]))
    reader = reader_of(file, split_bytes=8192)
    assert do_reads(reader, [right]) == 25_003
    assert b"".join(views) == CONTENT[77 : 77 + 25_003]
    with pytest.raises(ExpertReadError, match=r"expert 2 of layer 1 .*--check"):
        do_reads(reader, [replace(right, checksum=1)])


def test_a_file_replaced_after_its_header_was_read_is_refused(file: Path) -> None:
    stamp = stamp_of(file)
    other = file.with_name("other")
    other.write_bytes(CONTENT)
    other.replace(file)
    with pytest.raises(FormatError, match="replaced"):
        CheckpointFiles({file: stamp})


def test_a_missing_file_is_a_format_error(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cannot open"):
        CheckpointFiles({tmp_path / "gone.safetensors": FileStamp(0, 0, 0, 0)})


def test_close_never_waits_for_a_read(file: Path) -> None:
    started, may_read = threading.Event(), threading.Event()

    def stuck(descriptor: int, views: Sequence[memoryview], offset: int) -> int:
        started.set()
        may_read.wait(timeout=30)
        return os.preadv(descriptor, list(views), offset)

    reader, done = reader_of(file, stuck), []
    reading = threading.Thread(target=lambda: done.append(do_reads(reader, [read_at(file, 0, 10)])))
    reading.start()
    started.wait(timeout=10)
    closing = threading.Thread(target=reader.close)
    closing.start()
    closing.join(timeout=10)
    closed = not closing.is_alive()
    may_read.set()
    reading.join(timeout=10)
    assert done == [10]
    assert closed


def test_close_ends_threads_and_descriptors(file: Path) -> None:
    files = CheckpointFiles({file: stamp_of(file)})
    reader = ExpertReader(files, ReadOptions())
    do_reads(reader, [read_at(file, 0, 10)])
    reader.close()
    files.close()
    files.close()
    with pytest.raises(KeyError):
        files.descriptor(file)


def test_reads_wait_for_the_rate_cap_whole_blocks_and_retries_too(file: Path) -> None:
    failures = [OSError(5, "Input/output error")]

    def flaky(descriptor: int, views: Sequence[memoryview], offset: int) -> int:
        if failures:
            raise failures.pop()
        return os.preadv(descriptor, list(views), offset)

    slept: list[float] = []

    def sleep(seconds: float) -> None:
        assert reader._watch._inside == 0, "waiting counts as reading"
        slept.append(seconds)

    reader = reader_of(file, flaky, max_gbps=4096e-9, num_threads=1)  # one block a second
    reader.rate_cap._clock = lambda: 0.0
    reader.rate_cap._full_at_s = 0.0
    reader.rate_cap._sleep = sleep
    assert do_reads(reader, [read_at(file, 4000, 200), read_at(file, 20_000, 1)]) == 201
    assert slept == pytest.approx([2.0, 4.0])  # 2 blocks, the same again, 1 block


def test_a_closed_batch_starts_no_further_run(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or an interrupt would wait for all that is left, at the pace of the cap."""
    started, may_read, calls = threading.Event(), threading.Event(), []

    def slow(descriptor: int, views: Sequence[memoryview], offset: int) -> int:
        calls.append(offset)
        started.set()
        may_read.wait(timeout=30)
        return os.preadv(descriptor, list(views), offset)

    wait_for = threading.Condition.wait_for

    def closing(self: threading.Condition, *args: Any) -> Any:
        may_read.set()
        return wait_for(self, *args)

    reader = reader_of(file, slow, num_threads=1)
    batch = reader.start([read_at(file, offset, 10) for offset in (0, 5000, 10_000)])
    started.wait(timeout=30)
    monkeypatch.setattr(threading.Condition, "wait_for", closing)
    batch.close()
    assert len(calls) == 1


def test_an_interrupt_while_reads_are_registered_starts_none(file: Path) -> None:
    def interrupted(batch: ReadBatch) -> None:
        raise KeyboardInterrupt

    reader = reader_of(file, lambda *_: pytest.fail("read"))
    with pytest.raises(KeyboardInterrupt):
        reader.start([read_at(file, 0, 10)], interrupted)
    assert reader._work.empty()
    reader.preadv = os.preadv
    registered: list[ReadBatch] = []
    assert reader.start([read_at(file, 0, 10)], registered.append) is registered[0]
    assert registered[0].wait() == 10


def test_macos_reads_a_file_that_the_page_cache_cannot_be_kept_from(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> int:
        raise OSError(25, "Inappropriate ioctl for device")

    monkeypatch.setattr(files_module, "sys", SimpleNamespace(platform="darwin"))
    monkeypatch.setattr(fcntl, "F_NOCACHE", 48, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", refuse)
    reader = reader_of(file, direct=True)
    assert not reader._files.needs_alignment(file)
    assert do_reads(reader, [read_at(file, 0, 10)]) == 10


def test_macos_does_not_claim_to_read_past_the_page_cache(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    macos = SimpleNamespace(platform="darwin")
    for module in (files_module, disk):
        monkeypatch.setattr(module, "sys", macos)
    monkeypatch.setattr(fcntl, "F_NOCACHE", 48, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda *arguments: 0)
    assert not disk._DirectFile(file).direct


def test_a_hot_disk_is_read_by_who_does_not_wait(file: Path) -> None:
    """Whoever needs the bytes waits before; nobody holds a lock while the disk cools."""
    files = CheckpointFiles({file: stamp_of(file)})
    reader = ExpertReader(files, ReadOptions(max_temperature_c=66), disk_c=lambda: 80.0)
    assert reader.heat_pause.temperature_c == 80.0
    assert reader.heat_pause.pause_s() > 0
    assert do_reads(reader, [read_at(file, 0, 10)]) == 10
    assert reader.heat_pause.paused_s == 0


def test_a_disk_without_a_temperature_pauses_nothing_and_says_so(file: Path) -> None:
    reader = reader_of(file, max_temperature_c=66)
    assert do_reads(reader, [read_at(file, 0, 10)]) == 10
    assert reader.heat_pause.unreadable
    assert not reader_of(file).heat_pause.unreadable
