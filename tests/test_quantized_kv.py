"""A KV cache in few bits: alone, together, copied and trimmed it says the same."""

import copy
from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import pytest
from test_batch import alone, bits, join, prompts

from mlx_flash.config import CacheOptions, KernelOptions, MemoryLimit
from mlx_flash.engine.load import LoadedModel, ModelFiles, load_model
from mlx_flash.engine.prompt_store import PromptStore
from mlx_flash.engine.quantized_kv import QuantizedKV
from mlx_flash.server.worker.batch import Batch, Left


@pytest.fixture(scope="module")
def loaded() -> Iterator[LoadedModel]:
    model = load_model(
        ModelFiles.open(None).checkpoint,
        MemoryLimit(),
        CacheOptions(capacity=6),
        context_tokens=512,
        kv_tokens=512,
        kv_bits=8,
        kernel_options=KernelOptions(kernels="cpu"),
    )
    yield model
    model.close()


def test_it_takes_less_memory_and_is_planned_so(loaded: LoadedModel) -> None:
    batch = Batch(loaded.model)
    join(batch, loaded.model, 1, prompts()[1])
    floats = 10 * 2 * 2 * 64 * 4 * 256  # layers, K and V, heads, width, bytes, tokens
    assert batch.kv_bytes == floats * (8 / 8 + 2 * 4 / 64) / 4
    assert loaded.plan.kv_bytes == 2 * batch.kv_bytes


def test_answers_together_have_the_bits_of_each_alone(loaded: LoadedModel) -> None:
    model = loaded.model
    expected = [alone(model, prompt, 6) for prompt in prompts()[:3]]
    batch = Batch(model)
    got: list[list[tuple[int, bytes]]] = [[], [], []]
    for key, prompt in enumerate(prompts()[:3]):
        join(batch, model, key, prompt)
        for drawn in batch.step():
            got[drawn.key].append(bits(drawn))
    while len(batch):
        for drawn in batch.step():
            got[drawn.key].append(bits(drawn))
            if len(got[drawn.key]) == 6:
                batch.leave(drawn.key)
    assert got == expected


def test_a_remembered_prompt_is_used_twice_and_gives_the_same(loaded: LoadedModel) -> None:
    model, prompt = loaded.model, prompts()[1]
    expected = alone(model, prompt, 4)
    store = PromptStore(model, "model")
    batch = Batch(model)
    join(batch, model, 1, prompt)
    batch.step()
    left = batch.leave(1)
    store.put(left.tokens, left.cache)
    for key in (2, 3):
        found = store.find(prompt)
        assert found is not None
        assert len(found[0]) == len(prompt) - 1
        join(batch, model, key, prompt, Left(*found))
        assert [bits(batch.step()[0]) for _ in range(4)] == expected
        batch.leave(key)


def test_a_copy_changes_without_its_original() -> None:
    cache = QuantizedKV(8)
    rows = mx.random.normal((1, 2, 5, 64))
    cache.update_and_fetch(rows, -rows)
    before = np.asarray(cache.keys[0] if cache.keys else None).copy()
    twin = copy.deepcopy(cache)
    twin.trim(3)
    twin.update_and_fetch(rows[:, :, :3] + 1, rows[:, :, :3])
    mx.eval(twin.state)
    assert (cache.size(), twin.size()) == (5, 5)
    assert np.array_equal(np.asarray(cache.keys[0] if cache.keys else None), before)
