"""Which models there are, on the Hub and on this machine, and how fast each would run here."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..config import BrowseOptions
from ..errors import MemoryPlanError, ModelNotFoundError
from ..planner.curve import MissCurve
from ..planner.memory import spare_bytes
from ..planner.speed import MachineProfile, predict
from .downloaded import downloaded_models
from .hub import ask_hub
from .seen import HubModel, read_seen, write_seen


@dataclass(frozen=True)
class Source:
    """Where models are looked for: the Hub's address, the folder of its downloads, our record.

    None is where huggingface_hub has them; without a record nothing is remembered.
    """

    endpoint: str | None = None
    downloads: Path | None = None
    record: Path | None = None


@dataclass(frozen=True)
class BrowsedModel:
    """A model and what is expected of it.

    `source` is "cache" when its files are on this machine, else "hub"; `download_bytes` are all
    files. `downloads` is None where the Hub was never asked. `capacity`, `hit_rate` and
    `decode_tps` are None when it does not fit: `why` says what would. `why` also says what stands
    between a model that fits and running it.
    """

    id: str
    source: str
    downloads: int | None
    download_bytes: int
    resident_bytes: int
    expert_bytes: int
    num_experts: int
    num_layers: int
    top_k: int
    capacity: int | None = None
    hit_rate: float | None = None
    decode_tps: float | None = None
    fits: bool = True
    needed_bytes: int | None = None
    why: str = ""


@dataclass(frozen=True)
class BrowseReport:
    """The models asked for, in order; `num_misfits` more do not fit and were left out.

    `offline` when the Hub was not asked or did not answer. `notes` are sentences about that.
    """

    machine: MachineProfile
    memory_bytes: int
    models: list[BrowsedModel]
    num_misfits: int
    offline: bool
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)


def browse(
    options: BrowseOptions,
    machine: MachineProfile,
    curve: MissCurve,
    source: Source,
    on_progress: Callable[[int], None] = lambda num_found: None,
) -> BrowseReport:
    """Return the models that fit, each with its predicted speed on `machine`.

    Raises:
        ModelNotFoundError: the Hub was not asked or reached, and nothing is known without it.
    """
    memory_bytes = options.memory_bytes or spare_bytes(machine.available_bytes)
    seen = read_seen(source.record)
    here = {model.id: model for model in downloaded_models(source.downloads)}
    listed, why_offline, unread = _ask(options, source, seen, on_progress)
    if why_offline and not seen and not here:
        raise ModelNotFoundError(
            f"{why_offline}, and no model was seen or downloaded here before: browse once with the "
            "network."
        )
    downloads = {model.id: model.downloads for model in (*seen.values(), *listed)}
    there = [model for model in listed if model.id not in here][: options.limit]
    rows = [
        _row(model, place, downloads.get(model.id), machine, memory_bytes, curve)
        for place, models in (("cache", list(here.values())), ("hub", there))
        for model in models
        if model.shape is not None and _is_asked_for(model, options)
    ]
    rows.sort(key=_ORDERS[options.order])
    shown = [row for row in rows if row.fits or options.misfits]
    notes = list(_notes(why_offline, unread))
    num_misfits = len(rows) - len(shown)
    return BrowseReport(machine, memory_bytes, shown, num_misfits, bool(why_offline), notes)


def _row(
    model: HubModel,
    source: str,
    downloads: int | None,
    machine: MachineProfile,
    memory_bytes: int,
    curve: MissCurve,
) -> BrowsedModel:
    """Return a model with what is expected of it under a memory limit."""
    shape = model.shape
    assert shape is not None, "models without experts are not listed"
    packing = "stores its experts one by one: run mlx-flash pack first." if model.one_by_one else ""
    row = BrowsedModel(
        model.id,
        source,
        downloads,
        model.download_bytes,
        shape.resident_bytes,
        shape.expert_bytes,
        shape.num_experts,
        shape.num_layers,
        shape.top_k,
        why=packing,
    )
    try:
        plan = predict(shape, machine, memory_bytes, curve)
    except MemoryPlanError as error:
        return replace(row, fits=False, needed_bytes=error.needed_bytes, why=str(error))
    return replace(row, capacity=plan.capacity, hit_rate=plan.hit_rate, decode_tps=plan.decode_tps)


_ORDERS: dict[str, Callable[[BrowsedModel], tuple[float, str]]] = {
    "speed": lambda row: (-(row.decode_tps or 0.0), row.id.lower()),
    "size": lambda row: (row.download_bytes, row.id.lower()),
    "name": lambda row: (0.0, row.id.lower()),
    "downloads": lambda row: (-(row.downloads or 0), row.id.lower()),
}


def _ask(
    options: BrowseOptions,
    source: Source,
    seen: Mapping[str, HubModel],
    on_progress: Callable[[int], None],
) -> tuple[list[HubModel], str, list[str]]:
    """Return models of the Hub, the most downloaded first; why offline, if so; what failed."""
    remembered = [model for model in seen.values() if _is_asked_for(model, options)]
    remembered = [model for model in remembered if model.shape is not None]
    remembered.sort(key=lambda model: -model.downloads)
    if options.local:
        return remembered, "the Hub was not asked", []
    try:
        answer = ask_hub(options.text, options.limit, seen, on_progress, source.endpoint)
    except ModelNotFoundError as error:
        return remembered, f"the Hub cannot be reached ({error})", []
    write_seen(source.record, {**seen, **{model.id: model for model in answer.models}}.values())
    return [model for model in answer.models if model.shape is not None], "", answer.unread


def _is_asked_for(model: HubModel, options: BrowseOptions) -> bool:
    return options.text.lower() in model.id.lower()


def _notes(why_offline: str, unread: Sequence[str]) -> Iterator[str]:
    if why_offline:
        yield f"offline, {why_offline}: what was downloaded here, and seen of the Hub before."
    if unread:
        yield f"{len(unread)} models of the Hub could not be read; {unread[0]}"
