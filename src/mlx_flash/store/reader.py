"""Reads expert bytes from files straight into buffers, several reads in flight at once."""

import itertools
import mmap
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..config import ReadOptions
from ..errors import ExpertReadError
from ..formats.layout import DIRECT_ALIGNMENT
from ..types import ExpertKey
from .files import CheckpointFiles

Preadv = Callable[[int, Sequence[memoryview], int], int]

_BLOCK_BYTES = 1024 * 1024  # of direct reads whose place or size is not aligned, per thread
_MAX_VIEWS = 512  # below every platform's IOV_MAX


@dataclass(frozen=True)
class Read:
    """Fill the byte view `into` from `offset` of the file `path`, on behalf of an expert."""

    key: ExpertKey
    path: Path
    offset: int
    into: memoryview


@dataclass(frozen=True)
class _Run:
    """Reads that are neighbours in one file, done by one system call. Never empty."""

    reads: tuple[Read, ...]

    @property
    def nbytes(self) -> int:
        return sum(read.into.nbytes for read in self.reads)


class _StopWatch:
    """Adds up the time in which at least one thread is inside."""

    def __init__(self) -> None:
        self.total_s = 0.0
        self._lock = threading.Lock()
        self._inside = 0
        self._since = 0.0

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._since = time.perf_counter()
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self.total_s += time.perf_counter() - self._since


class ReadBatch:
    """Reads under way that belong together. After `wait` or `close` none touches its view."""

    def __init__(self, read: Callable[[_Run], int]) -> None:
        """Start nothing yet: `submit` does."""
        self._read = read
        self._change = threading.Condition()
        self._num_active = 0
        self._closed = False
        self._futures: list[Future[int]] = []

    def submit(self, pool: ThreadPoolExecutor, shares: Sequence[Sequence[_Run]]) -> None:
        """Have `shares` done by the threads of a pool; nothing is under way when this raises."""
        try:
            for share in shares:
                self._futures.append(pool.submit(self._run, share))
        except BaseException:
            self.close()
            raise

    @property
    def done(self) -> bool:
        """Whether every read has ended, well or not."""
        return all(future.done() for future in self._futures)

    def wait(self) -> int:
        """Block until the reads are done; return the bytes read.

        Raises:
            ExpertReadError: one of the reads failed, after its retries.
        """
        try:
            return sum(future.result() for future in self._futures)
        except BaseException:
            self.close()
            raise
        finally:
            self._futures.clear()  # an error's traceback would keep them, and they the error

    def _run(self, runs: Sequence[_Run]) -> int:
        """Do `runs` one after the other, none when the batch is closed; return the bytes read."""
        with self._change:
            if self._closed:
                return 0
            self._num_active += 1
        try:
            return sum(self._read(run) for run in runs)
        finally:
            with self._change:
                self._num_active -= 1
                self._change.notify_all()

    def close(self) -> None:
        """Let no run start any more and wait for those that have, whatever interrupts."""
        while True:
            try:
                with self._change:
                    self._closed = True
                    self._change.wait_for(lambda: self._num_active == 0)
                return
            except KeyboardInterrupt:
                continue


class ExpertReader:
    """A pool of reader threads over a set of open files."""

    def __init__(
        self, files: CheckpointFiles, options: ReadOptions, preadv: Preadv = os.preadv
    ) -> None:
        """Start no thread yet. `preadv` may be replaced: to make reads fail, or to compare."""
        self._files = files
        self._options = options
        self.preadv = preadv
        self._of_thread = threading.local()
        self._watch = _StopWatch()
        self._pool = ThreadPoolExecutor(options.num_threads, thread_name_prefix="expert-reader")

    def start(self, reads: Sequence[Read]) -> ReadBatch:
        """Start all `reads`, many at a time, behind those that were started before."""
        batch = ReadBatch(self._read)
        runs = coalesce(reads, self._options.split_bytes)
        batch.submit(self._pool, _balance(runs, self._options.num_threads))
        return batch

    @property
    def busy_s(self) -> float:
        """Seconds in which a read was under way."""
        return self._watch.total_s

    def close(self) -> None:
        """End the threads as soon as they are idle. Never waits; the files stay open.

        The garbage collector may call it in any thread, also in one that is being started and
        holds the interpreter's locks: waiting for a thread would then be a deadlock.
        """
        self._pool.shutdown(wait=False)

    def _read(self, run: _Run) -> int:
        """Read one run, again after a failure; return its bytes."""
        first = run.reads[0]
        reason = ""
        for _ in range(1 + self._options.num_retries):
            try:
                with self._watch:
                    done = self._fill(run)
            except OSError as error:
                reason = error.strerror or str(error)
                continue
            if self._files.changed(first.path):
                reason = "the file changed after it was opened"
                break
            if done == run.nbytes:
                return done
            reason = f"the file ends after {done} of {run.nbytes} bytes"
        raise ExpertReadError(
            reason,
            layer=first.key.layer,
            expert=first.key.expert,
            path=first.path,
            offset=first.offset,
        )

    def _fill(self, run: _Run) -> int:
        """Read until the views are full or the file ends; return the bytes read."""
        path, offset = run.reads[0].path, run.reads[0].offset
        descriptor = self._files.descriptor(path)
        views = [read.into for read in run.reads]
        if self._files.needs_alignment(path):
            return self._fill_directly(descriptor, offset, views)
        done = 0
        while views:
            count = self.preadv(descriptor, views, offset + done)
            if count == 0:
                break
            done += count
            while views and count >= views[0].nbytes:
                count -= views.pop(0).nbytes
            if views:
                views[0] = views[0][count:]
        return done

    def _fill_directly(self, descriptor: int, offset: int, views: Sequence[memoryview]) -> int:
        """Read whole blocks: straight into the views where file and memory are in step.

        The blocks that a view shares with others, and all of a view out of step, go through memory
        of this thread.
        """
        end = offset + sum(view.nbytes for view in views)
        block = memoryview(self._block_of_thread())
        parts, shared = _direct_parts(offset, views, block)
        if parts and self.preadv(descriptor, parts, _floor(offset)) >= end - _floor(offset):
            for start, part in shared:
                _scatter(start, part, offset, views)
            return end - offset
        done = 0
        while offset + done < end:
            start = _floor(offset + done)
            wanted = min(_ceil(end) - start, _BLOCK_BYTES)
            stop = min(start + self.preadv(descriptor, [block[:wanted]], start), end)
            if stop <= offset + done:
                break
            _scatter(start, block[: stop - start], offset, views)
            done = stop - offset
        return done

    def _block_of_thread(self) -> mmap.mmap:
        if not hasattr(self._of_thread, "block"):
            self._of_thread.block = mmap.mmap(-1, _BLOCK_BYTES)  # anonymous memory is aligned
        block: mmap.mmap = self._of_thread.block
        return block


def _floor(offset: int) -> int:
    return offset // DIRECT_ALIGNMENT * DIRECT_ALIGNMENT


def _ceil(offset: int) -> int:
    return -(-offset // DIRECT_ALIGNMENT) * DIRECT_ALIGNMENT


def _direct_parts(
    offset: int, views: Sequence[memoryview], block: memoryview
) -> tuple[list[memoryview], list[tuple[int, memoryview]]]:
    """Return what one direct read from `offset` fills, and the pieces of `block` among it.

    Each piece comes with the place in the file that it is read from. There are no parts where a
    view is out of step with the file, or `block` is too small.
    """
    parts: list[memoryview] = []
    shared: list[tuple[int, memoryview]] = []
    position, used = _floor(offset), 0
    ends = [*itertools.accumulate((view.nbytes for view in views), initial=offset)]
    inner = [
        (_ceil(start), _floor(start + view.nbytes), start, view)
        for start, view in zip(ends, views, strict=False)
    ]
    for first, last, start, view in [*inner, (_ceil(ends[-1]), 0, 0, None)]:
        if view is not None and (first >= last or not _in_step(start, view)):
            if first < last:
                return [], []
            continue
        if first > position:
            if used + first - position > block.nbytes:
                return [], []
            piece = block[used : used + first - position]
            parts.append(piece)
            shared.append((position, piece))
            used += piece.nbytes
        if view is not None:
            parts.append(view[first - start : last - start])
        position = last
    return parts, shared


def _in_step(offset: int, view: memoryview) -> bool:
    """Return whether a place in a file and one in memory are at the same point of a block."""
    address = np.frombuffer(view, np.uint8).ctypes.data
    return (offset - address) % DIRECT_ALIGNMENT == 0


def _scatter(start: int, source: memoryview, offset: int, views: Sequence[memoryview]) -> None:
    """Copy `source`, which lies at `start` in the file, to where it belongs in the views."""
    for view in views:
        first, last = max(start, offset), min(start + source.nbytes, offset + view.nbytes)
        if first < last:
            target = np.frombuffer(view, np.uint8)
            target[first - offset : last - offset] = np.frombuffer(source, np.uint8)[
                first - start : last - start
            ]
        offset += view.nbytes


def coalesce(reads: Sequence[Read], split_bytes: int) -> list[_Run]:
    """Return the reads as runs of at most `split_bytes`: neighbours joined, large ones split."""
    runs: list[_Run] = []
    pending: list[Read] = []
    pending_bytes = 0
    for read in sorted(_split(reads, split_bytes), key=lambda read: (read.path, read.offset)):
        joins = (
            pending
            and pending[-1].path == read.path
            and pending[-1].offset + pending[-1].into.nbytes == read.offset
            and pending_bytes + read.into.nbytes <= split_bytes
            and len(pending) < _MAX_VIEWS
        )
        if pending and not joins:
            runs.append(_Run(tuple(pending)))
            pending, pending_bytes = [], 0
        pending.append(read)
        pending_bytes += read.into.nbytes
    if pending:
        runs.append(_Run(tuple(pending)))
    return runs


def _split(reads: Sequence[Read], split_bytes: int) -> list[Read]:
    """Return the reads with those above `split_bytes` cut into equal parts, page by page."""
    parts = []
    for read in reads:
        count = -(-read.into.nbytes // split_bytes)
        step = -(-read.into.nbytes // max(count, 1) // 4096) * 4096 or 4096
        for start in range(0, read.into.nbytes, step):
            view = read.into[start : start + step]
            parts.append(Read(read.key, read.path, read.offset + start, view))
    return parts


def _balance(runs: Sequence[_Run], num_shares: int) -> list[list[_Run]]:
    """Return the runs dealt into at most `num_shares` lists of about equal bytes, none empty."""
    shares: list[list[_Run]] = [[] for _ in range(min(num_shares, len(runs)))]
    loads = [0] * len(shares)
    for run in sorted(runs, key=lambda run: -run.nbytes):
        lightest = loads.index(min(loads))
        shares[lightest].append(run)
        loads[lightest] += run.nbytes
    return shares
