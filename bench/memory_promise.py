"""Runs a long prompt and many decode steps under a memory limit; prints what memory that took.

Run it in a cgroup that kills at the limit plus 5%, on a model larger than that:

    python bench/write_random_checkpoint.py BIG --layers 12
    python bench/cgroup.py 3150MB python bench/memory_promise.py BIG --memory 3GB
"""

import json
import random
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from mlx_flash.config import CacheOptions, MemoryLimit
from mlx_flash.engine.generate import GenerateOptions, generate
from mlx_flash.engine.load import ModelFiles, load_model

_SHOWN = (
    "prompt_tokens",
    "generation_tokens",
    "ttft_s",
    "generation_tps",
    "capacity",
    "experts_per_layer",
    "memory_limit_bytes",
    "peak_model_bytes",
    "peak_rss_bytes",
)


def main(
    model: str,
    memory: Annotated[str, typer.Option()] = "3GB",
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 4000,
    max_tokens: Annotated[int, typer.Option("-n", min=1)] = 1000,
) -> None:
    """Generate from random words and print the report as JSON."""
    files = ModelFiles.open(model)
    loaded = load_model(
        files.checkpoint,
        MemoryLimit.parse(memory),
        CacheOptions(),
        context_tokens=prompt_tokens + max_tokens,
    )
    words = random.Random(0)
    prompt = [words.randrange(1000, files.tokenizer.vocab_size) for _ in range(prompt_tokens)]
    files.tokenizer.eos_token_ids = set()  # a model of random weights may end at any token
    options = GenerateOptions(max_tokens=max_tokens, temperature=1.0, seed=0)
    report = asdict(generate(loaded, files.tokenizer, prompt, options))
    sys.stdout.write(json.dumps({name: report[name] for name in _SHOWN}) + "\n")


if __name__ == "__main__":
    typer.run(main)
