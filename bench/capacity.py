"""Measures a model at 25, 50, 75 and 100% of its experts in memory: speed, hits, bytes per token.

Each capacity generates from the same prompts, two per domain. Prints a table and one JSON line.
"""

import json
import statistics
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from mlx_flash.config import CacheOptions, MemoryLimit
from mlx_flash.engine.generate import GenerateOptions, GenerationReport, encode, generate
from mlx_flash.engine.load import ModelFiles, load_model

CONTINUED = (
    "import os\n\n\ndef read_lines(path):\n",
    "class Cache:\n    def __init__(self",
    "This module provides",
    "The following sections describe",
)
ANSWERED = (
    "What is 37 * 24?",
    "What is 15% of 240?",
    "What does shutil.copytree do?",
    "How do I use itertools.chain?",
)
SHARES = (0.25, 0.5, 0.75, 1.0)


def measure(
    files: ModelFiles, capacity: int, max_tokens: int, temperature: float
) -> list[GenerationReport]:
    """Load the model once; continue some prompts and answer the others."""
    loaded = load_model(
        files.checkpoint,
        MemoryLimit(),
        CacheOptions(capacity=capacity),
        context_tokens=max_tokens + 64,
    )
    reports = []
    for prompts, chat in ((CONTINUED, False), (ANSWERED, True)):
        options = GenerateOptions(
            max_tokens=max_tokens, temperature=temperature, seed=0, chat_template=chat
        )
        for prompt in prompts:
            tokens = encode(files.tokenizer, prompt, options)
            reports.append(generate(loaded, files.tokenizer, tokens, options))
    return reports


def main(
    model: Annotated[str | None, typer.Argument(help="Left out, the bundled model.")] = None,
    max_tokens: Annotated[int, typer.Option("-n")] = 200,
    temperature: Annotated[float, typer.Option("--temp")] = 0.8,
) -> None:
    """Measure and print."""
    files = ModelFiles.open(model)
    experts = measure(files, 1, 1, temperature)[0].experts_per_layer
    table = Table("capacity", "tokens/s", "hit rate (decode)", "read per token", "waited")
    rows = []
    for share in SHARES:
        capacity = max(1, round(share * experts))
        reports = measure(files, capacity, max_tokens, temperature)
        tokens = sum(report.generation_tokens - 1 for report in reports)
        read = sum(r.decode_bytes_per_token * (r.generation_tokens - 1) for r in reports)
        row = {
            "capacity": reports[0].capacity,
            "experts_per_layer": experts,
            "decode_tps": statistics.median(report.generation_tps for report in reports),
            "decode_hit_rate": statistics.mean(report.decode_hit_rate for report in reports),
            "bytes_per_token": read / max(1, tokens),
            "stall_s": sum(report.stall_s for report in reports),
            "tokens": tokens,
        }
        rows.append(row)
        table.add_row(
            f"{row['capacity']} of {experts} ({share:.0%})",
            f"{row['decode_tps']:.1f}",
            f"{row['decode_hit_rate']:.1%}",
            f"{row['bytes_per_token'] / 1e6:.2f} MB",
            f"{row['stall_s']:.2f} s",
        )
    Console().print(table)
    sys.stdout.write(json.dumps({"rows": rows}) + "\n")


if __name__ == "__main__":
    typer.run(main)
