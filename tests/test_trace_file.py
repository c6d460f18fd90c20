"""Trace files: what was written is read, and whatever a file says, no more than a sentence."""

import errno
import json
import os
import zlib
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from routing import random_trace, routing

from mlx_flash.errors import TraceError
from mlx_flash.telemetry import trace_file as trace_files
from mlx_flash.telemetry.trace import Routing, Trace, joined, merged
from mlx_flash.telemetry.trace_file import TraceWriter, read_trace


def write(path: Path, *blocks: tuple[str, int], seed: int = 0) -> Trace:
    """Write a block per domain, one pass of so many tokens each; return what is in the file."""
    parts = [
        random_trace(tokens, seed=seed + number, domains=[(domain, tokens)], steps=[tokens])
        for number, (domain, tokens) in enumerate(blocks)
    ]
    writer = TraceWriter(path, parts[0].routing)
    for (domain, _), part in zip(blocks, parts, strict=True):
        writer.add(domain, part.experts, part.weights)
        writer.flush()
    writer.close()
    return joined(parts)


def same(found: Trace, expected: Trace) -> bool:
    return (
        found.routing == expected.routing
        and found.domains == expected.domains
        and np.array_equal(found.steps, expected.steps)
        and np.array_equal(found.experts, expected.experts)
        and np.array_equal(found.weights, expected.weights, equal_nan=True)
    )


def line(header: dict[str, Any]) -> bytes:
    return trace_files._line_of(header)


def header_of(path: Path) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(path.read_bytes().splitlines()[0])
    del header["line_crc32"]
    return header


def block(raw: bytes, steps: Any, **other: Any) -> bytes:
    """Return a block whose checksums hold, whatever it says."""
    packed = zlib.compress(raw)
    header = {"domain": "d", "steps": steps, "bytes": len(packed), "crc32": zlib.crc32(packed)}
    return line(header | other) + packed


def refused(path: Path) -> str:
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    expected = write(path, ("code", 5), ("code", 1), ("talk", 3))
    assert same(read_trace(path), expected)
    assert read_trace(str(path)).domains == (("code", 6), ("talk", 3))


def test_weights_that_are_not_known_are_nan(tmp_path: Path) -> None:
    trace = random_trace(3)
    writer = TraceWriter(tmp_path / "trace", trace.routing)
    writer.add("d", trace.experts)
    writer.close()
    assert np.isnan(read_trace(tmp_path / "trace").weights).all()


def test_passes_that_wait_are_written_a_block_at_a_time_and_domains_apart(tmp_path: Path) -> None:
    path, trace = tmp_path / "trace", random_trace(1)
    writer = TraceWriter(path, trace.routing)
    empty = path.stat().st_size
    for _ in range(TraceWriter.BLOCK_TOKENS - 1):
        writer.add("a", trace.experts, trace.weights)
    assert path.stat().st_size == empty
    writer.add("a", trace.experts, trace.weights)
    assert read_trace(path).num_tokens == TraceWriter.BLOCK_TOKENS
    for domain in ("a", "b", "b"):
        writer.add(domain, trace.experts, trace.weights)
    writer.close()
    assert read_trace(path).domains == (("a", TraceWriter.BLOCK_TOKENS + 1), ("b", 2))
    assert path.read_bytes().count(b'"domain"') == 4


def test_a_trace_grows_behind_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    first = write(path, ("a", 4))
    second = write(path, ("b", 2), seed=5)
    assert same(read_trace(path), joined([first, second]))


@pytest.mark.parametrize(
    "other",
    [
        routing(model="b/model"),
        routing(experts=9),
        routing(layers=3),
        routing(top_k=3),
    ],
    ids=["name", "experts", "layers", "top-k"],
)
def test_a_trace_of_another_model_is_not_appended_to(other: Routing, tmp_path: Path) -> None:
    path = tmp_path / "trace"
    write(path, ("a", 4))
    before = path.read_bytes()
    with pytest.raises(TraceError, match="is a trace of a/model: give another file"):
        TraceWriter(path, other)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"a text\nof lines\n", b"{}\n", b"\0" * 9, b"[1]\n", b"{"])
def test_a_file_that_is_no_trace_is_refused_and_left_alone(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(content)
    assert "is no routing trace" in refused(path)
    with pytest.raises(TraceError, match="is no routing trace"):
        TraceWriter(path, routing())
    assert path.read_bytes() == content


def test_a_trace_cut_anywhere_is_the_blocks_before_or_one_sentence(tmp_path: Path) -> None:
    path, cut = tmp_path / "trace", tmp_path / "cut"
    ends, parts = [], []
    for number, domain in enumerate("abc"):
        parts.append(write(path, (domain, 2), seed=number))
        ends.append(path.stat().st_size)
    content = path.read_bytes()
    start = content.index(b"\n") + 1
    for length in range(len(content)):
        cut.write_bytes(content[:length])
        whole = sum(end <= length for end in ends)
        if whole:
            lost: list[int | None] = []
            assert same(read_trace(cut, lost.append), joined(parts[:whole])), length
            in_line = b"\n" not in content[ends[whole - 1] : length]
            assert lost == ([] if length in ends else [None if in_line else 2]), length
        else:
            expected = "was cut off within its first" if length > start else "holds no tokens"
            if length < start:
                expected = "cut off within its first" if length >= 27 else "is no routing trace"
            assert expected in refused(cut), length


def test_a_trace_cut_anywhere_goes_on_behind_its_whole_blocks(tmp_path: Path) -> None:
    path, cut = tmp_path / "trace", tmp_path / "cut"
    first = write(path, ("a", 2))
    end = path.stat().st_size
    write(path, ("b", 2), seed=1)
    content = path.read_bytes()
    for length in range(end, len(content)):
        cut.write_bytes(content[:length])
        third = write(cut, ("c", 3), seed=2)
        assert same(read_trace(cut), joined([first, third])), length


@pytest.mark.parametrize("bit", [0, 3, 7])
def test_a_flipped_bit_is_found_wherever_it_is(bit: int, tmp_path: Path) -> None:
    path = tmp_path / "trace"
    write(path, ("a", 2), ("b", 2))
    content = path.read_bytes()
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << bit
        path.write_bytes(flipped)
        refused(path)
        with pytest.raises(TraceError):
            TraceWriter(path, routing())
        assert path.read_bytes() == flipped  # nothing behind the damage was cut off


class FullDisk(FileIO):
    """A file on a disk that takes `room` more bytes."""

    room = 0

    def write(self, content: Any) -> int:
        part = memoryview(content)[: self.room]
        self.room -= len(part)
        if not part:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(part)


def test_a_full_disk_loses_no_earlier_block_and_room_for_a_block_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, part = tmp_path / "trace", random_trace(2, domains=[("b", 2)])
    first = write(path, ("a", 4))
    before = path.stat().st_size
    disk = FullDisk(os.open(path, os.O_RDWR), "r+")
    monkeypatch.setattr(trace_files, "_open_to_append", lambda path: disk)
    writer = TraceWriter(path, first.routing)
    writer.add("b", part.experts, part.weights)
    for room in (0, 1, 50, 100):
        disk.room = room
        with pytest.raises(TraceError, match=r"cannot write .*: No space left on device\."):
            writer.flush()
        assert path.stat().st_size == before
    disk.room = 1000
    writer.close()
    assert read_trace(path).domains == (("a", 4), ("b", 2))


def test_a_disk_that_stays_full_is_one_error_also_while_closing(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(TraceError, match="No space left"):
        TraceWriter(Path("/dev/full"), routing())


def test_a_failure_while_closing_is_a_sentence_and_the_file_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(FileIO):
        def close(self) -> None:
            failing = not self.closed
            super().close()
            if failing:
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    descriptor = os.open(tmp_path / "trace", os.O_RDWR | os.O_CREAT)
    file = Failing(descriptor, "r+")
    monkeypatch.setattr(trace_files, "_open_to_append", lambda path: file)
    writer = TraceWriter(tmp_path / "trace", routing())
    with pytest.raises(TraceError, match="cannot write"):
        writer.close()
    assert file.closed


def test_folders_and_missing_files_are_refused(tmp_path: Path) -> None:
    assert "Is a directory" in refused(tmp_path)
    assert "No such file" in refused(tmp_path / "none")
    with pytest.raises(TraceError, match="Is a directory"):
        TraceWriter(tmp_path, routing())
    with pytest.raises(TraceError, match="No such file"):
        TraceWriter(tmp_path / "none" / "trace", routing())


def test_a_read_that_fails_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    write(tmp_path / "trace", ("a", 2))
    monkeypatch.setattr(Path, "open", fail)
    assert "Permission denied" in refused(tmp_path / "trace")
    with pytest.raises(TraceError, match="Permission denied"):
        TraceWriter(tmp_path / "trace", routing())


@pytest.mark.parametrize(
    "change",
    [
        {"num_experts": []},
        {"num_experts": [0, 8]},
        {"num_experts": [8, -8]},
        {"num_experts": [8, True]},
        {"num_experts": [8, 8.0]},
        {"num_experts": [8] * 5000, "expert_bytes": [1] * 5000},
        {"num_experts": [8, 70000]},
        {"num_experts": [1000] * 2000, "expert_bytes": [1] * 2000},
        {"num_experts": "88"},
        {"expert_bytes": [100]},
        {"expert_bytes": [100, 2**50]},
        {"top_k": 0},
        {"top_k": 9},
        {"top_k": "2"},
        {"top_k": 10**30},
        {"model": None},
        {"model": "m" * 2000},
    ],
    ids=lambda change: str(change)[:40],
)
def test_absurd_headers_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "trace"
    write(path, ("a", 2))
    rest = path.read_bytes().partition(b"\n")[2]
    path.write_bytes(line(header_of(path)) + rest)
    read_trace(path)
    path.write_bytes(line(header_of(path) | change) + rest)
    assert "makes no sense" in refused(path)


def test_a_version_that_is_not_known_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    write(path, ("a", 2))
    path.write_bytes(line(header_of(path) | {"version": 99}))
    assert "of another version" in refused(path)


ONE_TOKEN = b"\0" * 16  # two layers, two experts each, and their weights


@pytest.mark.parametrize(
    "foreign",
    [
        block(ONE_TOKEN, [2]),
        block(ONE_TOKEN, []),
        block(ONE_TOKEN, [0]),
        block(ONE_TOKEN, [-1, 2]),
        block(ONE_TOKEN, [True]),
        block(ONE_TOKEN, ["1"]),
        block(ONE_TOKEN, 1),
        block(ONE_TOKEN, [10**7] * 1000),
        block(ONE_TOKEN, [1], domain=7),
        block(ONE_TOKEN, [1], crc32=1),
        block(ONE_TOKEN, [1], bytes=0),
        block(ONE_TOKEN, [1], bytes="9"),
        block(ONE_TOKEN, [1], bytes=2**40),
        block(b"\x08" + ONE_TOKEN[1:], [1]),
        block(ONE_TOKEN + b"\0", [1]),
        line({"domain": "d", "steps": [1], "bytes": 4, "crc32": zlib.crc32(b"abcd")}) + b"abcd",
        b"[" * 100_000 + b"\n",
        b"\xff" * 2_000_000,
    ],
    ids=lambda foreign: repr(foreign[:60]),
)
def test_blocks_that_lie_are_refused(foreign: bytes, tmp_path: Path) -> None:
    path = tmp_path / "trace"
    write(path, ("a", 2))
    content = path.read_bytes()
    path.write_bytes(content + block(ONE_TOKEN, [1]))
    assert read_trace(path).num_tokens == 3
    path.write_bytes(content + foreign)
    assert "is damaged" in refused(path)


def test_a_decompression_bomb_takes_no_more_memory_than_its_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trace"
    write(path, ("a", 2))
    path.write_bytes(path.read_bytes() + block(b"\0" * 50_000_000, [1]))
    sizes: list[int] = []

    class Expander:
        def __init__(self) -> None:
            self._real = real()

        def decompress(self, packed: bytes, most: int) -> bytes:
            raw: bytes = self._real.decompress(packed, most)
            sizes.append(len(raw))
            return raw

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

    real = zlib.decompressobj
    monkeypatch.setattr(zlib, "decompressobj", Expander)
    assert "is damaged" in refused(path)
    assert sizes == [2 * len(ONE_TOKEN), len(ONE_TOKEN)]


def test_more_routing_than_memory_should_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trace"
    expected = write(path, ("a", 4), ("b", 4))
    monkeypatch.setattr(trace_files, "_MAX_TRACE_BYTES", 8 * len(ONE_TOKEN))
    assert same(read_trace(path), expected)
    write(path, ("c", 1))
    assert "record fewer tokens" in refused(path)


def test_domains_are_picked_apart_and_passes_stay_together() -> None:
    trace = random_trace(9, domains=[("a", 3), ("b", 4), ("a", 2)], steps=[3, 4, 1, 1])
    parts = trace.by_domain()
    assert {name: part.steps.tolist() for name, part in parts.items()} == {"a": [3, 1, 1], "b": [4]}
    assert np.array_equal(parts["a"].experts, trace.experts[[0, 1, 2, 7, 8]])
    assert parts["a"].domains == (("a", 3), ("a", 2))
    part = trace.slice(2, 8)
    assert (part.steps.tolist(), part.num_tokens) == ([1, 4, 1], 6)
    assert np.array_equal(part.weights, trace.weights[2:8])
    assert merged([("a", 1), ("a", 2), ("b", 3), ("a", 4)]) == (("a", 3), ("b", 3), ("a", 4))


def test_traces_of_models_of_another_shape_do_not_go_together() -> None:
    with pytest.raises(TraceError, match="do not go together"):
        joined([random_trace(2), random_trace(2, experts=9)])
