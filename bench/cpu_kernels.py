"""Measures a model on the CPU: plain mlx-lm in float32 against our kernels, resident, in one run.

Prints tokens/s of prefill and decode, and where a decoded token's time goes.
"""

import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import mlx.core as mx
import numpy as np
import typer
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model as mlx_lm_load_model

from mlx_flash.config import CacheOptions, KernelOptions, MemoryLimit
from mlx_flash.engine.load import load_model
from mlx_flash.formats.checkpoint import Checkpoint
from mlx_flash.kernels.cpu import kernels
from mlx_flash.kernels.cpu.pool import Pool

WARM_UP = 2


def plain(folder: Path) -> Any:
    """Return the model as mlx-lm loads it, in float32."""
    model, _ = mlx_lm_load_model(folder, lazy=True)
    model.set_dtype(mx.float32)
    mx.eval(model.parameters())
    return model


def ours(folder: Path) -> Any:
    """Return the model on our kernels, every expert in memory."""
    return load_model(
        Checkpoint.open(folder),
        MemoryLimit(everything=True),
        CacheOptions(),
        context_tokens=1024,
        kernel_options=KernelOptions(kernels="cpu"),
    ).model


def prefill(model: Any, prompt: mx.array) -> tuple[Any, float]:
    """Return the cache after a prompt but its last token, and the seconds that took.

    As mlx-lm does it: what the prompt leaves in the cache is computed, its logits are not.
    """
    cache = make_prompt_cache(model)
    start = time.perf_counter()
    model(prompt[:, :-1], cache=cache)
    mx.eval([entry.state for entry in cache])
    return cache, time.perf_counter() - start


def decode(model: Any, token: mx.array, cache: Any, num_tokens: int) -> list[float]:
    """Return the seconds of each greedily decoded token, the first ones left out."""
    seconds = []
    for _ in range(num_tokens + WARM_UP):
        start = time.perf_counter()
        logits = model(token, cache=cache)
        token = mx.argmax(logits[:, -1:], axis=-1)
        mx.eval(token)
        seconds.append(time.perf_counter() - start)
    return seconds[WARM_UP:]


def kernel_seconds(model: Any, token: mx.array, decode_tokens: int) -> dict[str, float]:
    """Return the mean seconds of a decoded token, and of its parts."""
    spent: dict[str, float] = defaultdict(float)

    def timed(owner: Any, name: str, key: str) -> Callable[[], None]:
        original = getattr(owner, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                spent[key] += time.perf_counter() - start

        setattr(owner, name, wrapper)
        return lambda: setattr(owner, name, original)

    cache = make_prompt_cache(model)
    decode(model, token, cache, 0)
    restore = [timed(Pool, "run", "kernels"), timed(kernels, "evaluate", "waiting for MLX")]
    try:
        start = time.perf_counter()
        decode(model, token, cache, decode_tokens - WARM_UP)
        spent["token"] = time.perf_counter() - start
    finally:
        for undo in restore:
            undo()
    return {key: seconds / decode_tokens for key, seconds in spent.items()}


def main(
    folder: Annotated[Path, typer.Argument(help="A checkpoint; see write_random_checkpoint.py.")],
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of the prefill.")] = 256,
    decode_tokens: Annotated[int, typer.Option(help="Tokens a round with our kernels.")] = 32,
    plain_tokens: Annotated[int, typer.Option(help="Tokens a round with mlx-lm, 0: none.")] = 4,
    rounds: Annotated[int, typer.Option(help="Rounds; the two alternate.")] = 3,
) -> None:
    """Measure and print."""
    vocab = Checkpoint.open(folder).config["vocab_size"]
    prompt = mx.array(np.random.default_rng(0).integers(0, vocab, (1, prompt_tokens)))
    models = {"ours": (ours(folder), decode_tokens)}
    if plain_tokens:
        models["mlx-lm float32"] = (plain(folder), plain_tokens)
    prefills, tokens = defaultdict(list), defaultdict(list)
    for _ in range(rounds):
        for name, (model, num_tokens) in models.items():
            cache, seconds = prefill(model, prompt)
            prefills[name].append((prompt_tokens - 1) / seconds)
            tokens[name] += decode(model, prompt[:, -1:], cache, num_tokens)
    splits = [
        kernel_seconds(models["ours"][0], prompt[:, :1], decode_tokens) for _ in range(rounds)
    ]
    report: dict[str, Any] = {"split_s": splits}
    for name in models:
        seconds = sorted(tokens[name])
        median, slow = statistics.median(seconds), seconds[len(seconds) * 9 // 10]
        report[name] = {"prefill_tps": prefills[name], "decode_tps": 1 / median, "p90_s": slow}
        sys.stdout.write(
            f"{name:16} prefill {statistics.median(prefills[name]):8.2f} tokens/s   decode "
            f"{1 / median:7.2f} tokens/s (9 of 10 tokens within {slow * 1e3:.1f} ms)\n"
        )
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    typer.run(main)
