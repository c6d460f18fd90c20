"""Computed prompts: found again as far as they agree, forgotten by bytes, kept on disk."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import ArraysCache, KVCache, RotatingKVCache

from mlx_flash.engine.prompt_store import MIN_TOKENS, PromptStore

BYTES = 2 * 2 * 256 * 4 * 4  # K and V, heads, tokens that a cache grows by, width, float32


class Model:
    """A model of one attention layer, as far as its cache goes."""

    layers = (0,)

    def make_cache(self) -> list[Any]:
        return [KVCache()]


class Recurrent(Model):
    """One whose cache cannot be trimmed."""

    def make_cache(self) -> list[Any]:
        return [ArraysCache(1)]


class Sliding(Model):
    """One with a layer that looks at the last 64 tokens, beside one that looks at all."""

    def make_cache(self) -> list[Any]:
        return [RotatingKVCache(64), KVCache()]


def cache_of(tokens: list[int]) -> list[Any]:
    """Return a cache whose keys are the tokens themselves, so that a test can read them back."""
    cache = KVCache()
    keys = mx.array(tokens, mx.float32)[None, None, :, None] * mx.ones((1, 2, 1, 4))
    cache.update_and_fetch(keys, -keys)
    mx.eval(cache.state)
    return [cache]


def tokens_in(cache: list[Any]) -> list[int]:
    return [int(value) for value in np.asarray(cache[0].state[0])[0, 0, : cache[0].offset, 0]]


def text(start: int, length: int) -> list[int]:
    return list(range(start, start + length))


@pytest.fixture
def store() -> PromptStore:
    return PromptStore(Model(), "model")


def test_a_prompt_is_found_as_far_as_it_agrees(store: PromptStore) -> None:
    store.put(text(0, 100), cache_of(text(0, 100)))
    found = store.find([*text(0, 60), 7, 7, 7])
    assert found is not None
    assert found[0] == text(0, 60)
    assert tokens_in(found[1]) == text(0, 60)


def test_the_last_token_of_a_prompt_is_always_left_to_compute(store: PromptStore) -> None:
    store.put(text(0, 100), cache_of(text(0, 100)))
    for length in (50, 100):
        found = store.find(text(0, length))
        assert found is not None
        assert tokens_in(found[1]) == text(0, length - 1)


def test_the_longest_beginning_is_taken(store: PromptStore) -> None:
    store.put([*text(0, 40), 999], cache_of([*text(0, 40), 999]))
    store.put([*text(0, 60), 998], cache_of([*text(0, 60), 998]))
    found = store.find(text(0, 90))
    assert found is not None
    assert len(found[0]) == 60


def test_what_is_found_can_be_changed_without_changing_what_is_kept(store: PromptStore) -> None:
    store.put(text(0, 100), cache_of(text(0, 100)))
    found = store.find(text(0, 50))
    assert found is not None
    more = mx.ones((1, 2, 3, 4))
    found[1][0].update_and_fetch(more, more)
    mx.eval(found[1][0].state)
    again = store.find(text(0, 100))
    assert again is not None
    assert tokens_in(again[1]) == text(0, 99)


def test_short_prompts_are_not_kept_nor_found(store: PromptStore) -> None:
    store.put(text(0, MIN_TOKENS - 1), cache_of(text(0, MIN_TOKENS - 1)))
    assert store.num_bytes == 0
    store.put(text(0, 100), cache_of(text(0, 100)))
    assert store.find([*text(0, MIN_TOKENS - 1), 999]) is None
    assert store.find(text(500, 40)) is None


def test_a_longer_prompt_takes_the_place_of_its_beginning(store: PromptStore) -> None:
    store.put(text(0, 50), cache_of(text(0, 50)))
    store.put(text(0, 80), cache_of(text(0, 80)))
    assert store.num_bytes == BYTES


def test_the_prompt_unused_for_longest_is_forgotten_first(store: PromptStore) -> None:
    for start in (0, 1000, 2000):
        store.put(text(start, 50), cache_of(text(start, 50)))
    assert store.find(text(0, 60)) is not None  # used again
    store.shrink(2 * BYTES)
    assert store.find(text(1000, 60)) is None
    assert store.find(text(0, 60)) is not None
    store.shrink(0)
    assert store.num_bytes == 0


def test_a_cache_that_cannot_be_trimmed_is_used_as_a_whole_or_not_at_all() -> None:
    store = PromptStore(Recurrent(), "model")
    state = ArraysCache(1)
    state[0] = mx.ones((1, 4))
    store.put(text(0, 50), [state])
    assert store.find(text(0, 50)) is None
    assert store.find(text(0, 49)) is None
    found = store.find(text(0, 60))
    assert found is not None
    assert found[0] == text(0, 50)


def test_a_window_that_forgot_tokens_is_used_as_a_whole_or_not_at_all() -> None:
    def computed(length: int) -> list[Any]:
        cache = Sliding().make_cache()
        for entry in cache:
            entry.update_and_fetch(mx.ones((1, 2, length, 4)), mx.ones((1, 2, length, 4)))
        return cache

    store = PromptStore(Sliding(), "model")
    store.put(text(0, 60), computed(60))
    found = store.find([*text(0, 50), 7])
    assert found is not None
    assert [entry.offset for entry in found[1]] == [50, 50]

    store.put(text(0, 90), computed(90))
    assert store.find([*text(0, 80), 7]) is not None
    found = store.find([*text(0, 80), 7])
    assert found is not None
    assert len(found[0]) == found[1][0].offset == 60
    found = store.find([*text(0, 90), 7])
    assert found is not None
    assert len(found[0]) == found[1][0].offset == 90


def test_prompts_come_back_after_a_restart(tmp_path: Path) -> None:
    store = PromptStore(Model(), "model", tmp_path, 10**9)
    store.put(text(0, 300), cache_of(text(0, 300)))
    store.put(text(900, 40), cache_of(text(900, 40)))  # sooner computed than read
    store.save()
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    again = PromptStore(Model(), "model", tmp_path, 10**9)
    assert again.num_bytes == 0  # not read before it is asked for
    found = again.find(text(0, 200))
    assert found is not None
    assert tokens_in(found[1]) == text(0, 199)


def test_prompts_of_another_model_are_not_found(tmp_path: Path) -> None:
    store = PromptStore(Model(), "model", tmp_path, 10**9)
    store.put(text(0, 300), cache_of(text(0, 300)))
    store.save()
    assert PromptStore(Model(), "another", tmp_path, 10**9).find(text(0, 300)) is None
    assert PromptStore(Recurrent(), "model", tmp_path, 10**9).find(text(0, 300)) is None


def test_the_folder_stays_within_its_limit(tmp_path: Path) -> None:
    size = 2 * BYTES  # 300 tokens
    store = PromptStore(Model(), "model", tmp_path, 2 * size + 4096)
    for start in (0, 1000, 2000):
        store.put(text(start, 300), cache_of(text(start, 300)))
        store.save()
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 2 * size + 4096 * 4
    assert len(list(tmp_path.iterdir())) == 2
    assert store.find(text(2000, 300)) is not None


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_a_damaged_file_is_no_prompt(tmp_path: Path, damage: str) -> None:
    store = PromptStore(Model(), "model", tmp_path, 10**9)
    store.put(text(0, 300), cache_of(text(0, 300)))
    store.save()
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[:-100], "garbage": b"x" * 200, "empty": b""}[damage])
    assert PromptStore(Model(), "model", tmp_path, 10**9).find(text(0, 300)) is None


def test_a_folder_that_cannot_be_written_loses_nothing_but_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = PromptStore(Model(), "model", tmp_path / "file" / "folder", 10**9)
    store.put(text(0, 300), cache_of(text(0, 300)))
    store.save()
    assert store.find(text(0, 300)) is not None
