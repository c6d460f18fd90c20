"""Benchmarks: an inflated model answers as before, and what is printed was measured."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from comparing import stream_of, streamed

from mlx_flash.bench import model
from mlx_flash.bench.inflate import inflate
from mlx_flash.bench.model import BenchReport, MmapPreadv, measure_model, read_options_of
from mlx_flash.cli.bench import _closing_lines
from mlx_flash.config import CacheOptions, MemoryLimit, ReadOptions
from mlx_flash.engine.alone import ReadSpeed, everything_resident, median_gbps
from mlx_flash.engine.find import bundled_model
from mlx_flash.engine.load import ModelFiles, load_model
from mlx_flash.engine.pack import pack
from mlx_flash.errors import OptionError, PackError
from mlx_flash.streaming.expert_stream import ExpertStream
from mlx_flash.streaming.tokens import tokens_after

SECONDS = ("ttft_s", "tpot_p50_s", "tpot_p99_s", "compute_s")


@pytest.fixture(autouse=True)
def _on_the_cpu() -> Any:
    before = mx.default_device()
    mx.set_default_device(mx.Device(mx.cpu))
    yield
    mx.set_default_device(before)


def test_an_inflated_model_answers_and_routes_as_before(tmp_path: Path) -> None:
    written = []
    size = inflate(bundled_model(), tmp_path / "big", 330_000, lambda *done: written.append(done))
    assert 300_000 < size < 360_000
    assert written[-1][0] == written[-1][1] > 480 * size
    answers, asked = [], []
    for folder in (bundled_model(), tmp_path / "big"):
        files = ModelFiles.open(folder)
        loaded = load_model(
            files.checkpoint,
            MemoryLimit(),
            CacheOptions(capacity=8),
            context_tokens=64,
            read_options=ReadOptions(prefetch=False),  # whose hits depend on the time reads take
        )
        prompt = list(files.tokenizer.encode("import os\n\n\ndef read_lines(path):\n"))
        answers.append(list(tokens_after(loaded.model, prompt, 24, 0.0, 32)))
        assert loaded.stream is not None
        asked.append((loaded.stream.counters.asks, loaded.stream.counters.hits))
    assert answers[0] == answers[1]
    assert asked[0] == asked[1]


def test_a_folder_that_is_not_empty_and_smaller_experts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="has 82944 bytes already"):
        inflate(bundled_model(), tmp_path / "new", 1000, lambda *done: None)
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match="not empty"):
        inflate(bundled_model(), tmp_path, 10**6, lambda *done: None)


def test_what_cannot_be_inflated_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    target = tmp_path / "new"
    with pytest.raises(PackError, match=r"and the disk of .* ask for smaller experts"):
        inflate(bundled_model(), target, 10**14, lambda *done: None)
    assert not target.exists()
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match="file is a file: give a folder"):
        inflate(bundled_model(), tmp_path / "file", 10**6, lambda *done: None)
    pack(bundled_model(), tmp_path / "packed", None, lambda *done: None)
    with pytest.raises(OptionError, match=r"is packed: give the model that it was made of\.$"):
        inflate(tmp_path / "packed", target, 10**6, lambda *done: None)


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize(
    ("cause", "raised", "message"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (OSError(errno.ENOSPC, "No space left on device"), PackError, "No space .*: make room"),
        (
            OSError(errno.EIO, "Input/output error"),
            PackError,
            r"cannot write .*: Input/.* error\.$",
        ),
    ],
)
def test_inflating_leaves_nothing_behind_when_it_ends_early(
    tmp_path: Path, exists: bool, cause: BaseException, raised: Any, message: str | None
) -> None:
    target = tmp_path / "new"
    if exists:
        target.mkdir()

    def fail(done: int, total: int) -> None:
        if done > total / 2:
            raise cause

    with pytest.raises(raised, match=message):
        inflate(bundled_model(), target, 200_000, fail)
    assert target.exists() == exists
    assert list(tmp_path.glob("new/*")) == []
    inflate(bundled_model(), target, 200_000, lambda *done: None)


@pytest.mark.parametrize("size", ["0", "abc", "-1MB", "50%"])
def test_a_size_that_no_expert_has_is_refused_in_one_line(tmp_path: Path, size: str) -> None:
    command = [sys.executable, "-c", "from mlx_flash.cli.main import run; run()", "bench"]
    options = ["inflate", str(tmp_path / "new"), "--expert-bytes", size]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    sentence = f"mlx-flash: '{size}' is no size of an expert: give bytes, such as 2.6MB.\n"
    assert done.stderr == sentence


@pytest.mark.parametrize("reader", ["buffered", "direct", "mmap"])
def test_bench_prints_what_scripts_depend_on(reader: str) -> None:
    command = [sys.executable, "-c", "from mlx_flash.cli.main import run; run()", "bench"]
    options = ["--capacity", "12", "--prompt-tokens", "32", "-n", "8", "--reader", reader]
    done = subprocess.run([*command, *options, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["settings"]["reader"] == reader
    assert report["settings"]["capacity"] == 12
    assert report["settings"]["direct"] is False or reader == "direct"
    assert report["settings"]["prefetch"] is True  # on the CPU, where nothing else is asked for
    assert report["settings"]["page_cache_dropped"] == hasattr(os, "posix_fadvise")
    assert report["decode_tokens"] == 8
    assert 0 < report["hit_rate"] < 1
    assert report["bytes_per_token"] > 0
    assert report["disk_gbps"] > 0
    assert report["bound_decode_tps"] > 0
    assert all(report[name] > 0 for name in SECONDS)
    assert report["settings"]["warm_start"] is False
    assert report["prefetch"]["experts_per_token"] > 0 or report["prefetch"]["why_off"]
    assert list(Path(os.environ["MLX_FLASH_CACHE"]).iterdir()) == []


def test_a_resident_benchmark_says_nothing_of_reading() -> None:
    report = run_report(CacheOptions())
    assert report.settings["capacity"] is None
    assert (report.settings["direct"], report.settings["prefetch"]) == (False, False)
    assert [line.split(":")[0] for line in _closing_lines(report)] == ["decode", "cold"]


def test_faster_than_the_disk_is_explained_by_the_page_cache() -> None:
    report = run_report(CacheOptions(capacity=12), direct=False)
    bound = {"bound_decode_tps": report.decode_tps / 2, "compute_only_tps": report.decode_tps * 2}
    lines = [*_closing_lines(replace(report, **bound))]
    assert " GB/s through the page cache where the disk gives " in lines[1]
    assert lines[2].startswith("more than 100% of the bound: ")
    past = {**bound, "settings": {**report.settings, "direct": True}}
    assert "page cache" not in " ".join(_closing_lines(replace(report, **past)))
    computing = {**bound, "compute_only_tps": report.decode_tps / 2}  # sets the bound
    prefill = {"bound_prefill_tps": 9.0, "compute_only_prefill_tps": 9.0}
    lines = [*_closing_lines(replace(report, **computing, **prefill))]
    assert not any(line.startswith("more than") for line in lines)


def run_report(options: CacheOptions, direct: bool | None = None) -> BenchReport:
    files = ModelFiles.open(None)
    loaded = load_model(
        files.checkpoint,
        MemoryLimit(everything=options.capacity is None),
        options,
        context_tokens=200,
        read_options=ReadOptions(direct=direct),
    )
    return measure_model(loaded, files.tokenizer, 16, 8, {})


def test_bench_remembers_and_reads_back_when_asked_to() -> None:
    command = [sys.executable, "-c", "from mlx_flash.cli.main import run; run()", "bench"]
    options = ["--capacity", "12", "--prompt-tokens", "32", "-n", "8", "--warm-start", "--json"]
    for _ in range(2):
        done = subprocess.run([*command, *options], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["settings"]["warm_start"] is True
    assert len(list((Path(os.environ["MLX_FLASH_CACHE"]) / "warm-start").iterdir())) == 1


def test_slots_stay_as_they_are_while_computing_alone_is_measured(checkpoint: Path) -> None:
    ours = streamed(checkpoint, 3)
    stream = stream_of(ours)
    books = stream.cache
    with everything_resident(stream):
        assert stream.capacity == 3
        stream.resize(2)
    assert stream.cache is books
    assert books.capacities == [3, 3]
    stream.resize(2)
    assert books.capacities == [2, 2]


@pytest.mark.parametrize("slow_read", [1, 45, 90])
def test_a_moment_in_which_the_disk_stands_still_does_not_change_its_rate(slow_read: int) -> None:
    marks = [(0.0, 0)]
    for read in range(1, 91):
        seconds = 5.0 if read == slow_read else 0.01
        marks.append((marks[-1][0] + seconds, 2 * 10**7 * read))
    assert median_gbps(marks) == pytest.approx(2.0)


def test_the_rate_of_a_few_reads_is_their_mean() -> None:
    assert median_gbps([(1.0, 0), (1.5, 10**9), (5.0, 2 * 10**9)]) == pytest.approx(0.5)


def test_the_disk_is_measured_without_maps_that_keep_its_pages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files, reads = ModelFiles.open(None), read_options_of("mmap", overlap=True, prefetch=False)
    options = CacheOptions(capacity=6)
    loaded = load_model(
        files.checkpoint, MemoryLimit(), options, context_tokens=64, read_options=reads
    )
    assert loaded.stream is not None
    mapped = MmapPreadv()
    loaded.stream.reader.preadv = mapped
    measured = []

    def reading_alone(stream: ExpertStream, num_bytes: int) -> ReadSpeed:
        measured.append((stream.reader.preadv, len(mapped._maps)))
        return ReadSpeed(1.0, 0.0)

    monkeypatch.setattr(model, "reading_alone", reading_alone)
    measure_model(loaded, files.tokenizer, 16, 8, {})
    assert measured == [(os.preadv, 0)]


def test_a_measurement_leaves_the_model_as_it_was() -> None:
    files = ModelFiles.open(None)
    reads = read_options_of("auto", overlap=True, prefetch=True)
    options = CacheOptions(capacity=6)
    loaded = load_model(
        files.checkpoint, MemoryLimit(), options, context_tokens=64, read_options=reads
    )
    assert loaded.stream is not None
    cache = loaded.stream.cache
    report = measure_model(loaded, files.tokenizer, 16, 8, {})
    assert loaded.stream.cache is cache
    cache.check_integrity()
    fractions = report.bound_decode_fraction, report.bound_prefill_fraction
    assert all(fraction > 0 for fraction in fractions)
    with pytest.raises(OptionError, match="do not fit the model's context of 2048"):
        measure_model(loaded, files.tokenizer, 2000, 100, {})
    with pytest.raises(OptionError, match="no reader 'tape'"):
        read_options_of("tape", overlap=True, prefetch=False)
