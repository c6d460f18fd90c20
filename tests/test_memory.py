"""Limits are parsed, plans keep to them, and cgroups count."""

import sys
from pathlib import Path

import psutil
import pytest
from calling import refusal

from mlx_flash import load
from mlx_flash.config import CacheOptions, MemoryLimit, ReadOptions, check_either
from mlx_flash.errors import MemoryPlanError, OptionError
from mlx_flash.formats.layout import ExpertLayout, ExpertTensor
from mlx_flash.formats.safetensors import FileStamp
from mlx_flash.planner.memory import (
    ModelNeed,
    limit_in_bytes,
    plan_capacity,
    plan_memory,
    spare_bytes,
)
from mlx_flash.telemetry import machine
from mlx_flash.telemetry.pressure import macos_pressure_level, memory_pressure

MB = 10**6


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("6GB", MemoryLimit(num_bytes=6 * 10**9)),
        ("1.5 gb", MemoryLimit(num_bytes=1_500_000_000)),
        ("512MiB", MemoryLimit(num_bytes=512 * 2**20)),
        ("7", MemoryLimit(num_bytes=7)),
        (7, MemoryLimit(num_bytes=7)),
        ("2T", MemoryLimit(num_bytes=2 * 10**12)),
        ("40%", MemoryLimit(share=0.4)),
        ("all", MemoryLimit(everything=True)),
        (None, MemoryLimit()),
    ],
)
def test_a_limit_is_what_it_says(text: str | int | None, limit: MemoryLimit) -> None:
    assert MemoryLimit.parse(text) == limit


@pytest.mark.parametrize(
    "text", ["", "0", "0%", "-1GB", "-5", "101%", "nan%", "inf", "lots", "6GBs", "1e9", "%", "٣GB"]
)
def test_a_limit_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(MemoryPlanError):
        MemoryLimit.parse(text)


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(OptionError, match="1 or more"):
        CacheOptions(capacity=0)
    with pytest.raises(OptionError, match="no policy 'magic'"):
        CacheOptions(policy="magic")
    with pytest.raises(OptionError, match="not both"):
        check_either(MemoryLimit(share=0.5), CacheOptions(capacity=3))
    for options in ({"num_threads": 0}, {"split_bytes": 0}, {"num_retries": -1}):
        with pytest.raises(OptionError, match="cannot read"):
            ReadOptions(**options)
    for gbps in (0, -1.0, float("inf"), float("nan")):
        with pytest.raises(OptionError, match="GB/s is no rate to keep to"):
            ReadOptions(max_gbps=gbps)
    for celsius in (0, 39.9, 100.1, float("nan")):
        with pytest.raises(OptionError, match="give 40 to 100"):
            ReadOptions(max_temperature_c=celsius)
    for values in ({"num_bytes": -5}, {"share": 3.0}, {"share": 0.0}):
        with pytest.raises(MemoryPlanError):
            MemoryLimit(**values)


def need(num_layers: int = 4, num_experts: int = 16) -> ModelNeed:
    tensors = (ExpertTensor("up.weight", "U8", (MB,), MB, Path("x"), 0, MB, FileStamp(0, 0, 0, 0)),)
    layouts = tuple(ExpertLayout(n, f"l{n}", num_experts, tensors) for n in range(num_layers))
    return ModelNeed(10 * MB, num_layers * num_experts * MB, 3 * MB, layouts)


def test_every_limit_is_kept_and_used() -> None:
    model = need()
    smallest = model.streamed_bytes(1)
    for limit in range(smallest, model.full_bytes, 777_777):
        plan = plan_memory(model, limit)
        assert plan.capacity is not None
        assert plan.total_bytes <= limit
        assert plan.capacity == 16 or model.streamed_bytes(plan.capacity + 1) > limit


def test_too_little_names_the_smallest_limit_that_works() -> None:
    model = need()
    smallest = model.streamed_bytes(1)
    with pytest.raises(MemoryPlanError, match=f"is {smallest} bytes") as caught:
        plan_memory(model, smallest - 1)
    assert caught.value.needed_bytes == smallest
    assert plan_memory(model, smallest).capacity == 1


def test_a_model_that_fits_runs_resident_and_says_so() -> None:
    plan = plan_memory(need(), need().full_bytes)
    assert (plan.capacity, plan.why_resident) == (None, "the whole model fits")


def test_a_model_without_experts_runs_resident_or_says_what_it_takes() -> None:
    dense = ModelNeed(10 * MB, 0, MB, ())
    assert plan_memory(dense, 11 * MB).why_resident == "the model has no experts to stream"
    with pytest.raises(MemoryPlanError, match=r"11\.0 MB where 5\.0 MB"):
        plan_memory(dense, 5 * MB)


def test_a_share_is_of_what_the_resident_model_needs() -> None:
    limit = int(0.4 * need().full_bytes)
    assert limit_in_bytes(MemoryLimit(share=0.4), need(), 0, limit) == limit


def test_more_than_the_machine_has_is_refused() -> None:
    with pytest.raises(MemoryPlanError, match="more than the"):
        limit_in_bytes(MemoryLimit(num_bytes=2), need(), 1, 1)
    with pytest.raises(MemoryPlanError, match="more than the"):
        limit_in_bytes(MemoryLimit(share=0.4), need(), 1, 1)
    with pytest.raises(MemoryPlanError, match="give fewer"):
        plan_capacity(need(), 3, 1)
    with pytest.raises(MemoryPlanError, match="whole model takes"):
        limit_in_bytes(MemoryLimit(everything=True), need(), 1, 1)


def test_the_default_leaves_headroom() -> None:
    assert limit_in_bytes(MemoryLimit(), need(), 10**10, 10**10) == spare_bytes(10**10) < 10**10
    assert spare_bytes(MB) == 0


def write_cgroup(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text + "\n")


def test_a_cgroup_v2_limit_counts_and_its_reclaimable_cache_does_not(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("0::/user/app\n")
    stat = f"anon 5\ninactive_file {30 * MB}"
    current = {"memory.current": str(50 * MB), "memory.stat": stat}
    write_cgroup(tmp_path / "fs/user/app", {"memory.max": "max", **current})
    write_cgroup(tmp_path / "fs/user", {"memory.max": str(100 * MB), **current})
    assert machine.available_memory_bytes(tmp_path / "fs", membership) == 80 * MB
    assert machine.total_memory_bytes(tmp_path / "fs", membership) == 100 * MB


def test_a_cgroup_v1_limit_counts(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("11:cpu,cpuacct:/\n5:memory:/docker/abc\n0::/\n")
    files = {
        "memory.limit_in_bytes": str(70 * MB),
        "memory.usage_in_bytes": str(20 * MB),
        "memory.stat": "cache 1\ntotal_inactive_file 0",
    }
    write_cgroup(tmp_path / "fs/memory", files)  # in a container its own group is the root
    assert machine.available_memory_bytes(tmp_path / "fs", membership) == 50 * MB


def test_memory_high_counts_and_a_missing_stat_reclaims_nothing(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("0::/app\n")
    files = {"memory.max": "max", "memory.high": str(60 * MB), "memory.current": str(50 * MB)}
    write_cgroup(tmp_path / "fs/app", files)
    assert machine.available_memory_bytes(tmp_path / "fs", membership) == 10 * MB


def test_active_page_cache_of_a_cgroup_can_be_taken_back_too(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("4:memory:/app\n0::/app\n")
    cache = f"inactive_file {20 * MB}\nactive_file {10 * MB}\nanon {9 * MB}"
    files = {"memory.max": str(80 * MB), "memory.current": str(70 * MB), "memory.stat": cache}
    write_cgroup(tmp_path / "fs/app", files)
    assert machine.available_memory_bytes(tmp_path / "fs", membership) == 40 * MB
    cache = f"inactive_file 1\ntotal_inactive_file {5 * MB}\ntotal_active_file {8 * MB}"
    files = {"memory.limit_in_bytes": str(30 * MB), "memory.usage_in_bytes": str(25 * MB)}
    write_cgroup(tmp_path / "fs/memory/app", {**files, "memory.stat": cache})
    assert machine.available_memory_bytes(tmp_path / "fs", membership) == 18 * MB


def test_room_says_how_far_over_its_limit_a_cgroup_is(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("0::/app\n")
    files = {"memory.max": "max", "memory.high": str(60 * MB), "memory.current": str(75 * MB)}
    write_cgroup(tmp_path / "fs/app", files)
    assert machine.memory_room_bytes(tmp_path / "fs", membership) == -15 * MB
    assert machine.available_memory_bytes(tmp_path / "fs", membership) == 0


@pytest.mark.parametrize(
    "lines",
    [
        b"",
        b"\xff\xfe\x00\n",
        b"no colons\n0:\n0:memory\n::\n",
        b"0::/\x00\n4:memory:/" + b"x" * 5000 + b"\n",
        b"0::/../up\n4:memory:/../../up\n",
    ],
)
def test_a_membership_that_is_garbage_limits_nothing(tmp_path: Path, lines: bytes) -> None:
    membership = tmp_path / "cgroup"
    membership.write_bytes(lines)
    write_cgroup(tmp_path / "up", {"memory.max": "1", "memory.current": "1"})
    (tmp_path / "fs/memory").mkdir(parents=True)
    total = machine.total_memory_bytes(tmp_path / "fs", membership)
    assert total == psutil.virtual_memory().total
    assert machine.available_memory_bytes(tmp_path / "fs", membership) > MB
    assert machine.num_cores(tmp_path / "fs", membership) >= 1


@pytest.mark.parametrize("text", ["", "max", "-1", "\u00b2", "\u0663", "9" * 5000, "1 2", "0x10"])
def test_a_number_that_is_garbage_limits_nothing(tmp_path: Path, text: str) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("0::/\n")
    files = dict.fromkeys(("memory.max", "memory.high", "memory.stat", "cpu.max"), text)
    write_cgroup(tmp_path / "fs", {**files, "memory.current": "5"})
    assert machine.available_memory_bytes(tmp_path / "fs", membership) > MB
    assert machine.num_cores(tmp_path / "fs", membership) >= 1
    limited = {"memory.max": str(MB), "memory.stat": f"active_file {text}\ninactive_file"}
    write_cgroup(tmp_path / "fs", limited)
    assert machine.available_memory_bytes(tmp_path / "fs", membership) == MB - 5


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/meminfo is a file of Linux")
@pytest.mark.parametrize("meminfo", [None, "", "garbage", "MemTotal: many kB\n"])
def test_without_a_sound_meminfo_the_kernel_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meminfo: str | None
) -> None:
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    if meminfo is not None:
        (tmp_path / "meminfo").write_text(meminfo)
    available = machine.available_memory_bytes(tmp_path, tmp_path / "missing")
    assert MB < available <= machine.total_memory_bytes(tmp_path, tmp_path / "missing")


@pytest.mark.parametrize(("level", "asked"), [(0, False), (1, False), (2, True), (4, True)])
def test_a_warning_of_the_system_asks_for_memory(level: int, asked: bool) -> None:
    pressure = memory_pressure(lambda: level)
    assert pressure.must_give_back == asked
    assert pressure.free_bytes <= machine.total_memory_bytes()


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS tells")
def test_elsewhere_than_on_macos_no_level_is_told() -> None:
    assert macos_pressure_level() == 0


def test_without_cgroups_the_machine_decides(tmp_path: Path) -> None:
    available = machine.available_memory_bytes(tmp_path, tmp_path / "missing")
    assert 0 < available <= psutil.virtual_memory().total


def test_memory_that_is_too_small_is_refused_with_what_takes_less() -> None:
    with pytest.raises(MemoryPlanError) as caught:
        load(memory="40%")
    assert str(caught.value).endswith(
        "That is for 2048 tokens of context: a smaller context_tokens takes less."
    )
    with pytest.raises(MemoryPlanError, match="give more than 0%"):
        load(memory="0%")
    assert "A shorter prompt or --max-tokens takes less." in refusal(
        "generate", "-p", "x", "--memory", "1MB"
    )
    assert "A smaller --max-context takes less." in refusal("chat", "--memory", "1MB")
    assert "context" not in refusal("plan", "--ram", "1MB")
