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


def measure(model: Any, prompt_tokens: int, decode_tokens: int) -> dict[str, Any]:
    """Return prefill tokens/s, and the seconds of each decoded token."""
    vocab = 8192
    prompt = mx.array(np.random.default_rng(0).integers(0, vocab, (1, prompt_tokens)))
    cache = make_prompt_cache(model)
    start = time.perf_counter()
    logits = model(prompt, cache=cache)
    mx.eval(logits)
    prefill_s = time.perf_counter() - start
    seconds = []
    for _ in range(decode_tokens + WARM_UP):
        token = mx.argmax(logits[:, -1:], axis=-1)
        start = time.perf_counter()
        logits = model(token, cache=cache)
        mx.eval(logits)
        seconds.append(time.perf_counter() - start)
    return {"prefill_tps": prompt_tokens / prefill_s, "token_s": seconds[WARM_UP:]}


def kernel_seconds(model: Any, decode_tokens: int) -> dict[str, float]:
    """Return the median seconds of a decoded token, and the mean ones of its parts."""
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

    restore = [timed(Pool, "run", "kernels"), timed(kernels, "evaluate", "waiting for MLX")]
    try:
        result = measure(model, 8, 0)
        spent.clear()
        result = measure(model, 1, decode_tokens)
    finally:
        for undo in restore:
            undo()
    calls = decode_tokens + WARM_UP + 1
    return {
        "token": statistics.median(result["token_s"]),
        **{key: seconds / calls for key, seconds in spent.items()},
    }


def main(
    folder: Annotated[Path, typer.Argument(help="A checkpoint; see write_random_checkpoint.py.")],
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of the prefill.")] = 256,
    decode_tokens: Annotated[int, typer.Option(help="Tokens to decode with our kernels.")] = 32,
    plain_tokens: Annotated[int, typer.Option(help="Tokens to decode with mlx-lm.")] = 4,
) -> None:
    """Measure and print."""
    fast = ours(folder)
    rows = {"ours": measure(fast, prompt_tokens, decode_tokens)}
    split = kernel_seconds(fast, decode_tokens)
    del fast
    mx.clear_cache()
    if plain_tokens:
        rows["mlx-lm float32"] = measure(plain(folder), prompt_tokens, plain_tokens)
    report: dict[str, Any] = {"split_s": split}
    for name, row in rows.items():
        median = statistics.median(row["token_s"])
        report[name] = {"prefill_tps": row["prefill_tps"], "decode_tps": 1 / median}
        sys.stdout.write(
            f"{name:16} prefill {row['prefill_tps']:8.2f} tokens/s   decode {1 / median:7.2f} "
            f"tokens/s (slowest {max(row['token_s']) * 1e3:.1f} ms)\n"
        )
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    typer.run(main)
