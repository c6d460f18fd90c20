"""Reads expert bytes from files straight into buffers, several reads in flight at once."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..config import ReadOptions
from ..errors import ExpertReadError
from ..types import ExpertKey
from .files import CheckpointFiles

Preadv = Callable[[int, Sequence[memoryview], int], int]

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
        """Start no thread yet. `preadv` is replaced in tests to make reads fail."""
        self._files = files
        self._options = options
        self._preadv = preadv
        self._pool = ThreadPoolExecutor(options.num_threads, thread_name_prefix="expert-reader")

    def start(self, reads: Sequence[Read]) -> ReadBatch:
        """Start all `reads`, many at a time, behind those that were started before."""
        batch = ReadBatch(self._read)
        runs = coalesce(reads, self._options.split_bytes)
        batch.submit(self._pool, _balance(runs, self._options.num_threads))
        return batch

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
        descriptor = self._files.descriptor(run.reads[0].path)
        offset = run.reads[0].offset
        views = [read.into for read in run.reads]
        done = 0
        while views:
            count = self._preadv(descriptor, views, offset + done)
            if count == 0:
                break
            done += count
            while views and count >= views[0].nbytes:
                count -= views.pop(0).nbytes
            if views:
                views[0] = views[0][count:]
        return done


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
