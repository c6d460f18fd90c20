"""Runs a model and its streamed twin over the same tokens, for tests that compare them."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model as mlx_lm_load_model

from mlx_flash.config import CacheOptions, KernelOptions, MemoryLimit, ReadOptions
from mlx_flash.engine.load import LoadedModel, load_model
from mlx_flash.formats.checkpoint import Checkpoint
from mlx_flash.streaming import adapter
from mlx_flash.streaming.expert_stream import ExpertStream

DOWN = ("down_proj.weight", "fc2.weight")  # the matrices that lead back to the model's width
ONLY_EXPERTS = "plain mlx-lm gives other logits each time; the experts alone were compared"
"""Why a test on a GPU skips: some of MLX's CUDA kernels for float32 do not repeat themselves."""


def resident(folder: Path, device: str = "cpu") -> Any:
    """Return the model with every expert in memory: the one that streaming must equal.

    That is plain mlx-lm, in float32 on the CPU; on `kernels` it is our own.
    """
    if device == "kernels":
        return opened(folder, CacheOptions(), MemoryLimit(everything=True), device).model
    model, _ = mlx_lm_load_model(folder, lazy=True)
    if mx.default_device() == mx.Device(mx.cpu):
        model.set_dtype(mx.float32)
    mx.eval(model.parameters())
    return model


def streamed(
    folder: Path,
    capacity: int,
    policy: str = "lru",
    device: str = "cpu",
    reads: ReadOptions | None = None,
) -> LoadedModel:
    """Return the model with `capacity` slots per layer; `device` is that of the fixture."""
    options = CacheOptions(capacity=capacity, policy=policy)
    return opened(folder, options, MemoryLimit(), device, reads)


def opened(
    folder: Path,
    options: CacheOptions,
    limit: MemoryLimit,
    device: str,
    reads: ReadOptions | None = None,
) -> LoadedModel:
    return load_model(
        Checkpoint.open(folder),
        limit,
        options,
        context_tokens=512,
        read_options=reads,
        kernel_options=KernelOptions(kernels="cpu" if device == "kernels" else "reference"),
    )


def stream_of(loaded: LoadedModel) -> ExpertStream:
    assert loaded.stream is not None
    return loaded.stream


def ranked(loaded: LoadedModel) -> list[list[int]]:
    """Return the residents of each layer, most valuable first."""
    return [stream_of(loaded).cache.ranked(layer) for layer in range(len(loaded.layouts))]


def wait_for_restorer(loaded: LoadedModel) -> None:
    """Wait until what is to be read back was read."""
    thread = stream_of(loaded).restorer.thread
    if thread is not None:
        thread.join(60)
        assert not thread.is_alive()


def random_tokens(num_tokens: int, vocab: int, batch: int = 1, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).integers(0, vocab, (batch, num_tokens)))


def run_logits(model: Any, prompt: mx.array, num_decode: int) -> Iterator[mx.array]:
    """Yield the logits of a prefill and of each greedy decode step after it."""
    cache = make_prompt_cache(model)
    tokens = prompt
    for _ in range(1 + num_decode):
        logits = model(tokens, cache=cache)
        mx.eval(logits)
        yield logits
        tokens = mx.argmax(logits[:, -1:, :], axis=-1)


def differing_steps(ours: Any, theirs: Any, prompt: mx.array, num_decode: int) -> list[int]:
    """Return the steps (0 is the prefill) at which any bit of two models' logits differs."""
    return differing(run_logits(ours, prompt, num_decode), run_logits(theirs, prompt, num_decode))


def differing(ours: Iterable[mx.array], theirs: Iterable[mx.array]) -> list[int]:
    """Return the positions at which any bit of two runs of logits differs."""
    pairs = enumerate(zip(ours, theirs, strict=True))
    return [step for step, (a, b) in pairs if not mx.array_equal(a, b).item()]


def differing_switches(ours: Any, theirs: Any) -> list[tuple[str, int]]:
    """Return (path, tokens) of each switch whose results differ in any bit for random inputs."""
    twins = dict(ours.named_modules())
    rng = np.random.default_rng(0)
    found = []
    for path, switch in adapter.find_switches(theirs):
        weight = next(iter(adapter.projections(switch).values())).weight
        layout = twins[path].layer_stream._layout
        width = next(t.shape[0] for t in layout.tensors if t.name in DOWN)
        for num_tokens in (1, 2, 5, 40, 300):
            x = mx.array(rng.standard_normal((1, num_tokens, width)), mx.float32)
            picked = [rng.permutation(weight.shape[0])[:3] for _ in range(num_tokens)]
            indices = mx.array(np.stack(picked)[None].astype(np.uint32))
            if not mx.array_equal(switch(x, indices), twins[path](x, indices)).item():
                found.append((path, num_tokens))
    return found
