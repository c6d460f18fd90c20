"""Looks for models with experts on the Hub, and learns what they are without their weights.

Of a repository it reads the list of its files, config.json, and the headers of the files that hold
weights. Nothing in them is trusted.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard
from urllib.parse import urlencode

from ..errors import MLXFlashError, ModelNotFoundError
from ..formats.packed import packed_layer
from ..formats.safetensors import Header
from ..planner.shape import experts_per_token, shape_of, stores_experts_one_by_one
from ..planner.speed import ModelShape
from .find import PATTERNS
from .moe_types import MOE_TYPES
from .remote import Remote
from .seen import HubModel, is_commit, is_repository, is_size, is_sound

_LISTED = 500  # models that one request lists: many have no experts
_LOOKS_PER_MODEL = 3  # in some families, some models have no experts
_BATCH = 8
_FILES_AT_ONCE = 8
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_WEIGHTS, _PACKS = "model*.safetensors", "experts-*.safetensors"
_MAX_HEADER_BYTES = 64 * 1024 * 1024  # of all files of a model
_MAX_SHARDS = 512
_MAX_SENTENCE = 300  # names of tensors may be long


@dataclass
class HubAnswer:
    """Models that were looked at, those without experts too; and why others could not be."""

    models: list[HubModel] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    @property
    def num_found(self) -> int:
        """Models that have experts."""
        return sum(model.shape is not None for model in self.models)


@dataclass(frozen=True)
class _Line:
    """A line of the Hub's list of models."""

    id: str
    commit: str | None
    downloads: int


def ask_hub(
    text: str,
    limit: int,
    known: Mapping[str, HubModel],
    on_progress: Callable[[int], None] = lambda num_found: None,
    endpoint: str | None = None,
) -> HubAnswer:
    """Return models with experts whose name has `text` in it, `limit` or a few more.

    The most downloaded come first; MLX checkpoints before others, which are looked for only when
    there is a `text`. What is `known` of a commit is not asked again.

    Raises:
        ModelNotFoundError: the Hub cannot be reached, or does not answer as the Hub does.
    """
    remote = Remote(endpoint)
    answer = HubAnswer()
    done: set[str] = set()
    with ThreadPoolExecutor(_BATCH) as pool:
        for tag in ("mlx", None) if text else ("mlx",):
            lines = [line for line in _listed(remote, text, tag) if line.id not in done]
            for start in range(0, min(len(lines), _LOOKS_PER_MODEL * limit), _BATCH):
                if answer.num_found >= limit:
                    return answer
                batch = lines[start : start + _BATCH]
                done |= {line.id for line in batch}
                for found in pool.map(partial(_look_at, remote, known), batch):
                    if isinstance(found, HubModel):
                        answer.models.append(found)
                    else:
                        answer.unread.append(found)
                    on_progress(min(answer.num_found, limit))
    return answer


def shape_on_hub(repository: str, endpoint: str | None = None) -> ModelShape:
    """Return what a model on the Hub is made of, from the headers of its files.

    Raises:
        ModelNotFoundError: it cannot be read, or has no experts.
        FormatError: a header lies.
    """
    try:
        model = _examined(Remote(endpoint), _Line(repository, None, 0))
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"{repository} is not on this machine, and the Hub does not tell what it is: {error}. "
            "Connect to the network, or give a folder."
        ) from error
    if model.shape is None:
        raise ModelNotFoundError(f"{repository} has no experts: there is nothing to plan.")
    return model.shape


def _listed(remote: Remote, text: str, tag: str | None) -> list[_Line]:
    """Return models that may have experts, the most downloaded first."""
    wanted = {"search": text, "filter": tag, "sort": "downloads", "limit": _LISTED}
    query = [(name, value) for name, value in wanted.items() if value]
    query += [("expand", name) for name in ("config", "downloads", "sha")]
    items = remote.api(f"models?{urlencode(query)}")
    if not isinstance(items, list):
        raise ModelNotFoundError("it sends no list of models")
    lines = {line.id: line for line in _possible(items[:_LISTED])}
    return sorted(lines.values(), key=lambda line: -line.downloads)


def _possible(items: list[Any]) -> Iterator[_Line]:
    """Yield the lines of models that may have experts, as far as the list tells."""
    for item in items:
        if not isinstance(item, dict) or not is_repository(item.get("id")):
            continue
        config, commit, downloads = item.get("config"), item.get("sha"), item.get("downloads")
        model_type = config.get("model_type") if isinstance(config, dict) else None
        if not isinstance(model_type, str) or model_type in MOE_TYPES:
            commit = commit if is_commit(commit) else None
            yield _Line(item["id"], commit, downloads if is_size(downloads) else 0)


def _look_at(remote: Remote, known: Mapping[str, HubModel], line: _Line) -> HubModel | str:
    """Return what a repository holds, or a sentence that says why that is not known."""
    before = known.get(line.id)
    if before is not None and before.commit == line.commit:
        return replace(before, downloads=line.downloads)
    try:
        return _examined(remote, line)
    except MLXFlashError as error:
        return f"{line.id}: {error}"[:_MAX_SENTENCE]


def _examined(remote: Remote, line: _Line) -> HubModel:
    """Return what a repository holds.

    Raises:
        ModelNotFoundError, FormatError: it cannot be read, or is not what it says.
    """
    commit, sizes = _files(remote, line)
    config = remote.json(line.id, commit, "config.json")
    if not isinstance(config, dict):
        raise ModelNotFoundError("its config.json describes no model.")
    model = HubModel(line.id, commit, line.downloads, sum(sizes.values()), None)
    names = [n for n in sizes if fnmatchcase(n, _WEIGHTS) or fnmatchcase(n, _PACKS)]
    if experts_per_token(config) is None or not names:
        return model

    def read(name: str) -> Header:
        largest = _MAX_HEADER_BYTES // len(names)
        return remote.header(line.id, commit, name, sizes[name], largest)

    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        headers = dict(zip(names, pool.map(read, names), strict=True))
    packs = [name for name in names if not fnmatchcase(name, _WEIGHTS)]
    packed = [packed_layer(headers.pop(name), Path(line.id, name)) for name in packs]
    tensors = {name: entry for header in headers.values() for name, entry in header.tensors.items()}
    shape = shape_of(line.id, config, tensors, packed)
    if shape is not None and not is_sound(shape):
        raise ModelNotFoundError("it has sizes that no model has.")
    return replace(model, shape=shape, one_by_one=stores_experts_one_by_one(tensors))


def _files(remote: Remote, line: _Line) -> tuple[str, dict[str, int]]:
    """Return the commit of a repository, and the sizes of the files that a download takes."""
    info = remote.api(f"models/{line.id}/revision/{line.commit or 'main'}?blobs=true")
    info = info if isinstance(info, dict) else {}
    commit, siblings = info.get("sha"), info.get("siblings")
    if not is_commit(commit) or not isinstance(siblings, list):
        raise ModelNotFoundError("it has no list of files.")
    sizes: dict[str, int] = {}
    for item in siblings:
        name = item.get("rfilename") if isinstance(item, dict) else None
        if _is_downloaded(name):
            size = item.get("size")
            if not is_size(size):
                raise ModelNotFoundError(f"{name} has no size that a file has.")
            sizes[name] = size
    shards = sum(name.endswith(".safetensors") for name in sizes)
    if shards > _MAX_SHARDS:
        raise ModelNotFoundError(f"it has {shards} files of weights, which no model has.")
    return commit, sizes


def _is_downloaded(name: Any) -> TypeGuard[str]:
    """Return whether a file is one of a model: by its name, which is no path."""
    return (
        isinstance(name, str)
        and bool(_FILE.fullmatch(name))
        and any(fnmatchcase(name, pattern) for pattern in PATTERNS)
    )
