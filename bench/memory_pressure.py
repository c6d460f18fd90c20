"""Takes memory from a model while it decodes, then gives it back; prints what the model did.

Run it in a cgroup, so that the two compete for the same memory:

    mlx-flash bench inflate BIG --expert-bytes 8.6MB
    python bench/cgroup.py 3300MB python bench/memory_pressure.py BIG --take 900MB --rate 200MB
"""

import json
import subprocess
import sys
import threading
import time
from typing import Annotated

import typer

from mlx_flash.config import CacheOptions, MemoryLimit
from mlx_flash.engine.generate import GenerateOptions, Progress, encode, generate
from mlx_flash.engine.load import ModelFiles, load_model
from mlx_flash.planner.memory import gigabytes
from mlx_flash.streaming.expert_stream import ExpertStream
from mlx_flash.telemetry.machine import available_memory_bytes

_STEP_S = 0.1
_TAKER = """
import sys, time
total, step, pause_s, hold_s = int(sys.argv[1]), int(sys.argv[2]), *map(float, sys.argv[3:])
taken = []
while total > 0:
    taken.append(bytearray(b"1") * min(step, total))
    total -= step
    time.sleep(pause_s)
time.sleep(hold_s)
"""


def main(
    model: str,
    take: Annotated[str, typer.Option(help="Memory that the other process takes.")] = "900MB",
    rate: Annotated[str, typer.Option(help="How much of it per second.")] = "200MB",
    hold: Annotated[float, typer.Option(help="Seconds for which it keeps all of it.")] = 10.0,
    max_tokens: Annotated[int, typer.Option("-n", min=1)] = 400,
) -> None:
    """Generate beside a process that takes memory; print each change and the end as JSON."""
    files = ModelFiles.open(model)
    loaded = load_model(files.checkpoint, MemoryLimit(), CacheOptions(), context_tokens=2048)
    if loaded.stream is None:
        sys.exit("the model fits into memory: there are no slots to give back")
    options = GenerateOptions(max_tokens=max_tokens, temperature=0.8, seed=0, chat_template=False)
    prompt = encode(files.tokenizer, "import os\n\n\ndef walk(path):\n", options)
    files.tokenizer.eos_token_ids = set()
    total, step = (MemoryLimit.parse(text).num_bytes or 0 for text in (take, rate))
    arguments = [total, int(step * _STEP_S), _STEP_S, hold]
    taker: list[subprocess.Popen[bytes]] = []

    def on_progress(progress: Progress) -> None:
        if progress.num_tokens == 50:
            command = [sys.executable, "-c", _TAKER, *map(str, arguments)]
            taker.append(subprocess.Popen(command))

    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(loaded.stream, done))
    watcher.start()
    try:
        report = generate(loaded, files.tokenizer, prompt, options, on_progress)
        killed = any(process.poll() not in (None, 0) for process in taker)
    finally:
        done.set()
        watcher.join()
        for process in taker:
            process.kill()
    shown = {
        "tokens": report.generation_tokens,
        "generation_tps": report.generation_tps,
        "capacity": report.capacity,
        "capacity_now": report.capacity_now,
        "resized": report.resized,
        "taker_killed": killed,
    }
    sys.stdout.write(json.dumps(shown) + "\n")


def _watch(stream: ExpertStream, done: threading.Event) -> None:
    """Print the slots per layer and the free memory whenever the slots change."""
    start, before, least = time.monotonic(), -1, available_memory_bytes()
    while not done.wait(0.01):
        least = min(least, available_memory_bytes())
        if stream.capacity != before:
            before = stream.capacity
            after_s = time.monotonic() - start
            sys.stderr.write(
                f"{after_s:6.2f} s: {before} slots a layer, "
                f"{gigabytes(available_memory_bytes())} free\n"
            )
    sys.stderr.write(f"at least {gigabytes(least)} were free\n")


if __name__ == "__main__":
    typer.run(main)
