"""Measures what bounds a streamed model, each alone: computing, reading, multiplying weights."""

import os
import random
import statistics
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import mlx.core as mx

from ..cache.expert_cache import Admission, ExpertCache
from ..kernels.dispatch import choose_kernels
from ..kernels.reference import Quantization
from ..planner.speed import ModelSpeed
from ..store.reader import ReadBatch
from ..streaming.expert_stream import ExpertStream
from ..streaming.tokens import tokens_after
from ..telemetry.machine import num_cores
from .backend import computes_on_cpu
from .load import LoadedModel

_TOGETHER = 4  # experts that are read at a time
_MAX_WINDOWS, _WINDOW_READS = 9, 2 * _TOGETHER  # of a rate; fewer reads end in bursts
_WIDTH, _TILE_ROWS, _TILES, _REPEATS = 2048, 1024, 128, 9  # 151 MB, more than a cache holds


@contextmanager
def everything_resident(stream: ExpertStream | None) -> Iterator[None]:
    """Let a stream take any expert for resident while the block runs: it computes, on others."""
    if stream is None:
        yield
        return
    cache = stream.cache
    with stream.lock:
        stream.cache = _AllHits(cache)
    try:
        yield
    finally:
        with stream.lock:
            stream.cache = cache


def measured_speed(loaded: LoadedModel, prompt: Sequence[int], num_tokens: int) -> ModelSpeed:
    """Return how fast a model computes a prompt and `num_tokens` after it, the median of them."""
    seconds: list[float] = []
    with everything_resident(loaded.stream):
        start = time.perf_counter()
        for _ in tokens_after(loaded.model, prompt, 1 + num_tokens, 0.0, loaded.prefill_step):
            now = time.perf_counter()
            seconds.append(now - start)
            start = now
    return ModelSpeed(statistics.median(seconds[1:]), seconds[0] / len(prompt))


@dataclass(frozen=True)
class ReadSpeed:
    """How fast a model's experts are read: 10^9 bytes per second, and processor time per byte.

    The rate is the median of short windows.
    """

    gbps: float
    cpu_s_per_byte: float


def reading_alone(stream: ExpertStream, num_bytes: int = 10**9) -> ReadSpeed:
    """Read about `num_bytes` of experts in random order, none twice, past the page cache."""
    drop_page_cache({path for layout in stream.layouts for path in layout.files})
    keys = [
        (layer, expert)
        for layer, layout in enumerate(stream.layouts)
        for expert in range(layout.num_experts)
    ]
    random.Random(0).shuffle(keys)
    pending: deque[ReadBatch] = deque()
    marks, cpu = [(time.perf_counter(), 0)], time.process_time()

    def finish_oldest() -> None:
        done = marks[-1][1] + pending.popleft().wait()
        marks.append((time.perf_counter(), done))

    for number, (layer, expert) in enumerate(keys):
        pool = stream.sweeps[layer]
        stream.reader.heat_pause.wait()
        pending.append(stream.start_reading(layer, {expert: number % pool.capacity}, pool))
        if len(pending) == min(_TOGETHER, pool.capacity):
            finish_oldest()
        if marks[-1][1] > num_bytes:
            break
    while pending:
        finish_oldest()
    return ReadSpeed(median_gbps(marks), (time.process_time() - cpu) / marks[-1][1])


def median_gbps(marks: Sequence[tuple[float, int]]) -> float:
    """Return the median rate over windows of as many reads, in 10^9 bytes per second.

    `marks` are the time and the bytes read so far, at the start and after each read. A moment in
    which a disk that others share stands still makes one window slow, and not the rate.
    """
    num_reads = len(marks) - 1
    num_windows = max(1, min(_MAX_WINDOWS, num_reads // _WINDOW_READS))
    ends = [marks[window * num_reads // num_windows] for window in range(num_windows + 1)]
    return statistics.median(
        (num_bytes - before) / (end - start) / 1e9
        for (start, before), (end, num_bytes) in pairwise(ends)
    )


def weights_gbps() -> float:
    """Return the 10^9 bytes of 4-bit weights that one token is multiplied by in a second."""
    rows = mx.random.normal((_TILE_ROWS, _WIDTH)).astype(mx.bfloat16)
    quantized = mx.quantize(rows, group_size=64, bits=4)
    parts = zip(("weight", "scales", "biases"), quantized, strict=True)
    tensors = {name: mx.tile(array, (_TILES, 1)) for name, array in parts}
    mx.eval(tensors)
    kernels = choose_kernels(None, computes_on_cpu(), num_cores()).cpu
    matrix = kernels.matrix(tensors, Quantization(64, 4, "affine")) if kernels else None
    weight, scales, biases = tensors.values()
    x = mx.ones((1, _WIDTH), mx.float32 if kernels else mx.bfloat16)
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        if kernels is not None and matrix is not None:
            kernels.linear(matrix, x)
        else:
            mx.eval(mx.quantized_matmul(x, weight, scales, biases, group_size=64, bits=4))
        seconds.append(time.perf_counter() - start)
    nbytes = sum(int(array.nbytes) for array in tensors.values())
    return nbytes / statistics.median(seconds[1:]) / 1e9


def drop_page_cache(files: Iterable[Path]) -> bool:
    """Drop the files from the page cache; return whether the system lets a user do that.

    Pages that are mapped into memory stay.
    """
    if not hasattr(os, "posix_fadvise"):
        return False
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    return True


class _AllHits(ExpertCache):
    """A cache that finds every expert in some slot: its results are wrong and take as long.

    The books are those of the cache that it stands for, which stay as they are.
    """

    def __init__(self, cache: ExpertCache) -> None:
        self._layers = cache._layers

    @contextmanager
    def admit(self, layer: int, experts: Iterable[int]) -> Iterator[Admission]:
        """Yield a slot for each expert; where there are more of them they share."""
        num_slots = self.capacities[layer]
        yield Admission({expert: n % num_slots for n, expert in enumerate(experts)}, {}, ())

    def reserve(self, layer: int, experts: Iterable[int], *, evict: bool = True) -> dict[int, int]:
        """Return nothing: nothing is missing."""
        return {}

    def may_resize(self, layer: int, capacity: int) -> bool:
        """Return False: slots stay as they are while this is measured."""
        return False
