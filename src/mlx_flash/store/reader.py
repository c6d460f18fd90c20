"""Reads expert bytes from files straight into buffers, several reads in flight at once."""

import os
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from ..config import ReadOptions
from ..errors import ExpertReadError
from ..formats.layout import DIRECT_ALIGNMENT, aligned
from ..types import ExpertKey
from .direct import DirectReads, Preadv
from .files import CheckpointFiles
from .throttle import HeatPause, RateCap

_MAX_VIEWS = 512  # below every platform's IOV_MAX


@dataclass(frozen=True)
class Read:
    """Fill the byte views `into`, one after the other, from `offset` of `path`, for an expert.

    With a `checksum`, which is the CRC-32 of all of it, the read fails where that is another.
    """

    key: ExpertKey
    path: Path
    offset: int
    into: tuple[memoryview, ...]
    checksum: int | None = None

    @property
    def nbytes(self) -> int:
        """The bytes to read."""
        return sum(view.nbytes for view in self.into)


@dataclass(frozen=True)
class Run:
    """What one system call reads: of one read, of neighbours in one file, or a part of one."""

    key: ExpertKey
    path: Path
    offset: int
    views: tuple[memoryview, ...]
    nbytes: int


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
    """Reads under way that belong together. After `wait` or `close` none touches its views."""

    def __init__(self, read: Callable[[Run], int], reads: Sequence[Read], num_runs: int) -> None:
        """Start nothing: whoever calls `do` with each of the runs of `reads` does."""
        self._read = read
        self._checked = [item for item in reads if item.checksum is not None]
        self._change = threading.Condition()
        self._num_left = num_runs
        self._num_active = 0
        self._num_bytes = 0
        self._closed = False
        self._error: BaseException | None = None

    def do(self, run: Run) -> None:
        """Do a run, unless the batch is closed or another run has failed. For reader threads."""
        with self._change:
            if self._closed:
                return
            self._num_active += 1
        done, failure = 0, None
        try:
            done = self._read(run)
        except BaseException as error:  # noqa: BLE001 - `wait` raises it again
            failure = error
        with self._change:
            self._num_active -= 1
            self._num_left -= 1
            self._num_bytes += done
            if failure is not None:
                self._error, self._closed = failure, True
            if self._num_left == 0 or self._closed:
                self._change.notify_all()

    @property
    def done(self) -> bool:
        """Whether every read has ended, well or not, or the batch was closed."""
        return self._num_left == 0 or self._closed

    def wait(self) -> int:
        """Block until the reads are done; return the bytes read.

        Raises:
            ExpertReadError: one of the reads failed, after its retries, or a checksum is wrong.
        """
        try:
            with self._change:
                self._change.wait_for(lambda: self.done)
        except BaseException:
            self.close()
            raise
        if self._error is not None:
            self.close()
            error, self._error = self._error, None  # its traceback holds this batch
            raise error
        assert self._num_left == 0, "waited for a batch that was closed"
        while self._checked:
            _check(self._checked.pop())
        return self._num_bytes

    def cancel(self) -> None:
        """Let no run start any more; wait for nothing. `settled` says when none is under way."""
        self._closed = True

    @property
    def settled(self) -> bool:
        """Whether no run is under way, nor will be."""
        with self._change:
            return self.done and self._num_active == 0

    @property
    def complete(self) -> bool:
        """Whether every run has ended well."""
        return self._num_left == 0 and self._error is None

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
    """Reader threads over a set of open files."""

    def __init__(
        self,
        files: CheckpointFiles,
        options: ReadOptions,
        preadv: Preadv = os.preadv,
        disk_c: Callable[[], float | None] = lambda: None,
        straight: bool = True,
    ) -> None:
        """Start no thread yet. `preadv` may be replaced: to make reads fail, or to compare.

        Direct reads go `straight` into the views, unless somebody may move that memory meanwhile.

        `disk_c` returns the disk's temperature in degrees Celsius, None where there is none.
        """
        self._files = files
        self._options = options
        self.preadv = preadv
        self.rate_cap = RateCap(options.max_gbps)
        self.heat_pause = HeatPause(options.max_temperature_c, disk_c)
        self._direct = DirectReads(straight)
        self._watch = _StopWatch()
        self._work: SimpleQueue[tuple[ReadBatch, Run] | None] = SimpleQueue()
        self._num_threads = 0
        self._closed = False

    def start(
        self,
        reads: Sequence[Read],
        register: Callable[[ReadBatch], object] = lambda batch: None,
    ) -> ReadBatch:
        """Start all `reads`, many at a time, behind those that were started before.

        `register` is handed what is returned before any of them starts: an interrupt may come
        before the caller has it, and then somebody must still be able to end the reads.

        Does not look at the disk's temperature: who cannot do without the bytes calls
        `heat_pause.wait` before, where an interrupt can end it; others ask `heat_pause.pause_s`.

        Raises:
            RuntimeError: the reader is closed, or the system lets it start no thread.
        """
        if self._closed:
            raise RuntimeError("the reader is closed")
        runs = coalesce(reads, self._options.split_bytes)
        batch = ReadBatch(self._read, reads, len(runs))
        self._start_threads()
        register(batch)
        try:
            for run in runs:
                self._work.put((batch, run))
        except BaseException:
            batch.close()
            raise
        return batch

    def _start_threads(self) -> None:
        """Start the threads that are missing, as far as the system lets us."""
        while self._num_threads < self._options.num_threads:
            thread = threading.Thread(
                target=_serve_forever, args=(self._work,), name="expert-reader", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:
                if self._num_threads == 0:
                    raise
                return
            self._num_threads += 1

    @property
    def direct(self) -> bool:
        """Whether reads go past the page cache."""
        return self._files.direct

    @property
    def busy_s(self) -> float:
        """Seconds in which a read was under way."""
        return self._watch.total_s

    def close(self) -> None:
        """End the threads as soon as they are idle. Never waits; the files stay open.

        The garbage collector may call it in any thread, also in one that is being started and
        holds the interpreter's locks: waiting for a thread would then be a deadlock.
        """
        self._closed = True
        for _ in range(self._num_threads):
            self._work.put(None)

    def _read(self, run: Run) -> int:
        """Read one run, again after a failure; return its bytes."""
        reason = ""
        for _ in range(1 + self._options.num_retries):
            self.rate_cap.wait(aligned(run.offset % DIRECT_ALIGNMENT + run.nbytes))
            try:
                with self._watch:
                    done = self._fill(run)
            except OSError as error:
                reason = error.strerror or str(error)
                continue
            if self._files.changed(run.path):
                reason = "the file changed after it was opened"
                break
            if done == run.nbytes:
                return done
            reason = f"the file ends after {done} of {run.nbytes} bytes"
        raise _error(run, reason)

    def _fill(self, run: Run) -> int:
        """Read until the views are full or the file ends; return the bytes read."""
        descriptor = self._files.descriptor(run.path)
        if self._files.needs_alignment(run.path):
            return self._direct.fill(self.preadv, descriptor, run.offset, run.views)
        views = list(run.views)
        done = 0
        while views:
            count = self.preadv(descriptor, views, run.offset + done)
            if count == 0:
                break
            done += count
            while views and count >= views[0].nbytes:
                count -= views.pop(0).nbytes
            if views:
                views[0] = views[0][count:]
        return done


def _serve_forever(work: "SimpleQueue[tuple[ReadBatch, Run] | None]") -> None:
    """Do runs as they come, until there is a None."""
    while (item := work.get()) is not None:
        batch, run = item
        batch.do(run)
        del item, batch, run  # hold no slots while there is nothing to do


def _check(read: Read) -> None:
    checksum = 0
    for view in read.into:
        checksum = zlib.crc32(view, checksum)
    if checksum != read.checksum:
        raise _error(
            read,
            f"its checksum is {checksum:08x} and should be {read.checksum:08x}: run "
            "mlx-flash pack --check on the model",
        )


def _error(what: Read | Run, reason: str) -> ExpertReadError:
    return ExpertReadError(
        reason,
        layer=what.key.layer,
        expert=what.key.expert,
        path=what.path,
        offset=what.offset,
    )


def coalesce(reads: Sequence[Read], split_bytes: int) -> list[Run]:
    """Return the reads as runs of at most `split_bytes`: neighbours joined, large ones split."""
    runs: list[Run] = []
    pieces = [run for read in reads for run in _split(read, split_bytes)]
    for piece in sorted(pieces, key=lambda run: (run.path, run.offset)):
        last = runs[-1] if runs else None
        if (
            last is not None
            and last.offset + last.nbytes == piece.offset
            and last.nbytes + piece.nbytes <= split_bytes
            and len(last.views) + len(piece.views) <= _MAX_VIEWS
            and last.path == piece.path
        ):
            views, nbytes = last.views + piece.views, last.nbytes + piece.nbytes
            runs[-1] = Run(last.key, last.path, last.offset, views, nbytes)
        else:
            runs.append(piece)
    return runs


def _split(read: Read, split_bytes: int) -> list[Run]:
    """Return a read as runs of at most `split_bytes`, about equal and cut at pages of memory."""
    nbytes = read.nbytes
    if nbytes <= split_bytes:
        return [Run(read.key, read.path, read.offset, read.into, nbytes)]
    step = -(-nbytes // -(-nbytes // split_bytes) // 4096) * 4096
    return [
        Run(read.key, read.path, read.offset + start, views, sum(view.nbytes for view in views))
        for start in range(0, nbytes, step)
        for views in [_slice(read.into, start, start + step)]
    ]


def _slice(views: Sequence[memoryview], start: int, stop: int) -> tuple[memoryview, ...]:
    """Return the bytes from `start` to `stop` of all views together."""
    parts, position = [], 0
    for view in views:
        first, last = max(start - position, 0), min(stop - position, view.nbytes)
        if first < last:
            parts.append(view[first:last])
        position += view.nbytes
    return tuple(parts)
