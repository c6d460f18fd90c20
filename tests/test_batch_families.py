"""Each kind of prompt cache that mlx-lm has: answers together are those that each gets alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import FAMILIES, Family, write_checkpoint

from mlx_flash.config import CacheOptions, KernelOptions, MemoryLimit
from mlx_flash.engine.load import load_model
from mlx_flash.engine.sampling import greedy
from mlx_flash.formats.checkpoint import Checkpoint
from mlx_flash.server.worker.batch import Batch, Broken, Drawn, Left, Prefill, can_batch
from mlx_flash.server.worker.one_by_one import OneByOne, SoloPrefill
from mlx_flash.streaming.tokens import tokens_after

KINDS = {
    "qwen3_moe": True,  # keys and values
    "gpt_oss": True,  # and sliding windows
    "glm_moe_dsa": True,  # and keys of an indexer
    "longcat_flash_ngram": True,
    "qwen3_next": True,  # recurrent states
    "minimax_m3_vl": True,
    "llama4": False,  # chunks
    "deepseek_v41": False,
}
"""One family for each kind of cache, and whether such caches can be joined."""

NUM_TOKENS = 6


@pytest.mark.parametrize(
    "family", [one for one in FAMILIES if one.name in KINDS], ids=lambda one: one.name
)
def test_answers_together_are_those_of_mlx_lm_alone(family: Family, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_checkpoint(family, folder)
    loaded = load_model(
        Checkpoint.open(folder),
        MemoryLimit(),
        CacheOptions(capacity=2),
        context_tokens=256,
        kernel_options=KernelOptions(kernels="reference"),
    )
    model = loaded.model
    assert can_batch(model) == KINDS[family.name]
    rng = np.random.default_rng(1)
    prompts = [rng.integers(1, 60, length).tolist() for length in (5, 40, 17)]
    expected = [list(tokens_after(model, prompt, NUM_TOKENS, 0.0, 16)) for prompt in prompts]
    got, left = together(model, prompts)
    assert got == expected
    assert [one.tokens for one in left] == [p + e for p, e in zip(prompts, expected, strict=True)]
    loaded.close()


def together(model: Any, prompts: list[list[int]]) -> tuple[list[list[int]], list[Left]]:
    """Return what is drawn for prompts that join one after the other, and what they leave."""
    batch: Any = Batch(model) if can_batch(model) else OneByOne(model)
    begin: Any = Prefill if can_batch(model) else SoloPrefill
    got: list[list[int]] = [[] for _ in prompts]
    left: dict[int, Left] = {}

    def step() -> None:
        for drawn in batch.step():
            assert isinstance(drawn, Drawn)
            got[drawn.key].append(drawn.token)
            if len(got[drawn.key]) == NUM_TOKENS:
                left[drawn.key] = batch.leave(drawn.key)

    for key, prompt in enumerate(prompts):
        prefill = begin(model, key, prompt, None, greedy, [])
        while not prefill.ready:
            prefill.step(16)
        batch.join(prefill)
        assert batch.kv_bytes > 0
        step()
    while len(batch):
        step()
    return got, [left[key] for key in range(len(prompts))]


def test_one_sequence_that_breaks_leaves_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_checkpoint(next(one for one in FAMILIES if one.name == "llama4"), folder)
    loaded = load_model(
        Checkpoint.open(folder), MemoryLimit(), CacheOptions(capacity=2), context_tokens=64
    )
    model = loaded.model
    expected = list(tokens_after(model, [5, 6, 7], 3, 0.0, 16))
    batch = OneByOne(model)

    def breaks(tokens: Any, logits: Any) -> Any:
        if tokens.size > 4:
            raise RuntimeError("no more")
        return logits

    batch.join(SoloPrefill(model, 1, [5], None, greedy, []))
    batch.leave(1)
    for key, processors in ((1, []), (2, [breaks])):
        prefill = SoloPrefill(model, key, [5, 6, 7], None, greedy, processors)
        prefill.step(16)
        batch.join(prefill)
    results = [one for _ in range(3) for one in batch.step()]
    assert [one.token for one in results if isinstance(one, Drawn) and one.key == 1] == expected
    assert [one.key for one in results if isinstance(one, Broken)] == [2]
    loaded.close()
