"""What was seen of the Hub: a file that answers when the Hub cannot, and spares asking it twice."""

import logging
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeGuard

from ..planner.speed import ModelShape
from .json_file import read_json, replace_json

MAX_MODELS = 2000
"""Models that the file keeps: the most downloaded."""

MAX_BYTES = 1 << 50
"""A size above this is no size: the largest models take a thousandth."""

_VERSION = 1
_MAX_FILE_BYTES = 4 * 1024 * 1024
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SIZES = ("resident_bytes", "expert_bytes", "kv_bytes_per_token")
_COUNTS = ("num_experts", "num_layers", "top_k", "reads_per_expert")
_MAX_COUNT = 1 << 20

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HubModel:
    """A repository at a commit: what it takes to download, in bytes, and what a model it holds.

    `shape` is None when there are no experts to stream. `one_by_one` experts must be packed first.
    """

    id: str
    commit: str
    downloads: int
    download_bytes: int
    shape: ModelShape | None
    one_by_one: bool = False


def is_repository(name: Any) -> TypeGuard[str]:
    """Return whether this is a name that a repository can have: owner/name, and no path."""
    return isinstance(name, str) and bool(_REPOSITORY.fullmatch(name))


def is_commit(name: Any) -> TypeGuard[str]:
    """Return whether this is the name of a commit."""
    return isinstance(name, str) and bool(_COMMIT.fullmatch(name))


def is_size(value: Any, largest: int = MAX_BYTES) -> TypeGuard[int]:
    """Return whether this is a number of bytes, or of anything else, from 0 to `largest`."""
    return type(value) is int and 0 <= value <= largest


def read_seen(path: Path | None) -> dict[str, HubModel]:
    """Return the models on record by their id: none if there is no sound record.

    Nothing in the file is trusted; what is unsound in it is left out. Never raises for what it
    finds.
    """
    if path is None:
        return {}
    try:
        record = read_json(path, _MAX_FILE_BYTES)
    except (OSError, ValueError, RecursionError) as error:
        _log.debug("cannot read %s: %s", path, error)
        return {}
    if not isinstance(record, dict) or record.get("version") != _VERSION:
        return {}
    items = record.get("models")
    models = map(_model, items if isinstance(items, list) else [])
    return {model.id: model for model in models if model is not None}


def write_seen(path: Path | None, models: Collection[HubModel]) -> None:
    """Replace the record, all at once or not at all. Never raises for what the disk refuses."""
    if path is None:
        return
    kept = sorted(models, key=lambda model: -model.downloads)[:MAX_MODELS]
    record = {"version": _VERSION, "models": [asdict(model) for model in kept]}
    try:
        replace_json(path, record)
    except OSError as error:
        _log.debug("cannot remember the models of the Hub in %s: %s", path, error)


def _model(item: Any) -> HubModel | None:
    """Return the model that an item of the record describes, or None."""
    if not isinstance(item, dict) or item.keys() != HubModel.__dataclass_fields__.keys():
        return None
    sound = (
        is_repository(item["id"])
        and is_commit(item["commit"])
        and is_size(item["downloads"])
        and is_size(item["download_bytes"])
        and type(item["one_by_one"]) is bool
    )
    if not sound:
        return None
    if item["shape"] is None:
        return HubModel(**item)
    shape = _shape(item["shape"], item["id"])
    return None if shape is None else HubModel(**item | {"shape": shape})


def _shape(item: Any, name: str) -> ModelShape | None:
    if not isinstance(item, dict) or item.keys() != ModelShape.__dataclass_fields__.keys():
        return None
    shape = ModelShape(**item)
    return shape if shape.name == name and is_sound(shape) else None


def is_sound(shape: ModelShape) -> bool:
    """Return whether a shape has the numbers that a model can have."""
    values = asdict(shape)
    return (
        all(is_size(values[name]) for name in _SIZES)
        and all(is_size(values[name], _MAX_COUNT) and values[name] > 0 for name in _COUNTS)
        and shape.expert_bytes > 0
        and shape.total_bytes <= MAX_BYTES
    )
