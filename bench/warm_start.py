"""Measures what a warm start brings: first token and first answer, cold and with what was kept.

    python bench/warm_start.py BIG --capacity 24

Each round starts a new model with the page cache dropped: cold; warm, asked at once; and warm,
asked when everything has been read back, as by a user who types for some seconds.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from mlx_flash.config import CacheOptions, MemoryLimit
from mlx_flash.engine.alone import drop_page_cache
from mlx_flash.engine.generate import GenerateOptions, GenerationReport, encode, generate
from mlx_flash.engine.load import ModelFiles, load_model

_FIRST, _PROMPT = (
    "import os\n\n\ndef read_lines(path):\n",
    "class Cache:\n    def __init__(self, size):\n",
)
_WAYS = ("cold", "warm", "warm, restored")


def start(
    files: ModelFiles, capacity: int, folder: Path | None, wait: bool, text: str, num_tokens: int
) -> tuple[float, GenerationReport]:
    """Load, perhaps wait until everything has been read back, and generate; return that time."""
    options = GenerateOptions(max_tokens=num_tokens, temperature=0.8, seed=0, chat_template=False)
    prompt = encode(files.tokenizer, text, options)
    cache = CacheOptions(capacity=capacity, warm_start=folder)
    loaded = load_model(files.checkpoint, MemoryLimit(), cache, context_tokens=2048)
    drop_page_cache({path for layout in loaded.layouts for path in layout.files})
    began = time.perf_counter()
    thread = loaded.stream.restorer.thread if loaded.stream else None
    if wait and thread is not None:
        thread.join()
    waited_s = time.perf_counter() - began
    report = generate(loaded, files.tokenizer, prompt, options)
    loaded.close()
    return waited_s, report


def main(
    model: str,
    capacity: Annotated[int, typer.Option(min=1)] = 24,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """Measure and print one JSON line per way to start, the median of the rounds."""
    files = ModelFiles.open(model)
    measured: dict[str, list[dict[str, float]]] = {way: [] for way in _WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for way in _WAYS:
                record = None if way == "cold" else Path(folder)
                start(files, capacity, record, False, _FIRST, 200)  # what is then remembered
                wait = way == "warm, restored"
                waited_s, report = start(files, capacity, record, wait, _PROMPT, 25)
                measured[way].append(
                    {
                        "restoring_s": waited_s,
                        "ttft_s": report.ttft_s,
                        "first_25_tps": report.generation_tps,
                        "hit_rate": report.decode_hit_rate,
                        "restored": report.restored,
                    }
                )
    for way, rows in measured.items():
        medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
        sys.stdout.write(json.dumps({"start": way, **medians}) + "\n")


if __name__ == "__main__":
    typer.run(main)
