"""What the dashboard shows, as one JSON object, from the worker's reports and their differences."""

from collections.abc import Sequence

from msgspec import Struct

from ... import __version__
from ..messages import ModelCard, Snapshot
from .backend import Backend
from .hints import Hint, hints_of
from .request_metrics import RequestMetrics

_SPEED_REPORTS = 5  # speeds are means over so many reports, a second apart
_HIT_REPORTS = 30


class Model(Struct):
    """What is served."""

    name: str
    model_type: str
    quantization: str
    num_parameters: int
    size_bytes: int
    context_tokens: int
    layers: int
    experts_per_layer: int
    top_k: int
    max_batch: int
    backend: str


class Memory(Struct):
    """Where the memory goes that the model may take, and what is left of it, `free_bytes`.

    `other_bytes` is what MLX holds beyond that: computations under way and freed buffers.
    """

    limit_bytes: int
    resident_bytes: int
    slot_bytes: int
    kv_bytes: int
    remembered_bytes: int
    other_bytes: int
    free_bytes: int
    kv_limit_bytes: int
    peak_bytes: int
    rss_bytes: int


class Now(Struct):
    """The worker's last report. Of `asks` experts `hit_rate` were in memory lately, 0 to 1."""

    running: int
    waiting: int
    prompt_tokens: int
    cached_tokens: int
    generation_tokens: int
    asks: int
    hits: int
    hit_rate: float | None
    bytes_read: int
    ssd_bytes_written: int | None
    disk_temperature_c: float | None
    direct_io: bool
    prefetched: int
    prefetch_hits: int
    resized: int
    slots: list[int]
    layer_hit_rates: list[float | None]
    memory: Memory


class Point(Struct):
    """The second before `time_s`. Speeds are means over the last few seconds, per second.

    `layer_hit_rates` has None for a layer of which nothing was asked; `stall_share` is the share of
    time in which the model waited for experts.
    """

    time_s: float
    generation_tps: float
    prompt_tps: float
    hit_rate: float | None
    read_bps: float
    stall_share: float
    layer_hit_rates: list[float | None]


class State(Struct):
    """All that the page shows; `points` are those that it was not sent yet.

    Requests that were `answered` ended as they should; `failed` are also those refused.
    """

    version: str
    state: str
    uptime_s: float
    restarts: int
    answered: int
    failed: int
    model: Model | None
    now: Now | None
    hints: list[Hint]
    points: list[Point]


def state_of(
    backend: Backend, requests: RequestMetrics, uptime_s: float, after_s: float = 0.0
) -> State:
    """Return the state of now, with the points later than `after_s`."""
    card, snapshot = backend.card, backend.snapshot
    reports = list(backend.reports)
    now, hints = None, []
    if card is not None and snapshot is not None:
        recent = [*reports, snapshot]
        hit_rate = _recent_hit_rate(recent)
        now = _now(card, snapshot, hit_rate)
        hints = hints_of(card, recent[-_SPEED_REPORTS:], hit_rate)
    return State(
        version=__version__,
        state=backend.state,
        uptime_s=uptime_s,
        restarts=backend.restarts,
        answered=requests.ended["stop"] + requests.ended["length"],
        failed=requests.ended["error"],
        model=_model(card) if card else None,
        now=now,
        hints=hints,
        points=points_of(reports, after_s),
    )


def points_of(reports: Sequence[Snapshot], after_s: float = 0.0) -> list[Point]:
    """Return what happened between each report and the one before, for those after `after_s`."""
    points = []
    for index in range(1, len(reports)):
        before, report = reports[index - 1], reports[index]
        if report.time_s > after_s and report.time_s > before.time_s:
            base = reports[max(0, index - _SPEED_REPORTS)]
            points.append(_point(base, before, report))
    return points


def _point(base: Snapshot, before: Snapshot, report: Snapshot) -> Point:
    """Return the point of a report: speeds since `base`, hits since `before`."""
    seconds = max(report.time_s - base.time_s, 0.1)
    return Point(
        time_s=report.time_s,
        generation_tps=round((report.generation_tokens - base.generation_tokens) / seconds, 2),
        prompt_tps=round((report.prefilled_tokens - base.prefilled_tokens) / seconds, 2),
        hit_rate=_rate(report.asks - before.asks, report.hits - before.hits),
        read_bps=round((report.bytes_read - base.bytes_read) / seconds),
        stall_share=round(min(1.0, (report.stall_s - base.stall_s) / seconds), 3),
        layer_hit_rates=[
            _rate(late.asks - early.asks, late.hits - early.hits)
            for early, late in zip(before.layers, report.layers, strict=False)
        ],
    )


def _rate(asks: int, hits: int) -> float | None:
    return round(hits / asks, 3) if asks > 0 else None


def _recent_hit_rate(reports: Sequence[Snapshot]) -> float | None:
    """Return the hit rate of the last half minute, or since the model was loaded when idle."""
    base, last = reports[max(0, len(reports) - 1 - _HIT_REPORTS)], reports[-1]
    recent = _rate(last.asks - base.asks, last.hits - base.hits)
    return _rate(last.asks, last.hits) if recent is None else recent


def _now(card: ModelCard, snapshot: Snapshot, hit_rate: float | None) -> Now:
    return Now(
        running=snapshot.running,
        waiting=snapshot.waiting,
        prompt_tokens=snapshot.prompt_tokens,
        cached_tokens=snapshot.cached_tokens,
        generation_tokens=snapshot.generation_tokens,
        asks=snapshot.asks,
        hits=snapshot.hits,
        hit_rate=hit_rate,
        bytes_read=snapshot.bytes_read,
        ssd_bytes_written=snapshot.ssd_bytes_written,
        disk_temperature_c=snapshot.disk_temperature_c,
        direct_io=snapshot.direct_io,
        prefetched=snapshot.prefetched,
        prefetch_hits=snapshot.prefetch_hits,
        resized=snapshot.resized,
        slots=[layer.capacity for layer in snapshot.layers],
        layer_hit_rates=[_rate(layer.asks, layer.hits) for layer in snapshot.layers],
        memory=_memory(card, snapshot),
    )


def _memory(card: ModelCard, snapshot: Snapshot) -> Memory:
    """Return where memory goes; the slots' share follows their number when that changes."""
    slot_bytes = card.slot_bytes
    if snapshot.resized and card.capacity:
        slot_bytes = slot_bytes * snapshot.capacity // card.capacity
    known = card.resident_bytes + slot_bytes + snapshot.kv_bytes + snapshot.remembered_bytes
    other = max(0, snapshot.model_bytes - known)
    return Memory(
        limit_bytes=snapshot.memory_limit_bytes,
        resident_bytes=card.resident_bytes,
        slot_bytes=slot_bytes,
        kv_bytes=snapshot.kv_bytes,
        remembered_bytes=snapshot.remembered_bytes,
        other_bytes=other,
        free_bytes=max(0, snapshot.memory_limit_bytes - known - other),
        kv_limit_bytes=snapshot.kv_limit_bytes,
        peak_bytes=snapshot.peak_model_bytes,
        rss_bytes=snapshot.rss_bytes,
    )


def _model(card: ModelCard) -> Model:
    return Model(**{name: getattr(card, name) for name in Model.__struct_fields__})
