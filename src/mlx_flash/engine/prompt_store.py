"""Prompts that were computed, kept for requests that begin the same: in memory, and on disk.

What a conversation sends again is most of what it sends. Entries are prompt caches of mlx-lm with
the tokens they hold; one is used from its beginning as far as the tokens agree, where the cache can
be trimmed, and else only as a whole.
"""

import contextlib
import copy
import hashlib
import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx_lm.models.cache import (
    CacheList,
    RotatingKVCache,
    load_prompt_cache,
    make_prompt_cache,
    save_prompt_cache,
    trim_prompt_cache,
)

from ..errors import FormatError
from ..formats.safetensors import read_header

_log = logging.getLogger(__name__)

MIN_TOKENS = 32
"""Prompts shorter than this are computed sooner than looked up."""

_MAX_ENTRIES = 64
_MIN_TOKENS_ON_DISK = 256
_ABANDONED_S = 3600.0


@dataclass(eq=False)
class _Entry:
    """A computed prompt: in memory, where `cache` is not None, or in a file, or both."""

    tokens: npt.NDArray[np.int32]
    cache: list[Any] | None
    num_bytes: int
    file: Path | None = None
    used_s: float = field(default_factory=time.monotonic)


class PromptStore:
    """Computed prompts of one model. One thread only."""

    def __init__(
        self, model: Any, identity: str, folder: Path | None = None, disk_bytes: int = 0
    ) -> None:
        """Find what an earlier process left in `folder`, of the model that `identity` names.

        `identity` changes with whatever changes what a cache holds: the weights, the kernels.
        """
        self._classes = [type(entry).__name__ for entry in make_prompt_cache(model)]
        self._window = _window(make_prompt_cache(model))
        self._model = model
        self._key = hashlib.sha256(identity.encode()).hexdigest()[:24]
        self._folder = folder if disk_bytes > 0 else None
        self._disk_bytes = disk_bytes
        self._entries: list[_Entry] = []
        if self._folder is not None:
            self._find_files(self._folder)

    def trims(self, num_tokens: int) -> bool:
        """Return whether a cache of so many tokens can be cut to any beginning of them."""
        return num_tokens < self._window

    @property
    def num_bytes(self) -> int:
        """Memory that the entries take."""
        return sum(entry.num_bytes for entry in self._entries if entry.cache is not None)

    def find(self, tokens: Sequence[int]) -> tuple[list[int], list[Any]] | None:
        """Return the longest known beginning of a prompt, without its last token, and its cache.

        The cache is a copy that shares memory until it is changed.
        """
        wanted = np.asarray(tokens, np.int32)
        shared = [(self._usable(entry, wanted), entry) for entry in self._entries]
        for length, entry in sorted(shared, key=lambda found: -found[0]):
            if length < MIN_TOKENS:
                return None
            cache = self._cache_of(entry)
            if cache is None:
                continue
            entry.used_s = time.monotonic()
            trim_prompt_cache(cache, len(entry.tokens) - length)
            return list(tokens[:length]), cache
        return None

    def put(self, tokens: Sequence[int], cache: list[Any]) -> None:
        """Keep a cache that holds these tokens; what it begins with is not kept beside it."""
        if len(tokens) < MIN_TOKENS:
            return
        array = np.asarray(tokens, np.int32)
        for entry in list(self._entries):
            length = _common(entry.tokens, array)
            if length == len(entry.tokens) and (length == len(array) or self.trims(len(array))):
                self._drop(entry)
        num_bytes = sum(int(layer.nbytes) for layer in cache)
        self._entries.append(_Entry(array, cache, num_bytes))
        if len(self._entries) > _MAX_ENTRIES:
            self._drop(min(self._entries, key=lambda entry: entry.used_s))

    def shrink(self, max_bytes: int) -> None:
        """Forget what was not used for longest until the entries take `max_bytes` or less."""
        in_memory = [entry for entry in self._entries if entry.cache is not None]
        total = sum(entry.num_bytes for entry in in_memory)
        for entry in sorted(in_memory, key=lambda entry: entry.used_s):
            if total <= max_bytes:
                return
            total -= entry.num_bytes
            entry.cache = None
            if entry.file is None:
                self._entries.remove(entry)

    def save(self) -> None:
        """Write to disk what is not there yet, newest first, within the limit.

        Never raises for what the disk refuses.
        """
        if self._folder is None:
            return
        left = self._disk_bytes
        for entry in sorted(self._entries, key=lambda entry: -entry.used_s):
            left -= entry.num_bytes
            if left < 0:
                _remove(entry)
            elif entry.file is None and len(entry.tokens) >= _MIN_TOKENS_ON_DISK:
                self._write(self._folder, entry, entry.cache or [])

    def _usable(self, entry: _Entry, wanted: npt.NDArray[np.int32]) -> int:
        """Return how many tokens of a prompt an entry can stand for; never all of them."""
        length = min(_common(entry.tokens, wanted), len(wanted) - 1)
        whole = length == len(entry.tokens)
        return length if whole or self.trims(len(entry.tokens)) else 0

    def _cache_of(self, entry: _Entry) -> list[Any] | None:
        """Return a copy of an entry's cache, read from disk if need be; None when that fails."""
        if entry.cache is None and entry.file is not None:
            try:
                cache = load_prompt_cache(str(entry.file))
                mx.eval([layer.state for layer in cache])
            except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
                _log.warning("forgetting the prompt in %s: %s", entry.file, error)
                self._drop(entry)
                return None
            entry.cache = cache
        return copy.deepcopy(entry.cache)

    def _drop(self, entry: _Entry) -> None:
        self._entries.remove(entry)
        _remove(entry)

    def _write(self, folder: Path, entry: _Entry, cache: list[Any]) -> None:
        tokens = " ".join(map(str, entry.tokens.tolist()))
        name = hashlib.sha256(tokens.encode()).hexdigest()[:24]
        path = folder / f"{self._key}-{name}.safetensors"
        part = folder / f"{self._key}-{name}.{os.getpid()}.part.safetensors"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            part.touch(mode=0o600)
            try:
                metadata = {"tokens": tokens, "classes": " ".join(self._classes)}
                save_prompt_cache(str(part), cache, metadata)
                part.replace(path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
        except (OSError, RuntimeError) as error:
            _log.warning("cannot keep a prompt in %s: %s", folder, error)
            return
        entry.file = path

    def _find_files(self, folder: Path) -> None:
        """Take in the files of this model, last used first; remove what no limit leaves room for.

        Nothing in a file is trusted: what is not ours, or not whole, is left out.
        """
        with contextlib.suppress(OSError):
            for part in folder.glob("*.part.safetensors"):
                if time.time() - part.stat().st_mtime > _ABANDONED_S:
                    part.unlink(missing_ok=True)
        found = []
        with contextlib.suppress(OSError):
            for path in folder.glob(f"{self._key}-*.safetensors"):
                if (entry := self._entry_in(path)) is not None:
                    found.append((path.stat().st_mtime, entry))
        for age, (_, entry) in enumerate(sorted(found, key=lambda item: -item[0])):
            if age >= _MAX_ENTRIES:
                _remove(entry)
                continue
            entry.used_s = -float(age)
            self._entries.append(entry)

    def _entry_in(self, path: Path) -> _Entry | None:
        try:
            metadata = read_header(path).metadata
            tokens = np.array(metadata["0.tokens"].split(" "), np.int32)
            if metadata["0.classes"].split(" ") != self._classes:
                return None
            return _Entry(tokens, None, path.stat().st_size, path)
        except (FormatError, OSError, KeyError, ValueError, OverflowError) as error:
            _log.debug("%s holds no prompt: %s", path, error)
            return None


def _remove(entry: _Entry) -> None:
    if entry.file is not None:
        with contextlib.suppress(OSError):
            entry.file.unlink(missing_ok=True)
        entry.file = None


def _window(cache: Sequence[Any]) -> float:
    """Return below how many tokens a model's cache can be trimmed: a sliding window forgets."""
    return min(_window_of(entry) for entry in cache)


def _window_of(entry: Any) -> float:
    if isinstance(entry, CacheList):
        return _window(entry.caches)
    if isinstance(entry, RotatingKVCache):
        return float(entry.max_size)
    return math.inf if entry.is_trimmable() else 0


def _common(a: npt.NDArray[np.int32], b: npt.NDArray[np.int32]) -> int:
    """Return how many tokens two sequences share from their beginning."""
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length
