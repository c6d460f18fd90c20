"""Plans: what a model will do on this machine under a row of memory limits, before it runs."""

import contextlib
import inspect
import json
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from ..config import CacheOptions, MemoryLimit, ReadOptions
from ..errors import OptionError, TraceError, UnsupportedModelError
from ..planner.curve import MissCurve
from ..planner.memory import ModelNeed, gigabytes, plan_memory, spare_bytes
from ..planner.speed import (
    CONTEXT_TOKENS,
    PROMPT_TOKENS,
    MachineProfile,
    ModelShape,
    ModelSpeed,
    PlanRow,
    bytes_with,
    fits,
    predict_with,
    speed_of,
)
from ..streaming.expert_stream import ExpertStream
from ..telemetry.machine import num_cores
from ..telemetry.trace import Routing, Trace
from .alone import measured_speed, reading_alone, weights_gbps
from .backend import backend_name, model_memory
from .disk import measure_disk
from .find import bundled_model, model_name
from .load import LoadedModel, ModelFiles, expert_counts, load_model
from .replay import split_slots

BUNDLED_CURVE = "the bundled model"
"""The source of the curve that ships with us."""

_ASSUMED_RATES = (2.0, 1e-4, 10.0, 2e-3, 100.0)  # as `MachineProfile` has them
_LITTLE_BYTES = 200 * 10**6  # a disk is hardly awake before it has read that much
_PROMPT_TOKENS, _TIMED_TOKENS, _TIMED_CAPACITY = 64, 16, 4
_SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
_ENOUGH = 0.95  # of the best predicted speed: more memory is better used for other things
_WORTH_IT = 1.02  # times the speed: less is not worth advice
_THREE_BITS = 3.5 / 4.5  # the size of an expert of 3 bits beside one of 4, groups of 64


@dataclass(frozen=True)
class PlanReport:
    """Rows of memory limits with what to expect; `rows[recommended]` is the one to take, and why.

    Rows go up to the `spare_bytes` that the machine can spare, and one beyond them. Their memory is
    for `context_tokens` of KV cache, their first token for `prompt_tokens`. `advice` says what
    would help most, `assumptions` what was not measured.
    """

    machine: MachineProfile
    model: dict[str, Any]
    rows: list[PlanRow]
    recommended: int
    why: str
    advice: list[str]
    assumptions: list[str]
    spare_bytes: int
    context_tokens: int = CONTEXT_TOKENS
    prompt_tokens: int = PROMPT_TOKENS

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)


def machine_profile(folder: Path | None = None, measure: bool = True) -> MachineProfile:
    """Return what this machine has; the disk is that of a model's folder, or of the bundled model.

    Takes some seconds, in which the bundled model decodes a little; without `measure`, all rates
    are assumed.
    """
    memory = model_memory()
    machine = MachineProfile(
        backend_name(), memory.total_bytes, memory.available_bytes, *_ASSUMED_RATES
    )
    if not measure:
        return replace(machine, assumed=("No rate was measured.",))
    assumed = []
    disk = measure_disk(sorted((folder or bundled_model()).glob("*.safetensors")))
    if disk.gbps is None or disk.latency_s is None:
        assumed.append(f"The disk was not measured: {machine.ssd_gbps} GB/s are assumed.")
    else:
        machine = replace(machine, ssd_gbps=disk.gbps, ssd_latency_s=disk.latency_s)
        if disk.read_bytes < _LITTLE_BYTES:
            read = gigabytes(disk.read_bytes)
            assumed.append(f"The disk was measured on {read}: large models may read faster.")
    return _with_computing(replace(machine, assumed=tuple(assumed)))


def _with_computing(machine: MachineProfile) -> MachineProfile:
    """Return a machine with the rates at which it computes, by the bundled model."""
    files = ModelFiles.open(None)
    loaded = load_model(
        files.checkpoint, MemoryLimit(), CacheOptions(), context_tokens=512, always_stream=True
    )
    with contextlib.closing(loaded):
        small = measured_speed(loaded, _prompt(files), _TIMED_TOKENS)
    rate = weights_gbps()
    num_layers = len(loaded.layouts)
    active = loaded.plan.resident_bytes + sum(
        loaded.top_k * layout.expert_bytes for layout in loaded.layouts
    )
    return replace(
        machine,
        weights_gbps=rate,
        layer_s=max(0.0, small.decode_s - active / rate / 1e9) / num_layers,
        prefill_weights_gbps=active / small.prefill_s / 1e9,
    )


def _prompt(files: ModelFiles) -> list[int]:
    text = inspect.getsource(textwrap)
    return list(files.tokenizer.encode(text))[:_PROMPT_TOKENS]


def default_curve() -> MissCurve:
    """Return the hit rates of the bundled model on held-out text, with the default policy."""
    text = (resources.files("mlx_flash.assets") / "curve.json").read_text()
    curve = json.loads(text)
    return MissCurve(
        curve["source"],
        curve["num_experts"],
        curve["top_k"],
        np.array(curve["capacities"]),
        np.array(curve["hit_rates"]),
    )


def plan_local(
    folder: Path,
    curve: MissCurve,
    ram_bytes: int | None,
    ssd_gbps: float | None,
    trace: Trace | None = None,
) -> PlanReport:
    """Return the plan of a model that is here: its slots as when it runs, its computing measured.

    Slots are split among layers by a `trace` where that is better.

    Raises:
        FormatError, UnsupportedModelError, MemoryPlanError: as their names say.
        TraceError: the trace is of another model.
    """
    files = ModelFiles.open(folder)
    loaded = load_model(
        files.checkpoint,
        MemoryLimit(),
        CacheOptions(capacity=_TIMED_CAPACITY),
        context_tokens=CONTEXT_TOKENS,
        read_options=ReadOptions(direct=True),  # through the page cache a disk seems slower
    )
    if loaded.stream is None:
        raise UnsupportedModelError("the model has no experts: there is nothing to plan.")
    shape = _shape_of(loaded, folder)
    with contextlib.closing(loaded):
        if trace is not None:
            check_trace(trace.routing, shape)
        speed = measured_speed(loaded, _prompt(files), _TIMED_TOKENS)
        machine = _with_disk(machine_profile(measure=False), loaded.stream)
    if ssd_gbps is not None:
        machine = replace(machine, ssd_gbps=ssd_gbps)
    machine = _with_memory(machine, ram_bytes)
    rows = []
    for memory, capacity in _limits(loaded.needs, machine):
        row = predict_with(shape, machine, memory, capacity, curve, speed)
        found = split_slots(trace, CacheOptions.policy, capacity) if trace else None
        rows.append(replace(row, layer_slots=tuple(found[0])) if found else row)
    return _report(shape, machine, rows, curve, speed, ())


def _limits(needs: Sequence[ModelNeed], machine: MachineProfile) -> list[tuple[int, int]]:
    """Return memory limits with the slots per layer that loading takes with each.

    All experts are in memory in slots, or resident, whichever takes less.

    Raises:
        MemoryPlanError: not even one slot per layer fits.
    """
    least = [min(need.streamed_bytes(1), need.full_bytes) for need in needs]
    within = _within(min(least), machine)
    possible = [need for need, num_bytes in zip(needs, least, strict=True) if num_bytes <= within]
    need = (possible or needs[-1:])[0]
    most = plan_memory(need, within).capacity or need.num_experts
    whole = (need.full_bytes, need.num_experts)
    capacities = _capacities(need.num_experts, most)
    return sorted({min((need.streamed_bytes(slots), slots), whole) for slots in capacities})


def _within(least_bytes: int, machine: MachineProfile) -> int:
    """Return the memory to fill with slots: what can be spared, or all if that is too little."""
    spare = spare_bytes(machine.available_bytes)
    return spare if least_bytes <= spare else machine.memory_bytes


def check_trace(routing: Routing, shape: ModelShape) -> None:
    """Raise TraceError where recorded routing is not of a model of this shape."""
    of_trace = (len(routing.num_experts), max(routing.num_experts), routing.top_k)
    if of_trace != (shape.num_layers, shape.num_experts, shape.top_k):
        raise _of_another(routing, shape.name)


def check_trace_early(routing: Routing, folder: Path) -> None:
    """Raise TraceError where routing is of other layers or experts than the model in a folder has.

    Reads no weight; the top-k is known when the model is loaded.
    """
    if list(routing.num_experts) != expert_counts(ModelFiles.open(folder).checkpoint):
        raise _of_another(routing, model_name(folder))


def _of_another(routing: Routing, model: str) -> TraceError:
    return TraceError(
        f"the trace is of {routing.model}, which differs from {model} in layers, experts or top-k: "
        "give a trace of the model itself."
    )


def _is_of(curve: MissCurve, shape: ModelShape) -> bool:
    """Return whether a curve has the layers, experts and top-k of a shape."""
    of_curve = (len(curve.hit_rates), curve.num_experts, curve.top_k)
    return of_curve == (shape.num_layers, shape.num_experts, shape.top_k)


def imagined_shape(model_gb: float) -> ModelShape:
    """Return a model of a size in GB, in the proportions of Qwen3-235B-A22B.

    Raises:
        OptionError: that is no size of a model.
    """
    if not 0.1 <= model_gb <= 10**5:
        raise OptionError(f"{model_gb} GB is no size of a model: give 0.1 or more.")
    num_layers, num_experts, top_k, resident_share, kv_bytes = 94, 128, 8, 0.035, 192_512
    total = model_gb * 1e9
    expert_bytes = round((1 - resident_share) * total / num_layers / num_experts)
    name = f"a model of {model_gb:g} GB"
    return ModelShape(
        name, round(resident_share * total), expert_bytes, num_experts, num_layers, top_k, kv_bytes
    )


def plan_from_shape(
    shape: ModelShape, machine: MachineProfile, curve: MissCurve, ram_bytes: int | None
) -> PlanReport:
    """Return the plan of a model from its sizes alone.

    Raises:
        MemoryPlanError: it fits no memory that this machine has.
    """
    machine = _with_memory(machine, ram_bytes)
    most = fits(shape, _within(bytes_with(shape, 1), machine))
    speed = speed_of(shape, machine)
    rows = [
        predict_with(shape, machine, bytes_with(shape, slots), slots, curve, speed)
        for slots in _capacities(shape.num_experts, most)
    ]
    note = "Computing was not measured on this model: it is scaled from the bundled one."
    return _report(shape, machine, rows, curve, speed, (note,))


def _with_memory(machine: MachineProfile, ram_bytes: int | None) -> MachineProfile:
    """Return a machine with other memory, all of it free; None leaves it as it is."""
    if ram_bytes is None:
        return machine
    return replace(machine, memory_bytes=ram_bytes, available_bytes=ram_bytes)


def _with_disk(machine: MachineProfile, stream: ExpertStream) -> MachineProfile:
    """Return a machine with the rate at which a model's own experts are read.

    What stays assumed are the two times that only tell how much of the reading is waited for.
    """
    measured = reading_alone(stream)
    return replace(
        machine,
        ssd_gbps=measured.gbps,
        read_cpu_s=measured.cpu_s_per_byte / num_cores(),
        assumed=(
            f"{machine.layer_s * 1e3:g} ms of a layer besides its weights, and "
            f"{machine.ssd_latency_s * 1e3:g} ms until a read begins, are assumed; weights_gbps "
            "and prefill_weights_gbps are not used: this model's computing was measured.",
        ),
    )


def _shape_of(loaded: LoadedModel, folder: Path) -> ModelShape:
    """Return the shape of a model that was loaded."""
    layouts = loaded.layouts
    return ModelShape(
        model_name(folder),
        loaded.plan.resident_bytes,
        round(statistics.fmean(layout.expert_bytes for layout in layouts)),
        max(layout.num_experts for layout in layouts),
        len(layouts),
        loaded.top_k,
        0,
        len(layouts[0].pieces),
    )


def _capacities(num_experts: int, most: int) -> list[int]:
    """Return slots per layer to show: one, shares of the `most` that fit, and what comes next."""
    fitting = {max(1, round(share * most)) for share in _SHARES}
    above = {round(share * num_experts) for share in _SHARES if share * num_experts > most}
    return [*sorted({1} | fitting), *sorted(above)[:1]]


def _report(
    shape: ModelShape,
    machine: MachineProfile,
    rows: list[PlanRow],
    curve: MissCurve,
    speed: ModelSpeed,
    notes: tuple[str, ...],
) -> PlanReport:
    spare = spare_bytes(machine.available_bytes)
    spared = f"{gigabytes(spare)} of {gigabytes(machine.available_bytes)} free"
    fitting = [n for n, row in enumerate(rows) if row.memory_bytes <= spare] or [0]
    best = max(rows[n].decode_tps for n in fitting)
    recommended = next(n for n in fitting if rows[n].decode_tps >= _ENOUGH * best)
    row = rows[recommended]
    why = (
        f"{gigabytes(row.memory_bytes)} is the least that gives {_ENOUGH:.0%} of the fastest that "
        f"fits what the machine can spare ({spared}; the rest is left to other programs)."
    )
    if row.memory_bytes > spare:
        why = (
            f"no row fits what the machine can spare ({spared}; the rest is left to other "
            "programs): this is the smallest."
        )
    assumptions = [*machine.assumed, *notes]
    if curve.source == BUNDLED_CURVE and shape.name != model_name(bundled_model()):
        assumptions.append(
            f"Hit rates are those of {curve.source}, at the same share of experts: record the "
            "model's own with mlx-flash trace, and give --trace."
        )
    elif curve.source != BUNDLED_CURVE and not _is_of(curve, shape):
        assumptions.append(f"Hit rates are those of {curve.source}, at the same share of experts.")
    larger = rows[-1] if rows[-1].memory_bytes > spare else row
    more = gigabytes(max(0, larger.memory_bytes - spare))
    ideas = [(f"{more} more than can be spared", larger.decode_tps)]
    ideas += _other_ideas(shape, machine, row, curve, speed)
    advice = [
        f"{name}: {tps:.3g} instead of {row.decode_tps:.3g} tokens/s"
        for name, tps in sorted(ideas, key=lambda idea: -idea[1])
        if tps > _WORTH_IT * row.decode_tps
    ]
    model = asdict(shape)
    return PlanReport(machine, model, rows, recommended, why, advice, assumptions, spare)


def _other_ideas(
    shape: ModelShape, machine: MachineProfile, row: PlanRow, curve: MissCurve, speed: ModelSpeed
) -> list[tuple[str, float]]:
    """Return what might help besides memory, with the tokens/s it would bring."""
    smaller = replace(shape, expert_bytes=round(shape.expert_bytes * _THREE_BITS))
    slots = min(shape.num_experts, int(row.capacity / _THREE_BITS))
    faster = replace(machine, ssd_gbps=2 * machine.ssd_gbps)
    on_faster = predict_with(shape, faster, 0, row.capacity, curve, speed)
    of_smaller = predict_with(smaller, machine, 0, slots, curve, speed)
    return [
        ("a disk twice as fast", on_faster.decode_tps),
        ("3 bits an expert weight", of_smaller.decode_tps),
    ]
