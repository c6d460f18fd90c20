"""Measures the disk that holds a model, by reading the model."""

import mmap
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ..config import ReadOptions
from ..store.files import open_direct

_READ_BYTES = 1024 * 1024
_LATENCY_BYTES = 4096
_MAX_READS = 512
_MAX_LATENCY_READS = 64


@dataclass(frozen=True)
class DiskSpeed:
    """GB/s of 1 MiB reads and seconds per 4 KiB read; None where there was too little to read.

    `direct` says whether the reads went past the page cache; never on macOS, where what
    is there already is taken from there.
    """

    gbps: float | None
    latency_s: float | None
    read_bytes: int
    direct: bool


def measure_disk(paths: Sequence[Path]) -> DiskSpeed:
    """Return the speed of the disk that holds `paths`.

    No offset is read twice, and the pages are dropped first where the disk cannot be read
    directly.
    """
    with ExitStack() as stack:
        files = []
        for path in paths:
            files.append(_DirectFile(path))
            stack.callback(files[-1].close)
        places = [(f, o) for f in files for o in range(0, f.size - _READ_BYTES + 1, _READ_BYTES)]
        places = places[:: max(1, len(places) // _MAX_READS)][:_MAX_READS]
        if len(places) < 2:
            return DiskSpeed(None, None, 0, direct=False)
        split = max(len(places) - _MAX_LATENCY_READS, len(places) // 2)
        wide, narrow = places[:split], places[split:]
        latency_s = _timed(narrow, _LATENCY_BYTES, 1) / len(narrow)
        seconds = _timed(wide, _READ_BYTES, ReadOptions().num_threads)
        read_bytes = len(wide) * _READ_BYTES
        direct = all(file.direct for file in files)
        return DiskSpeed(read_bytes / seconds / 1e9, latency_s, read_bytes, direct)


def _timed(places: Sequence[tuple["_DirectFile", int]], nbytes: int, num_threads: int) -> float:
    """Return the seconds it takes to read `nbytes` at each place, `num_threads` at a time."""
    with ThreadPoolExecutor(num_threads) as pool:
        start = time.perf_counter()
        list(pool.map(lambda place: place[0].read(place[1], nbytes), places))
        return time.perf_counter() - start


class _DirectFile:
    """A file read past the page cache where the platform and file system allow it."""

    def __init__(self, path: Path) -> None:
        self.size = path.stat().st_size
        self._descriptor, self.direct = open_direct(path)
        if sys.platform != "darwin" and not self.direct:
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def read(self, offset: int, nbytes: int) -> int:
        """Read into memory of its own, aligned as direct reads ask; return the bytes read."""
        with mmap.mmap(-1, nbytes) as buffer:  # anonymous memory starts at a page
            return os.preadv(self._descriptor, [buffer], offset)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
