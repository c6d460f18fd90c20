"""Looks at the machine: versions, back end, memory and the disk that holds a model."""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .. import __version__
from ..config import ReadOptions
from ..formats.checkpoint import Checkpoint
from ..telemetry import machine
from .backend import backend_name, model_memory

_READ_BYTES = 1024 * 1024
_LATENCY_BYTES = 4096
_MAX_READS = 512
_MAX_LATENCY_READS = 64


@dataclass(frozen=True)
class DoctorReport:
    """What was found.

    `model_memory_bytes` is free where a model goes, the card's memory on CUDA. `ssd_gbps` is 10^9
    bytes per second; None where nothing could be measured. `direct_io` says whether the disk was
    read past the page cache. `problems` are sentences.
    """

    versions: dict[str, str | None]
    backend: str
    cores: int
    memory_bytes: int
    memory_available_bytes: int
    model_memory_bytes: int
    model: str
    ssd_gbps: float | None
    ssd_latency_s: float | None
    ssd_read_bytes: int
    direct_io: bool
    problems: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)


def examine(folder: Path) -> DoctorReport:
    """Return what this machine has, its disk measured by reading the model in `folder`.

    Raises:
        ModelNotFoundError, FormatError: the folder is no sound checkpoint.
    """
    checkpoint = Checkpoint.open(folder)
    shards = sorted({entry.path for entry in checkpoint.tensors.values()})
    gbps, latency_s, read_bytes, direct = measure_disk(shards)
    available = machine.available_memory_bytes()
    versions = {name: _version(name) for name in ("mlx", "mlx-lm", "numpy", "huggingface-hub")}
    versions = {
        "mlx-flash": __version__,
        "python": ".".join(str(part) for part in sys.version_info[:3]),
        **versions,
    }
    problems = []
    if not direct:
        problems.append(
            "the disk cannot be read directly: its speed may be that of the page cache."
        )
    if available < 2 * 10**9:
        problems.append("less than 2 GB of memory are free: close programs or expect small caches.")
    if backend_name() == "cpu":
        problems.append("MLX computes on the CPU: correct, but much slower than on a GPU.")
    return DoctorReport(
        versions=versions,
        backend=backend_name(),
        cores=machine.num_cores(),
        memory_bytes=machine.total_memory_bytes(),
        memory_available_bytes=available,
        model_memory_bytes=model_memory().available_bytes,
        model=str(folder),
        ssd_gbps=gbps,
        ssd_latency_s=latency_s,
        ssd_read_bytes=read_bytes,
        direct_io=direct,
        problems=problems,
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def measure_disk(paths: list[Path]) -> tuple[float | None, float | None, int, bool]:
    """Return (GB/s of 1 MiB reads, seconds per 4 KiB read, bytes read, past the page cache?).

    No offset is read twice, and the pages are dropped first where the disk cannot be read
    directly.
    """
    files = [_DirectFile(path) for path in paths]
    try:
        wide = [(f, o) for f in files for o in range(0, f.size - _READ_BYTES + 1, _READ_BYTES)]
        if len(wide) < 2:
            return None, None, 0, False
        stride = max(1, len(wide) // _MAX_READS)
        chosen = wide[::stride][:_MAX_READS]
        narrow, chosen = chosen[-min(_MAX_LATENCY_READS, len(chosen) // 2) :], chosen
        chosen = chosen[: len(chosen) - len(narrow)]
        latency_s = _timed(narrow, _LATENCY_BYTES, 1) / len(narrow)
        seconds = _timed(chosen, _READ_BYTES, ReadOptions().num_threads)
        read_bytes = len(chosen) * _READ_BYTES
        return read_bytes / seconds / 1e9, latency_s, read_bytes, all(f.direct for f in files)
    finally:
        for file in files:
            file.close()


def _timed(places: list[tuple["_DirectFile", int]], nbytes: int, num_threads: int) -> float:
    """Return the seconds it takes to read `nbytes` at each place, `num_threads` at a time."""
    with ThreadPoolExecutor(num_threads) as pool:
        start = time.perf_counter()
        list(pool.map(lambda place: place[0].read(place[1], nbytes), places))
        return time.perf_counter() - start


class _DirectFile:
    """A file read past the page cache where the platform and file system allow it."""

    def __init__(self, path: Path) -> None:
        self.size = path.stat().st_size
        self.direct, self._descriptor = _open_direct(path)

    def read(self, offset: int, nbytes: int) -> int:
        """Read into memory of its own, aligned as direct reads ask; return the bytes read."""
        import mmap

        with mmap.mmap(-1, nbytes) as buffer:  # anonymous memory starts at a page
            return os.preadv(self._descriptor, [buffer], offset)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def _open_direct(path: Path) -> tuple[bool, int]:
    """Return (whether reads go past the page cache, descriptor)."""
    if sys.platform == "darwin":
        import fcntl

        descriptor = os.open(path, os.O_RDONLY)
        fcntl.fcntl(descriptor, fcntl.F_NOCACHE, 1)
        return True, descriptor
    try:
        return True, os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return False, descriptor
