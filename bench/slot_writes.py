"""Measures what it costs that the host writes slots which MLX's device then reads.

On a discrete GPU the slots are managed memory: pages move to the host for the write and back for
the kernel. Each row is the median over rounds, after one warm-up round, in one run.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx

from mlx_flash.engine.backend import backend_name
from mlx_flash.formats.layout import ExpertLayout, ExpertTensor
from mlx_flash.formats.safetensors import FileStamp
from mlx_flash.streaming.slots import SlotPool

EXPERT_BYTES = 2_654_208  # Qwen3-30B-A3B in 4 bits, group size 64
CAPACITY, PER_ROUND, ROUNDS = 64, 8, 24


def median_s(prepare: Callable[[], None], action: Callable[[], None]) -> float:
    """Return the median seconds of `action`, each round prepared anew."""
    times = []
    for _ in range(ROUNDS + 1):
        prepare()
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    """Measure and print a table and one JSON line."""
    tensors = (
        ExpertTensor(
            "weight",
            "U32",
            (EXPERT_BYTES // 4,),
            EXPERT_BYTES,
            Path("x"),
            0,
            EXPERT_BYTES,
            FileStamp(0, 0, 0, 0),
        ),
    )
    pool = SlotPool(ExpertLayout(0, "experts", CAPACITY, tensors), CAPACITY)
    views = [pool.view("weight", slot) for slot in range(CAPACITY)]
    plain = [memoryview(bytearray(EXPERT_BYTES)) for _ in range(PER_ROUND)]
    with tempfile.TemporaryFile() as file:
        file.write(os.urandom(EXPERT_BYTES) * PER_ROUND)
        file.flush()

        def read_into(targets: list[memoryview]) -> None:
            for number, view in enumerate(targets):
                os.preadv(file.fileno(), [view], number * EXPERT_BYTES)

        def compute(slots: int) -> None:
            mx.eval(mx.sum(pool.arrays["weight"][:slots]))

        rows = {
            "read into plain memory": median_s(lambda: None, lambda: read_into(plain)),
            "read into slots the device has used": median_s(
                lambda: compute(CAPACITY), lambda: read_into(views[:PER_ROUND])
            ),
            "compute on slots just written": median_s(
                lambda: read_into(views[:PER_ROUND]), lambda: compute(PER_ROUND)
            ),
            "compute on slots not touched since": median_s(
                lambda: compute(PER_ROUND), lambda: compute(PER_ROUND)
            ),
        }
    megabytes = PER_ROUND * EXPERT_BYTES / 1e6
    sys.stdout.write(f"{PER_ROUND} experts of {EXPERT_BYTES / 1e6:.2f} MB, {backend_name()}\n")
    for name, seconds in rows.items():
        sys.stdout.write(
            f"{name:40} {seconds * 1e3:8.3f} ms  {megabytes / seconds / 1e3:7.2f} GB/s\n"
        )
    sys.stdout.write(json.dumps({"backend": backend_name(), "seconds": rows}) + "\n")


if __name__ == "__main__":
    main()
