"""Task profiles: which experts a kind of text uses most, to have them in memory from the start."""

import hashlib
import os
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from ..config import TASKS
from ..errors import OptionError, TraceError
from ..folders import check_writable, profile_folder
from ..streaming.expert_stream import ExpertStream
from ..telemetry.trace import Trace
from .find import model_name
from .json_file import read_json, replace_json
from .load import LoadedModel, ModelFiles, expert_counts

_VERSION = 1
_MAX_BYTES = 16 * 1024 * 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

Ranking = list[list[int]]
"""The experts of each layer, those that are used most first."""


def ranking_of(trace: Trace) -> Ranking:
    """Return the experts that a trace uses, layer by layer, the most used first."""
    ranking = []
    for layer, num_experts in enumerate(trace.routing.num_experts):
        uses = np.bincount(trace.experts[:, layer].reshape(-1), minlength=num_experts)
        order = np.argsort(-uses, kind="stable")
        ranking.append([int(expert) for expert in order if uses[expert]])
    return ranking


def check_name(name: str) -> str:
    """Return a profile's name.

    Raises:
        OptionError: it cannot be one.
    """
    if not _NAME.fullmatch(name):
        raise OptionError(
            f"{name!r} cannot be the name of a profile: take letters, digits, - and _, at most 64."
        )
    return name


def profile_of(trace: Trace) -> dict[str, Any]:
    """Return what the profile of a trace's model has in its file."""
    return {
        "version": _VERSION,
        "model": trace.routing.model,
        "num_experts": list(trace.routing.num_experts),
        "tokens": trace.num_tokens,
        "experts": ranking_of(trace),
    }


def check_can_save(name: str, model: str, folder: Path) -> None:
    """Return when a profile of a model can be written under a name; make the folder for it.

    Raises:
        OptionError: a name that cannot be one, or the disk refuses.
    """
    path = _path_of(check_name(name), model, folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(
            f"cannot write {path}: {error.strerror or error}: set MLX_FLASH_CACHE to a folder that "
            "you may write to."
        ) from error
    check_writable(path)


def is_there(name: str, model: str, num_experts: Sequence[int], folder: Path) -> str | None:
    """Return "own" or "shipped" where a profile of a name would be found for a model, else None."""
    if os.path.isfile(_path_of(check_name(name), model, folder)):
        return "own"
    shipped = _shipped(name)
    fits = os.path.isfile(shipped) and _read(shipped)["num_experts"] == list(num_experts)
    return "shipped" if fits else None


def save_profile(name: str, trace: Trace, folder: Path) -> Path:
    """Write the profile of a trace's model under a name; return the file.

    Raises:
        OptionError, TraceError: a name that cannot be one; the disk refuses.
    """
    path = _path_of(check_name(name), trace.routing.model, folder)
    try:
        replace_json(path, profile_of(trace))
    except OSError as error:
        raise TraceError(f"cannot write {path}: {error.strerror or error}.") from error
    return path


def find_profile(
    name: str, model: str, num_experts: Sequence[int], folder: Path | None = None
) -> Ranking:
    """Return the profile of a name for a model: from `folder`, or one that ships with us.

    Those that ship are for the bundled model, and what has been made of it.

    Raises:
        OptionError: there is none, or it cannot be a name.
        TraceError: the file is damaged.
    """
    candidates = [] if folder is None else [_path_of(check_name(name), model, folder)]
    for path in [*candidates, _shipped(check_name(name))]:
        if os.path.isfile(path):  # False also where we may not look
            profile = _read(path)
            if profile["num_experts"] == list(num_experts):
                return list(profile["experts"])
    text = "" if name in TASKS else " --text FILE"
    looked = "" if folder is None else f" (it is not in {folder})"
    raise OptionError(
        f"there is no profile {name!r} for {model}: make it with "
        f"mlx-flash trace MODEL --profile {name}{text}{looked}."
    )


def load_experts(stream: ExpertStream, ranking: Ranking) -> int:
    """Read the best experts of a ranking into free slots, wait for them, return their number."""
    before = stream.counters.restored
    slots = stream.cache.capacities
    best = [layer[:capacity] for layer, capacity in zip(ranking, slots, strict=True)]
    stream.restorer.start(stream, best)
    if stream.restorer.thread is not None:
        stream.restorer.thread.join()
    return stream.counters.restored - before


def load_profile(loaded: LoadedModel, name: str, folder: Path | None) -> None:
    """Read the experts of a profile into free slots; all are there where nothing is streamed.

    Raises:
        OptionError, TraceError: as `find_profile` does, whether anything is read or not.
    """
    num_experts = [layout.num_experts for layout in loaded.layouts]
    ranking = find_profile(name, model_name(loaded.checkpoint.folder), num_experts, folder)
    if loaded.stream is not None:
        load_experts(loaded.stream, ranking)


def bring_in(stream: ExpertStream, ranking: Ranking) -> int:
    """Read the best experts of a ranking into slots that others have to leave; return how many.

    The model must be at rest meanwhile.
    """
    for number, layer in list(stream.layer_streams.items()):
        layer.make_room(ranking[number][: stream.cache.capacities[number]])
    return load_experts(stream, ranking)


def get_warmup_experts(
    model: str | Path | None, task: str, folder: str | Path | None = None
) -> Ranking:
    """Return the experts of each streamed layer that a task uses most, most used first.

    `model` is a folder, a Hub id or None for the bundled model. `task` is a profile: one that
    `mlx-flash trace --profile` has left in `folder`, or one that ships with us. None is where the
    command line keeps them: the user's cache folder, or where MLX_FLASH_CACHE says.

    Raises:
        OptionError: there is no such profile for that model.
        ModelNotFoundError, FormatError, UnsupportedModelError: as their names say.
    """
    checkpoint = ModelFiles.open(model).checkpoint
    where = profile_folder() if folder is None else Path(folder).expanduser()
    return find_profile(task, model_name(checkpoint.folder), expert_counts(checkpoint), where)


def _shipped(name: str) -> Path:
    """Return the file of a profile that ships with us, which need not be there."""
    return Path(str(resources.files("mlx_flash.assets") / "profiles" / f"{name}.json"))


def _path_of(name: str, model: str, folder: Path) -> Path:
    """Return where a profile of a model lies; the model's name never becomes part of a path."""
    digest = hashlib.sha256(model.encode(errors="surrogatepass")).hexdigest()
    return folder / digest[:32] / f"{name}.json"


def _read(path: Path) -> dict[str, Any]:
    """Return a profile from a file, of which nothing is trusted."""
    try:
        profile = read_json(path, _MAX_BYTES)
    except (OSError, ValueError, RecursionError) as error:
        raise TraceError(f"{path} cannot be read: delete it and make it again.") from error
    if not isinstance(profile, dict) or not _is_sound(profile):
        raise TraceError(f"{path} is damaged: delete it and make it again.")
    return profile


def _is_sound(profile: dict[str, Any]) -> bool:
    counts, experts = profile.get("num_experts"), profile.get("experts")
    return (
        profile.get("version") == _VERSION
        and isinstance(counts, list)
        and isinstance(experts, list)
        and len(counts) == len(experts)
        and all(map(_ranks, experts, counts))
    )


def _ranks(experts: Any, count: Any) -> bool:
    """Return whether this is a list of experts below `count`, none twice."""
    return (
        type(count) is int
        and isinstance(experts, list)
        and all(type(expert) is int and 0 <= expert < count for expert in experts)
        and len(set(experts)) == len(experts)
    )
