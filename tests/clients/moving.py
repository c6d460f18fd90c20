"""A stand-in whose reports move as those of a busy worker do. Run it to look at the dashboard."""

import asyncio
import contextlib
import math
import random
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
from fastapi import FastAPI

sys.path.insert(0, str(Path(__file__).parent.parent))

from serving import CARD, FakeBackend

from mlx_flash.server.gateway.app import create_app
from mlx_flash.server.messages import LayerHits, Snapshot
from mlx_flash.server.options import AccessOptions

GB = 10**9
LAYERS = 48
BIG = msgspec.structs.replace(
    CARD,
    name="mlx-community/Qwen3-30B-A3B-4bit",
    quantization="4-bit",
    context_tokens=16_384,
    num_parameters=30_530_000_000,
    size_bytes=17_180_000_000,
    layers=LAYERS,
    experts_per_layer=128,
    top_k=8,
    capacity=56,
    memory_limit_bytes=12 * GB,
    resident_bytes=1_320_000_000,
    slot_bytes=6_900_000_000,
    kv_bytes=3 * GB,
    backend="metal",
)
FIRST = Snapshot(
    time_s=0.0,
    running=3,
    waiting=0,
    prompt_tokens=41_200,
    cached_tokens=28_900,
    generation_tokens=18_400,
    kv_bytes=1_200_000_000,
    remembered_bytes=640_000_000,
    kv_limit_bytes=3 * GB,
    model_bytes=10_300_000_000,
    peak_model_bytes=11_400_000_000,
    rss_bytes=10_900_000_000,
    memory_limit_bytes=12 * GB,
    capacity=56,
    asks=0,
    hits=0,
    bytes_read=380 * GB,
    stall_s=210.0,
    busy_s=260.0,
    prefetched=51_000,
    prefetch_hits=37_500,
    resized=0,
    ssd_bytes_written=0,
    direct_io=True,
    disk_temperature_c=58.0,
    layers=[LayerHits(0, 0, 56)] * LAYERS,
    more_memory_gains=[(2_100_000_000, 0.9), (4_300_000_000, 0.96), (8_900_000_000, 1.0)],
    prefilled_tokens=12_300,
)


def later(before: Snapshot, seconds: float, chance: random.Random) -> Snapshot:
    """Return what a worker would report some seconds later."""
    now = before.time_s + seconds
    busy = max(0.0, 0.45 + 0.55 * math.sin(now / 17))
    layers, asks, hits = [], 0, 0
    for number, layer in enumerate(before.layers):
        likely = 0.66 + 0.3 * (number / LAYERS) ** 0.6 + 0.06 * math.sin(now / 23 + number / 5)
        asked = round(220 * busy * seconds)
        found = round(asked * min(1.0, max(0.0, likely - abs(chance.gauss(0, 0.06)))))
        layers.append(LayerHits(layer.asks + asked, layer.hits + found, layer.capacity))
        asks, hits = asks + asked, hits + found
    prefilling = now % 40 < 9
    prompt = 60 if prefilling and before.time_s % 40 > now % 40 else 0
    return msgspec.structs.replace(
        before,
        time_s=now,
        running=3 + (prefilling and 1),
        waiting=2 if prefilling else 0,
        prompt_tokens=before.prompt_tokens + prompt * 50,
        cached_tokens=before.cached_tokens + prompt * 30,
        prefilled_tokens=before.prefilled_tokens + round(seconds * 310 * prefilling),
        generation_tokens=before.generation_tokens + round(seconds * (14 + 22 * busy)),
        kv_bytes=1_200_000_000 + round(4e8 * math.sin(now / 11)),
        asks=before.asks + asks,
        hits=before.hits + hits,
        bytes_read=before.bytes_read + (asks - hits) * 2_654_208,
        stall_s=before.stall_s + seconds * 0.3 * busy,
        busy_s=before.busy_s + seconds * 0.5 * busy,
        layers=layers,
    )


def moved(seconds: float = 120.0) -> FakeBackend:
    """Return a stand-in that has been busy for so long."""
    backend, chance = FakeBackend(), random.Random(7)
    backend.card = BIG
    snapshot = msgspec.structs.replace(FIRST, time_s=time.time() - seconds)
    while snapshot.time_s + 0.5 < time.time():
        snapshot = later(snapshot, 0.5, chance)
        backend.report(snapshot)
    return backend


def moving_app(backend: FakeBackend, reporting: bool = True, **access: Any) -> FastAPI:
    """Return an app whose worker reports twice a second, if it is `reporting`."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(_report(backend)) if reporting else None
        yield
        if task:
            task.cancel()

    return create_app(backend, AccessOptions(**access), lifespan)


async def _report(backend: FakeBackend) -> None:
    chance = random.Random(8)
    while True:
        await asyncio.sleep(0.5)
        assert backend.snapshot is not None
        backend.report(later(backend.snapshot, 0.5, chance))


if __name__ == "__main__":
    uvicorn.run(moving_app(moved()), port=int(sys.argv[1]), log_level="warning")
