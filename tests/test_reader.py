"""Reading: bytes arrive where they should, failures are retried, reported and leave no writer."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from mlx_flash.config import ReadOptions
from mlx_flash.errors import ExpertReadError, FormatError
from mlx_flash.store.files import CheckpointFiles
from mlx_flash.store.reader import ExpertReader, Preadv, Read, coalesce
from mlx_flash.types import ExpertKey

CONTENT = bytes(os.urandom(64 * 1024))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(CONTENT)
    return path


def read_at(path: Path, offset: int, nbytes: int, expert: int = 0) -> Read:
    return Read(ExpertKey(3, expert), path, offset, memoryview(bytearray(nbytes)))


def reader_of(path: Path, preadv: Preadv = os.preadv, **options: int) -> ExpertReader:
    return ExpertReader(CheckpointFiles([path]), ReadOptions(**options), preadv)


def test_every_view_gets_its_own_bytes_whatever_the_grouping(file: Path) -> None:
    places = [(0, 100), (100, 4096), (9000, 1), (60_000, 5536), (4196, 300), (30_000, 20_000)]
    for split_bytes in (1, 4096, 8192, 1 << 22):
        for num_threads in (1, 3, 8):
            reads = [read_at(file, *place) for place in places]
            reader = reader_of(file, split_bytes=split_bytes, num_threads=num_threads)
            assert reader.submit(reads).wait() == sum(nbytes for _, nbytes in places)
            for read, (offset, nbytes) in zip(reads, places, strict=True):
                assert bytes(read.into) == CONTENT[offset : offset + nbytes]


def test_neighbours_are_read_by_one_call_and_large_reads_are_split(file: Path) -> None:
    reads = [read_at(file, offset, 1000) for offset in (2000, 0, 1000, 9000)]
    runs = coalesce(reads, split_bytes=1 << 20)
    assert [[read.offset for read in run.reads] for run in runs] == [[0, 1000, 2000], [9000]]
    split = coalesce([read_at(file, 0, 50_000)], split_bytes=20_000)
    assert [run.nbytes for run in split] == [20_480, 20_480, 9040]


def test_partial_reads_are_continued(file: Path) -> None:
    def trickle(descriptor: int, views: Sequence[memoryview], offset: int) -> int:
        return os.preadv(descriptor, [views[0][:7]], offset)

    reads = [read_at(file, 0, 20), read_at(file, 20, 30)]
    assert reader_of(file, trickle).submit(reads).wait() == 50
    assert bytes(reads[0].into) + bytes(reads[1].into) == CONTENT[:50]


def test_a_passing_error_is_retried(file: Path) -> None:
    failures = [OSError(5, "Input/output error")] * 2

    def flaky(descriptor: int, views: Sequence[memoryview], offset: int) -> int:
        if failures:
            raise failures.pop()
        return os.preadv(descriptor, list(views), offset)

    read = read_at(file, 10, 100)
    assert reader_of(file, flaky, num_retries=2).submit([read]).wait() == 100
    assert bytes(read.into) == CONTENT[10:110]


def test_a_lasting_error_names_layer_expert_file_and_offset(file: Path) -> None:
    def broken(descriptor: int, views: Sequence[memoryview], offset: int) -> int:
        raise OSError(5, "Input/output error")

    with pytest.raises(ExpertReadError) as caught:
        reader_of(file, broken).submit([read_at(file, 10, 100, expert=6)]).wait()
    error = caught.value
    assert (error.layer, error.expert, error.path, error.offset) == (3, 6, file, 10)
    assert str(error) == (
        f"cannot read expert 6 of layer 3 from {file} at offset 10: Input/output error"
    )


def test_a_short_file_is_an_error_not_zeros(file: Path) -> None:
    with pytest.raises(ExpertReadError, match="the file ends after 536 of 1000 bytes"):
        reader_of(file).submit([read_at(file, 65_000, 1000)]).wait()


def test_a_file_that_changes_underneath_is_an_error(file: Path) -> None:
    reader = reader_of(file)
    reader.submit([read_at(file, 0, 10)]).wait()
    file.write_bytes(CONTENT[:-1] + b"!!")
    with pytest.raises(ExpertReadError, match="changed after it was opened"):
        reader.submit([read_at(file, 0, 10)]).wait()


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
        reader_of(file, preadv, num_retries=0).submit(reads).wait()
    assert finished == [0]


def test_a_missing_file_is_a_format_error(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cannot open"):
        CheckpointFiles([tmp_path / "gone.safetensors"])


def test_close_never_waits_for_a_read(file: Path) -> None:
    may_read = threading.Event()

    def stuck(descriptor: int, views: Sequence[memoryview], offset: int) -> int:
        may_read.wait(timeout=30)
        return os.preadv(descriptor, list(views), offset)

    reader = reader_of(file, stuck)
    batch = reader.submit([read_at(file, 0, 10)])
    closing = threading.Thread(target=reader.close)
    closing.start()
    closing.join(timeout=10)
    closed = not closing.is_alive()
    may_read.set()
    assert batch.wait() == 10
    assert closed


def test_close_ends_threads_and_descriptors(file: Path) -> None:
    files = CheckpointFiles([file])
    reader = ExpertReader(files, ReadOptions())
    reader.submit([read_at(file, 0, 10)]).wait()
    reader.close()
    files.close()
    files.close()
    with pytest.raises(KeyError):
        files.descriptor(file)
