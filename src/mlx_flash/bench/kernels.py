"""Measures the CPU kernels: weight bytes per second, error, and the ratio to MLX's operations."""

import itertools
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from ..kernels import reference
from ..kernels.cpu.kernels import CpuKernels
from ..kernels.cpu.matrix import Matrix
from .matrices import (
    CASES,
    CHECKED_ROWS,
    Case,
    mlx_gather,
    nbytes_of,
    random_matrix,
)

_WIDTH = 2048
_MATRIX_BYTES = 160 * 10**6  # several times a large cache
_MLX_SHARE = 32  # MLX multiplies this part of the rows: it is slow, and its rate the same
_EXPERTS, _EXPERT_ROWS, _TOP_K = 64, 768, 8
_COPY_BYTES = 256 * 10**6
_WARM_UP_S, _REPEATS = 0.05, 15


@dataclass(frozen=True)
class KernelRow:
    """One measurement: 10^9 weight bytes per second, the median over repeats.

    `call` is linear (a large matrix times `batch` rows) or experts (the products of 8 of 64
    experts for each of `batch` rows). `rel_error` is the norm of the difference to float64 over
    the norm. `speedup_vs_mlx` is the ratio to MLX's operation on all its threads, in float32.
    """

    format: str
    call: str
    batch: int
    threads: int
    gbps: float
    share_of_copy: float
    rel_error: float
    speedup_vs_mlx: float


@dataclass(frozen=True)
class KernelReport:
    """All rows, and what the machine copies: bytes read and written, on one core and on all."""

    copy_gbps: float
    copy_gbps_one_core: float
    cores: int
    rows: list[KernelRow]

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)


def measure_kernels(
    cores: int, on_row: Callable[[KernelRow], None], cases: tuple[Case, ...] = CASES
) -> KernelReport:
    """Measure every format on one thread and on `cores`; call `on_row` after each row."""
    copy = {threads: _copy_gbps(threads) for threads in {1, cores}}
    rows = []
    for case in cases:
        for row in _case_rows(case, cores, copy):
            on_row(row)
            rows.append(row)
    return KernelReport(copy[cores], copy[1], cores, rows)


def _case_rows(case: Case, cores: int, copy: dict[int, float]) -> Iterator[KernelRow]:
    pools = {threads: CpuKernels(threads) for threads in sorted({1, cores})}
    bits = case.quantization.bits if case.quantization else 8 * case.dtype.size
    num_rows = _MATRIX_BYTES * 8 // (bits * _WIDTH) // _MLX_SHARE // 4 * 4 * _MLX_SHARE
    tensors, exact = random_matrix(case, num_rows, _WIDTH)
    nbytes = nbytes_of(tensors)
    part = {name: array[: num_rows // _MLX_SHARE] for name, array in tensors.items()}
    mx.eval(part)
    for batch in (1, 8):
        x = mx.random.normal((batch, _WIDTH))
        mlx_s = _median_s(partial(_evaluated, reference.linear, x, part, case.quantization), 3)
        mlx_gbps = nbytes / _MLX_SHARE / mlx_s / 1e9
        truth = np.asarray(x).astype(np.float64) @ exact.T
        for threads, kernels in pools.items():
            matrix = _matrix(kernels, tensors, case)
            found = np.asarray(kernels.linear(matrix, x))[:, :CHECKED_ROWS]
            error = np.linalg.norm(found - truth) / np.linalg.norm(truth)
            gbps = nbytes / _median_s(partial(kernels.linear, matrix, x)) / 1e9
            share = gbps / copy[threads]
            yield KernelRow(
                case.label, "linear", batch, threads, gbps, share, float(error), gbps / mlx_gbps
            )
    yield _experts_row(case, pools[cores], copy[cores])


def _experts_row(case: Case, kernels: CpuKernels, copy_gbps: float) -> KernelRow:
    """Measure the products of 8 of 64 experts for one row, other experts each time."""
    tensors, exact = random_matrix(case, _EXPERTS * _EXPERT_ROWS, _WIDTH)
    stack = {
        name: array.reshape(_EXPERTS, _EXPERT_ROWS, array.shape[-1])
        for name, array in tensors.items()
    }
    mx.eval(stack)
    matrix = _matrix(kernels, stack, case)
    x = mx.random.normal((1, 1, _WIDTH))
    picks = [
        mx.array(np.random.default_rng(seed).permutation(_EXPERTS)[:_TOP_K].astype(np.uint32))
        for seed in range(_REPEATS)
    ]
    picks[0] = mx.arange(_TOP_K, dtype=mx.uint32)
    mx.eval(picks)
    found = np.asarray(kernels.gather_linear(matrix, x, picks[0]))
    truth = exact @ np.asarray(x).astype(np.float64).reshape(-1)
    first = found.reshape(-1)[:CHECKED_ROWS]
    error = np.linalg.norm(first - truth) / np.linalg.norm(truth)
    nbytes = nbytes_of(tensors) * _TOP_K / _EXPERTS
    ours, theirs = itertools.cycle(picks), itertools.cycle(picks)
    gbps = nbytes / _median_s(lambda: kernels.gather_linear(matrix, x, next(ours))) / 1e9
    mlx_s = _median_s(lambda: mx.eval(mlx_gather(x, stack, next(theirs), case)), 3)
    ratio = gbps / (nbytes / mlx_s / 1e9)
    threads = kernels.num_threads
    return KernelRow(case.label, "experts", 1, threads, gbps, gbps / copy_gbps, float(error), ratio)


def _evaluated(operation: Callable[..., mx.array], *args: Any) -> None:
    mx.eval(operation(*args))


def _matrix(kernels: CpuKernels, tensors: dict[str, mx.array], case: Case) -> Matrix:
    matrix = kernels.matrix(tensors, case.quantization)
    assert matrix is not None, f"{case.label} has no kernel"
    return matrix


def _median_s(action: Callable[[], object], repeats: int = _REPEATS) -> float:
    """Return the median seconds of an action, after a warm-up."""
    start = time.perf_counter()
    action()
    while time.perf_counter() - start < _WARM_UP_S and repeats == _REPEATS:
        action()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _copy_gbps(threads: int) -> float:
    """Return 10^9 bytes read and written per second while memory is copied."""
    source = np.ones(_COPY_BYTES // 8)
    target = np.zeros_like(source)
    parts = [
        slice(n * len(source) // threads, (n + 1) * len(source) // threads) for n in range(threads)
    ]

    def copy() -> None:
        others = [
            threading.Thread(target=np.copyto, args=(target[part], source[part]))
            for part in parts[1:]
        ]
        for thread in others:
            thread.start()
        np.copyto(target[parts[0]], source[parts[0]])
        for thread in others:
            thread.join()

    return 2 * source.nbytes / _median_s(copy, 5) / 1e9
