"""Plans: what they promise is what loading does, and whatever is asked, no more than a sentence."""

import contextlib
import errno
import os
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calling import call, refusal, report
from families import Family
from hub import serve
from routing import random_trace, routing
from talking import NUM_EXPERTS, TOP_K, write_talking_model

from mlx_flash.config import CacheOptions, MemoryLimit
from mlx_flash.engine import hub
from mlx_flash.engine import plan as planning
from mlx_flash.engine.load import load_model
from mlx_flash.engine.plan import default_curve, imagined_shape, plan_from_shape, plan_local
from mlx_flash.errors import MemoryPlanError
from mlx_flash.formats.checkpoint import Checkpoint
from mlx_flash.planner.curve import MissCurve
from mlx_flash.planner.memory import gigabytes, spare_bytes
from mlx_flash.planner.speed import (
    CONTEXT_TOKENS,
    MachineProfile,
    ModelShape,
    PlanRow,
    bytes_with,
    fits,
    predict,
)
from mlx_flash.telemetry.trace_file import TraceWriter

GB = 10**9
MACHINE = MachineProfile("cpu", 64 * GB, 60 * GB, 3.0, 1e-4, 20.0, 1e-4, 200.0, 1e-11)
CURVE = MissCurve("a line", 8, 2, np.arange(9), np.arange(9)[None] / 8)
PLAN_KEYS = {"machine", "model", "rows", "recommended", "assumptions"}
ROW_KEYS = {"memory_bytes", "capacity", "hit_rate", "bytes_per_token", "decode_tps", "ttft_s"}


@pytest.fixture(scope="module")
def model(qwen: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_talking_model(qwen, tmp_path_factory.mktemp("talking"))


@pytest.fixture
def known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "machine_profile", lambda *_, **__: MACHINE)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")


def saved(path: Path, experts: int = NUM_EXPERTS, layers: int = 2, top_k: int = TOP_K) -> Path:
    """Write a trace of 90 tokens, half of each domain."""
    trace = random_trace(90, experts=experts, layers=layers, top_k=top_k, skew=2.0)
    writer = TraceWriter(path, routing(experts, layers, top_k))
    for domain, part in (("code", trace.slice(0, 45)), ("talk", trace.slice(45, 90))):
        writer.add(domain, part.experts)
    writer.close()
    return path


def never_worse(rows: list[Any]) -> bool:
    """Return whether rows have more slots, hits and speed, and fewer reads, one by one."""
    values = [[r.capacity, r.memory_bytes, r.hit_rate, -r.bytes_per_token] for r in rows]
    return bool((np.diff(np.array(values), axis=0) >= 0).all())


def test_each_row_has_the_slots_that_loading_takes_with_that_memory(model: Path) -> None:
    rows = plan_local(model, default_curve(), None, None).rows
    assert [slots(model, row.memory_bytes) for row in rows] == [row.capacity for row in rows]
    assert rows[-1].capacity == NUM_EXPERTS
    assert len(rows) > 3
    between = [slots(model, row.memory_bytes - 1) for row in rows[1:]]
    assert between == [row.capacity for row in rows[:-1]]


def test_what_is_too_little_for_a_long_prompt_at_once_is_planned_as_it_is_loaded(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    least = plan_local(model, default_curve(), None, None).rows[0].memory_bytes
    (row, *_) = plan_local(model, default_curve(), leaving(least - 1), None).rows
    assert row.memory_bytes < least
    assert slots(model, row.memory_bytes) == row.capacity
    monkeypatch.setattr(planning, "_SHARES", (0.75, 1.0))
    (row, *_) = plan_local(model, default_curve(), leaving(least + 1), None).rows
    assert (row.memory_bytes, row.capacity) == (least, 1)
    with pytest.raises(MemoryPlanError) as caught:
        plan_local(model, default_curve(), 1000, None)
    assert caught.value.needed_bytes is not None
    assert slots(model, caught.value.needed_bytes) >= 1


def leaving(spare: int) -> int:
    """Return the free memory, of a small machine, of which so much can be spared."""
    free = spare + 128 * 1024 * 1024
    assert spare_bytes(free) == spare
    return free


def slots(model: Path, num_bytes: int) -> int:
    """Return the slots per layer that a model gets under a limit, all where it runs resident."""
    checkpoint, limit = Checkpoint.open(model), MemoryLimit(num_bytes=num_bytes)
    loaded = load_model(checkpoint, limit, CacheOptions(), context_tokens=CONTEXT_TOKENS)
    with contextlib.closing(loaded):
        return NUM_EXPERTS if loaded.plan.capacity is None else loaded.plan.capacity


def test_the_disk_of_a_plan_is_read_past_the_page_cache(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load(*args: Any, **options: Any) -> Any:
        asked.append(options["read_options"].direct)
        return load_model(*args, **options)

    monkeypatch.setattr(planning, "load_model", load)
    plan_local(model, default_curve(), None, None)
    assert asked == [True]


def test_what_plan_prints_for_scripts(model: Path, tmp_path: Path) -> None:
    plot = tmp_path / "plan.png"
    found = report("plan", model, "--plot", plot)
    assert found.keys() >= PLAN_KEYS
    assert all(row.keys() >= ROW_KEYS for row in found["rows"])
    assert never_worse([PlanRow(**row) for row in found["rows"]])
    assert 0 <= found["recommended"] < len(found["rows"])
    assert found["rows"][-1]["hit_rate"] == 1.0
    assert (found["model"]["num_experts"], found["model"]["top_k"]) == (NUM_EXPERTS, TOP_K)
    assert any("Hit rates are those of the bundled model" in a for a in found["assumptions"])
    assert any("2 ms of a layer besides its weights" in a for a in found["assumptions"])
    assert plot.read_bytes().startswith(b"\x89PNG")
    memory = [row["memory_bytes"] for row in found["rows"]]
    less = report("plan", model, "--ram", str(leaving(memory[2])), "--ssd-gbps", "7.5")
    assert [row["memory_bytes"] for row in less["rows"]] == memory[:4]
    assert less["spare_bytes"] == memory[2]
    assert less["recommended"] < 3
    assert less["machine"]["ssd_gbps"] == 7.5
    assert "the smallest limit that works is" in refusal("plan", model, "--ram", "1KB")
    shown = call("plan", model).stdout
    assert f"{memory[0] / 1e6:.1f} MB" in shown
    assert "→" in shown


def test_routing_of_the_model_itself_takes_the_place_of_the_curve(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = saved(tmp_path / "own")
    whole = report("plan", model, "--trace", own)
    assert not any("Hit rates" in assumption for assumption in whole["assumptions"])
    part = report("plan", model, "--trace", own, "--domain", "code")
    assert part["rows"][2]["hit_rate"] != whole["rows"][2]["hit_rate"]
    assert "no 'maths': take one of code, talk" in refusal(
        "plan", model, "--trace", own, "--domain", "maths"
    )
    assert "give --trace too" in refusal("plan", model, "--domain", "code")
    others = (
        saved(tmp_path / "experts", experts=9),
        saved(tmp_path / "layers", layers=3),
        saved(tmp_path / "top_k", top_k=3),
    )
    for other in others:
        assert "the trace is of a/model, which differs" in refusal("plan", model, "--trace", other)
    monkeypatch.setattr(planning, "load_model", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setattr("mlx_flash.engine.replay.curve_of", lambda *_: pytest.fail("replayed"))
    for other in others[:2]:
        assert "the trace is of a/model, which differs" in refusal("plan", model, "--trace", other)
    empty = tmp_path / "empty"
    empty.touch()
    assert "is no routing trace" in refusal("plan", model, "--trace", empty)


def test_a_model_that_nobody_has_is_planned_on_this_machine() -> None:
    found = report("plan", "--total-ram", "48", "--model-gb", "209")
    assert found.keys() >= PLAN_KEYS
    memory = [row["memory_bytes"] for row in found["rows"]]
    assert len(memory) > 6
    assert memory[0] < 10 * GB
    assert memory[-2] <= found["spare_bytes"] == 48 * GB * 9 // 10 < memory[-1]
    assert found["recommended"] < len(memory) - 1
    assert never_worse([PlanRow(**row) for row in found["rows"]])
    shape = found["model"]
    experts = shape["expert_bytes"] * shape["num_experts"] * shape["num_layers"]
    assert shape["resident_bytes"] + experts == pytest.approx(209 * GB, rel=1e-6)
    assert any("Computing was not measured" in a for a in found["assumptions"])
    assert found["machine"]["ssd_gbps"] > 0


@pytest.mark.usefixtures("known_machine")
def test_routing_of_any_model_may_stand_for_that_of_one_that_nobody_has(tmp_path: Path) -> None:
    trace = saved(tmp_path / "trace")
    found = report("plan", "--total-ram", "48", "--model-gb", "209", "--trace", trace)
    assert any("Hit rates are those of a/model" in a for a in found["assumptions"])
    small = refusal("plan", "--total-ram", "1", "--model-gb", "209")
    assert "a model of 209 GB needs 9.45 GB at least: 1.00 GB cannot hold" in small


@pytest.mark.usefixtures("known_machine")
def test_a_model_on_the_hub_is_planned_from_its_headers(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve({"our/model": model}) as address:
        monkeypatch.setattr(hub, "shape_on_hub", partial(hub.shape_on_hub, endpoint=address))
        found = report("plan", "our/model", "--ram", "1GB", "--ssd-gbps", "2")
        assert found["model"]["name"] == "our/model"
        assert found["model"]["num_experts"] == NUM_EXPERTS
        assert found["machine"]["ssd_gbps"] == 2
        other = saved(tmp_path / "other", experts=9)
        sentence = refusal("plan", "our/model", "--trace", other)
        assert "the trace is of a/model, which differs from our/model" in sentence
        assert "not on this machine" in refusal("plan", "our/none")


@pytest.mark.usefixtures("known_machine", "no_hub")
def test_what_cannot_be_planned_is_refused(qwen: Family, tmp_path: Path) -> None:
    assert "Connection refused" in refusal("plan", "our/model")
    assert "does not exist" in refusal("plan", "nowhere")
    assert "no config.json" in refusal("plan", tmp_path)
    dense = write_talking_model(qwen, tmp_path / "dense", dense=True)
    assert "no experts" in refusal("plan", dense)
    for options, why in (
        (["--ram", "40%"], "'40%' is no amount of memory: give one above 0, such as 48GB"),
        (["--ram", "all"], "is no amount of memory"),
        (["--ram", "much"], "is no amount of memory"),
        (["--ram", "0"], "is no amount of memory"),
        (["--ram", "-5GB"], "is no amount of memory"),
        (["--total-ram", "0"], "0 GB is no memory of a machine: give more than 0"),
        (["--total-ram", "-48"], "-48 GB is no memory"),
        (["--total-ram", "nan"], "nan GB is no memory"),
        (["--total-ram", "48", "--ram", "48GB"], "give the memory once"),
        (["--ssd-gbps", "0"], "no rate of a disk"),
        (["--ssd-gbps", "nan"], "no rate of a disk"),
        (["--ssd-gbps", "inf"], "no rate of a disk"),
        (["--model-gb", "0"], "no size of a model"),
        (["--model-gb", "nan"], "no size of a model"),
        (["--model-gb", "inf"], "no size of a model"),
        (["some/model", "--model-gb", "9"], "not both"),
        (["--plot", "plan.pdf"], "ends in .png"),
        (["--plot", "/none/plan.png"], "is no folder"),
    ):
        assert why in refusal("plan", *options), options


def test_a_folder_that_may_not_be_read_is_one_sentence(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.open

    def guarded(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.parent == model:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", guarded)
    assert "Permission denied" in refusal("plan", model)


SHAPE = ModelShape("a model", 2 * GB, 10**7, 64, 40, 8, 10**5)


@pytest.fixture(params=[0.0, 0.1, 3.0, 100.0])
def machine(request: pytest.FixtureRequest) -> MachineProfile:
    return replace(MACHINE, layer_s=request.param * 1e-3)


def test_more_of_anything_makes_no_model_slower(machine: MachineProfile) -> None:
    rows = [predict(SHAPE, machine, gb * GB, CURVE) for gb in range(3, 40)]
    assert never_worse(rows)
    assert all(a.decode_tps <= b.decode_tps for a, b in pairwise(rows))
    assert all(row.decode_tps > 0 < row.ttft_s for row in rows)
    for better in ({"ssd_gbps": 9.0}, {"ssd_latency_s": 0.0}, {"weights_gbps": 90.0}):
        faster = [predict(SHAPE, replace(machine, **better), gb * GB, CURVE) for gb in (3, 9, 20)]
        assert all(
            f.decode_tps >= predict(SHAPE, machine, f.memory_bytes, CURVE).decode_tps
            for f in faster
        )


def test_no_prediction_reads_faster_than_the_disk() -> None:
    for gb in range(3, 20):
        row = predict(SHAPE, MACHINE, gb * GB, CURVE)
        assert row.bytes_per_token * row.decode_tps <= MACHINE.ssd_gbps * GB * (1 + 1e-9)


def test_slots_are_as_many_as_fit_and_one_per_expert_at_most() -> None:
    for gb in (3, 7, 20, 500):
        capacity = fits(SHAPE, gb * GB)
        per_slot = SHAPE.expert_bytes * SHAPE.num_layers
        assert 1 <= capacity <= SHAPE.num_experts
        assert SHAPE.resident_bytes + capacity * per_slot < gb * GB
        assert capacity == SHAPE.num_experts or fits(SHAPE, gb * GB + per_slot) == capacity + 1
    with pytest.raises(MemoryPlanError) as caught:
        fits(SHAPE, 2 * GB)
    assert caught.value.needed_bytes is not None
    assert fits(SHAPE, caught.value.needed_bytes) == 1
    with pytest.raises(MemoryPlanError):
        fits(SHAPE, caught.value.needed_bytes - 1)


def test_rows_of_a_shape_end_beyond_what_can_be_spared_or_with_all_the_experts() -> None:
    shape = imagined_shape(100)
    few = plan_from_shape(shape, MACHINE, default_curve(), 20 * GB)
    assert few.spare_bytes == 18 * GB
    assert few.rows[-2].memory_bytes <= 18 * GB < few.rows[-1].memory_bytes
    assert few.rows[-2].capacity == fits(shape, 18 * GB)
    assert few.rows[0].capacity == 1
    for row in few.rows:
        assert fits(shape, row.memory_bytes) == row.capacity
        assert row.capacity == 1 or fits(shape, row.memory_bytes - 1) == row.capacity - 1
    every = plan_from_shape(shape, MACHINE, default_curve(), 1000 * GB)
    assert every.rows[-1].capacity == shape.num_experts
    assert every.rows[-1].hit_rate == 1.0
    assert every.rows[0].memory_bytes > shape.resident_bytes
    assert every.machine.available_bytes == 1000 * GB


def test_the_memory_of_a_row_depends_on_the_slots_only() -> None:
    shape = imagined_shape(209)
    by_slots: dict[int, set[int]] = {}
    for ram in (10, 16, 48, 64, 512):
        for row in plan_from_shape(shape, MACHINE, default_curve(), ram * GB).rows:
            by_slots.setdefault(row.capacity, set()).add(row.memory_bytes)
    assert all(len(memory) == 1 for memory in by_slots.values())
    assert by_slots[16] == {bytes_with(shape, 16)}


def test_a_model_that_takes_more_than_can_be_spared_is_planned_up_to_all_the_memory() -> None:
    shape = imagined_shape(209)
    found = plan_from_shape(shape, MACHINE, default_curve(), 10 * GB)
    assert found.rows[0].memory_bytes > found.spare_bytes == 9 * GB
    assert found.recommended == 0
    assert "no row fits what the machine can spare (9.00 GB of 10.00 GB free" in found.why


def test_what_a_plan_assumes_is_said(model: Path) -> None:
    shown = call("plan", "--total-ram", "48", "--model-gb", "209").stdout
    assert "can spare (43.20 GB of 48.00 GB free; the rest is left to other programs)" in shown
    assert "a context of 2048 tokens, less takes less; first token: of a prompt of 512" in shown
    assert "the last row takes more than can be spared" in shown
    found = report("plan", model)
    assert (found["context_tokens"], found["prompt_tokens"]) == (2048, 512)
    assert any(
        "weights_gbps and prefill_weights_gbps are not used" in a for a in found["assumptions"]
    )


def test_the_memory_of_advice_is_that_of_the_last_row() -> None:
    found = plan_from_shape(imagined_shape(209), MACHINE, default_curve(), 48 * GB)
    more = gigabytes(found.rows[-1].memory_bytes - found.spare_bytes)
    (line,) = (line for line in found.advice if "more than can be spared" in line)
    assert line.startswith(f"{more} more than can be spared: {found.rows[-1].decode_tps:.3g} ")
    every = plan_from_shape(imagined_shape(9), MACHINE, default_curve(), 48 * GB)
    assert not any("spared" in line for line in every.advice)


def test_advice_is_sorted_and_brings_something() -> None:
    advice = plan_from_shape(imagined_shape(209), MACHINE, default_curve(), 48 * GB).advice
    gains = [float(line.split(": ")[1].split(" instead")[0]) for line in advice]
    assert gains == sorted(gains, reverse=True)
    assert len(gains) == 3


def test_the_curve_that_ships_rises_to_all() -> None:
    rates = default_curve().hit_rates
    assert (np.diff(rates, axis=1) > 0).all()
    assert (rates[:, 0] == 0).all()
    assert (rates <= 1).all()
