"""The bundled model: what it is, that it streams exactly, and that memory stays as promised."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from comparing import differing, resident, run_logits, streamed
from mlx_lm import batch_generate
from mlx_lm import generate as mlx_lm_generate

from mlx_flash import find_stream, load
from mlx_flash.engine.find import bundled_model
from mlx_flash.formats.checkpoint import Checkpoint
from mlx_flash.streaming.tokens import open_tokenizer

HELD_OUT = Path(__file__).parent / "data" / "heldout"
DOMAINS = ("coding", "writing", "math", "chat")
NUM_EXPERTS, TOP_K = 48, 4
CAPACITIES = (1, TOP_K, TOP_K + 1, NUM_EXPERTS // 2, NUM_EXPERTS)
KERNELS = {"cpu": "reference", "kernels": "cpu", "gpu": "reference"}
MEASURE_MEMORY = """
import json, sys, mlx.core as mx
from mlx_flash.config import CacheOptions, MemoryLimit
from mlx_flash.engine.generate import GenerateOptions, encode, generate
from mlx_flash.engine.load import ModelFiles, load_model
from mlx_flash.engine.need import steps_for
from mlx_flash.kernels.dispatch import choose_kernels
from mlx_flash.streaming import adapter
from mlx_flash.streaming.swap import swap_modules
from mlx_flash.streaming.install import activations, expert_formats, survey
from mlx_flash.telemetry import machine
files = ModelFiles.open(None)
options = GenerateOptions(max_tokens=48)
prompt = encode(files.tokenizer, "What does shutil.copytree do? " * int(sys.argv[2]), options)
kernels = choose_kernels("cpu", True, machine.num_cores()).cpu  # the code is no part of the model
lazy = adapter.load_lazily(files.checkpoint.folder)
sites = survey(lazy.model, files.checkpoint)
formats = [*swap_modules(lazy.model, kernels).formats, *expert_formats(sites, kernels)]
kernels.compile(formats, activations(sites), lambda number, of: None)
del lazy, sites
before = machine.rss_bytes()
loaded = load_model(files.checkpoint, MemoryLimit.parse(sys.argv[1]), CacheOptions(),
                    context_tokens=len(prompt) + 48, prefill_steps=steps_for(len(prompt)))
at_load = mx.get_peak_memory()
report = generate(loaded, files.tokenizer, prompt, options)
print(json.dumps({"before": before, "at_load": at_load, "planned": loaded.plan.total_bytes,
                  "weights": loaded.plan.resident_bytes + loaded.plan.slot_bytes,
                  "read": report.expert_bytes_read, "limit": report.memory_limit_bytes,
                  "peak": report.peak_model_bytes, "rss": report.peak_rss_bytes}))
"""


def held_out_tokens(domain: str, count: int) -> mx.array:
    tokenizer = open_tokenizer(bundled_model())
    text = (HELD_OUT / f"{domain}.txt").read_text(encoding="utf-8")[: 12 * count]
    return mx.array(tokenizer.encode(text)[:count])[None]


def test_the_model_is_what_the_card_promises() -> None:
    folder = bundled_model()
    checkpoint = Checkpoint.open(folder)
    config = checkpoint.config
    assert config["model_type"] == "qwen3_moe"
    assert (config["num_experts"], config["num_experts_per_tok"]) == (NUM_EXPERTS, TOP_K)
    assert config["num_hidden_layers"] >= 8
    assert any(isinstance(value, dict) for value in config["quantization"].values())
    sizes = {file: file.stat().st_size for file in folder.iterdir()}
    assert sum(sizes.values()) <= 48_000_000
    assert max(sizes.values()) <= 16_000_000
    assert (folder / "README.md").is_file()


@pytest.fixture(scope="module")
def runs() -> dict[str, list[mx.array]]:
    """Resident logits per device, computed when first asked for."""
    return {}


@pytest.mark.parametrize("capacity", CAPACITIES)
@pytest.mark.parametrize("policy", ["forward", "lcp"])
def test_streamed_logits_equal_resident_logits(
    policy: str, capacity: int, device: str, runs: dict[str, list[mx.array]]
) -> None:
    short, long = held_out_tokens("coding", 40), held_out_tokens("writing", 300)

    def run(model: Any) -> list[mx.array]:
        return [*run_logits(model, short, 32), *run_logits(model, long, 1)]

    if device not in runs:
        runs[device] = run(resident(bundled_model(), device))
    ours = streamed(bundled_model(), capacity, policy, device)
    assert differing(run(ours.model), runs[device]) == []
    assert ours.stream is not None
    ours.stream.cache.check_integrity()


@pytest.mark.parametrize("domain", DOMAINS)
def test_greedy_tokens_are_those_of_mlx_lm(domain: str, device: str) -> None:
    prompt = held_out_tokens(domain, 30)[0].tolist()
    assert isinstance(prompt, list)
    model, tokenizer = load(capacity=7, kernels=KERNELS[device])
    assert find_stream(model) is not None
    ours = mlx_lm_generate(model, tokenizer, prompt, max_tokens=200)
    theirs = mlx_lm_generate(resident(bundled_model()), tokenizer, prompt, max_tokens=200)
    assert ours == theirs
    assert ours


def test_batch_generate_runs_unchanged(device: str) -> None:
    prompts = [held_out_tokens(domain, 12)[0].tolist() for domain in DOMAINS]
    model, tokenizer = load(capacity=7, kernels=KERNELS[device])
    ours = batch_generate(model, tokenizer, prompts, max_tokens=12)
    theirs = batch_generate(resident(bundled_model()), tokenizer, prompts, max_tokens=12)
    assert ours.texts == theirs.texts
    assert len(ours.texts) == len(prompts)


@pytest.mark.parametrize(("limit", "repeats"), [("40%", 1), ("97%", 1), ("50%", 60)])
def test_memory_stays_under_the_limit_from_load_to_the_last_token(limit: str, repeats: int) -> None:
    command = [sys.executable, "-c", MEASURE_MEMORY, limit, str(repeats)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["read"] > 0
    assert found["planned"] <= found["limit"]
    assert found["at_load"] <= found["weights"] + 4_000_000  # one array at a time is in flight
    assert found["peak"] <= found["limit"]
    assert found["rss"] - found["before"] <= found["limit"] + 16_000_000  # code loaded on first use
