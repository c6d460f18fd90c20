"""Remembers which experts a model had in memory, so that its next start can read them back.

This is the one thing that running a model writes, besides compiled kernels: when the model is
closed, some kilobytes of expert numbers, in a file of its own, in a folder that the user may name
or leave out. A process that is killed leaves the file of the run before.
"""

import hashlib
import logging
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..cache.expert_cache import ExpertCache
from ..formats.layout import ExpertLayout
from ..streaming.expert_stream import ExpertStream
from .json_file import read_json, replace_json

MAX_MODELS = 64
"""Files that a folder keeps; the oldest go."""

_VERSION = 1
_MAX_BYTES = 1024 * 1024  # ten times what the largest models of today take
_OUR_FILES = re.compile(r"[0-9a-f]{32}\.json(\.[0-9]+-[0-9]+)?")  # the latter are half written

_log = logging.getLogger(__name__)


class ResidentRecord:
    """The file that says which experts of a model are worth having in memory, layer by layer.

    It belongs to the checkpoint's folder, and is worth nothing once a file of experts has another
    size or time of change.
    """

    def __init__(self, folder: Path, model: Path, layouts: Sequence[ExpertLayout]) -> None:
        """Name the record in `folder` of the checkpoint in the folder `model`; read nothing."""
        self._model = str(model.resolve())
        self._num_experts = [layout.num_experts for layout in layouts]
        stamps = {path.name: stamp for layout in layouts for path, stamp in layout.files.items()}
        self._files = {name: [stamp.size, stamp.mtime_ns] for name, stamp in stamps.items()}
        name = hashlib.sha256(os.fsencode(self._model)).hexdigest()[:32]
        self.path = folder / f"{name}.json"

    def read(self) -> list[list[int]]:
        """Return the experts of each layer, most valuable first: none if there is no sound record.

        Nothing in the file is trusted. Never raises for what it finds.
        """
        nothing: list[list[int]] = [[] for _ in self._num_experts]
        try:
            if not self.path.is_file():
                return nothing
            record = read_json(self.path, _MAX_BYTES)
        except (OSError, ValueError, RecursionError) as error:
            _log.debug("cannot read %s: %s", self.path, error)
            return nothing
        experts: list[list[int]] = record["experts"] if self._is_sound(record) else nothing
        return experts

    def write(self, experts: Sequence[Sequence[int]]) -> None:
        """Replace the record, all at once or not at all; let the oldest of too many models go.

        Never raises for what the disk refuses.
        """
        record = {
            "version": _VERSION,
            "model": self._model,
            "files": self._files,
            "experts": [list(of_layer) for of_layer in experts],
        }
        try:
            replace_json(self.path, record)
            _keep_newest(self.path.parent)
        except OSError as error:
            _log.debug("cannot remember the experts in memory in %s: %s", self.path, error)

    def _is_sound(self, record: Any) -> bool:
        """Return whether this is a record of ours, of the checkpoint as it is."""
        if not isinstance(record, dict) or record.get("version") != _VERSION:
            return False
        if record.get("model") != self._model or record.get("files") != self._files:
            return False
        experts = record.get("experts")
        return (
            isinstance(experts, list)
            and len(experts) == len(self._num_experts)
            and all(map(_are_experts, experts, self._num_experts))
        )


def start_warm(stream: ExpertStream, record: ResidentRecord) -> None:
    """Read back in the background what is on record; put on record what is resident at the end.

    The end is when the stream is closed or no longer used, or the program ends.
    """
    remembered = record.read()
    stream.at_close.append(partial(_remember, record, stream.cache, remembered))
    stream.restorer.start(stream, remembered)


def _remember(record: ResidentRecord, cache: ExpertCache, before: Sequence[Sequence[int]]) -> None:
    """Put on record who is resident.

    Where that is fewer than `before`, for want of slots or of time to read them back, the best of
    the others stay on record behind them.
    """
    experts = []
    for layer, known in enumerate(before):
        residents = cache.ranked(layer)
        both = list(dict.fromkeys([*residents, *known]))
        experts.append(both[: max(len(residents), len(known))])
    if any(experts):
        record.write(experts)


def _are_experts(value: Any, num_experts: int) -> bool:
    """Return whether this is a list of a layer's experts, none twice."""
    return (
        isinstance(value, list)
        and all(type(expert) is int and 0 <= expert < num_experts for expert in value)
        and len(set(value)) == len(value)
    )


def _keep_newest(folder: Path) -> None:
    """Delete the oldest records of a folder that holds too many; touch nothing else."""
    ours = [path for path in folder.iterdir() if _OUR_FILES.fullmatch(path.name)]
    ours.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in ours[MAX_MODELS:]:
        path.unlink(missing_ok=True)
