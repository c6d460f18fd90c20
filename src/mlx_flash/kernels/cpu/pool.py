"""Threads that share the work of one product, asleep in between.

The caller works too, and starts at once: a thread that wakes late finds less left to do, so that
the time it takes to wake is not lost. Threads sleep in a read of an eventfd, or where there is none
of a pipe (Linux wakes the reader of a pipe on the core of the writer), and never spin but for the
last chunk of a phase.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types

from .jit import compiled
from .memory import call, fetch_add, load_int, shared_load, shared_store

# bytes into the shared block
_OPEN, _ACTIVE, _NUM_PHASES, _PHASES, _ENDED, _CALLERS_CORE = 0, 64, 128, 136, 144, 152
_SHARED_BYTES = 192
_FUNCTION, _TASK, _NUM_CHUNKS, _NEXT, _DONE = 0, 8, 16, 64, 128  # bytes into a phase
_PHASE_BYTES = 192

_read = types.ExternalFunction("read", types.int64(types.int32, types.int64, types.int64))
_write = types.ExternalFunction("write", types.int64(types.int32, types.int64, types.int64))
_yield = types.ExternalFunction("sched_yield", types.int32())
_sleep_us = types.ExternalFunction("usleep", types.int32(types.uint32))

_LINUX = sys.platform == "linux"
_MAX_CORES = 1024  # of the C library's set of cores
_SPINS = 200  # looks at a counter before the core is offered to others
_PATIENCE = 20 * _SPINS  # and before it is left to them: whom we wait for may be waiting for it


def start_of(array: npt.NDArray[Any]) -> int:
    """Return the address of a contiguous, writable array, in a quarter of the time of `ctypes`."""
    return ctypes.addressof(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Phase:
    """A compiled step, its task, and how many chunks it has. `num_chunks` may be 0."""

    function: int
    task: npt.NDArray[np.int64]
    num_chunks: int


class Program:
    """Phases that are done one after the other; may be run again and again, one run at a time.

    `keep` are the arrays whose addresses the tasks hold: they live as long as the program.
    """

    def __init__(self, phases: Sequence[Phase], keep: Sequence[npt.NDArray[Any]] = ()) -> None:
        self.phases = tuple(phases)
        self._keep = tuple(keep)
        self._table = np.zeros((max(1, len(phases)), _PHASE_BYTES // 8), np.int64)
        for row, phase in zip(self._table, phases, strict=False):
            row[:3] = phase.function, start_of(phase.task), phase.num_chunks
        self._address = start_of(self._table)

    def start(self) -> int:
        """Return the address of the table of phases, none of which has begun."""
        self._table[:, _NEXT // 8] = 0
        self._table[:, _DONE // 8] = 0
        return self._address


class Pool:
    """The calling thread and `num_threads - 1` more. One `run` at a time: callers take turns.

    Who holds `turn` keeps others from running, and may itself run.
    """

    def __init__(self, num_threads: int) -> None:
        """Start the threads; they end when the pool is no longer used."""
        self.num_threads = num_threads
        self.turn = threading.RLock()
        self._shared = np.zeros(_SHARED_BYTES // 8, np.int64)
        others = num_threads - 1
        if hasattr(os, "eventfd"):
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_SEMAPHORE)
            sleep_on, self._message = self._wake, np.array([others], np.int64)
        else:
            sleep_on, self._wake = os.pipe()
            os.set_blocking(self._wake, False)  # a full pipe wakes as well as one word more
            self._message = np.zeros(max(1, others), np.int64)  # one word for each
        for _ in range(others):
            own = (os.dup(sleep_on), np.zeros(1, np.int64), self._shared)
            threading.Thread(
                target=_serve_forever, args=own, name="cpu-kernel", daemon=True
            ).start()
        if sleep_on != self._wake:
            os.close(sleep_on)
        self._addresses = start_of(self._shared), start_of(self._message)
        ending = weakref.finalize(self, _end, self._shared, self._wake, self._message)
        ending.atexit = False  # the threads end with the process

    def run(self, program: Program, *, alone: bool = False) -> None:
        """Do all phases, one after the other; `alone` wakes no other thread."""
        message_bytes = 0 if alone or self.num_threads == 1 else self._message.nbytes
        with self.turn:
            table, count = program.start(), len(program.phases)
            _run(*self._addresses, table, count, self._wake, message_bytes)


def _end(shared: npt.NDArray[np.int64], wake: int, message: npt.NDArray[np.int64]) -> None:
    shared[_ENDED // 8] = 1
    with contextlib.suppress(BlockingIOError, BrokenPipeError):
        os.write(wake, message.tobytes())
    os.close(wake)


def _serve_forever(
    descriptor: int, word: npt.NDArray[np.int64], shared: npt.NDArray[np.int64]
) -> None:
    """Work whenever a word arrives, until the pool ends. Signals are for other threads."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    allowed, own = (np.zeros(_MAX_CORES // 64, np.uint64) for _ in range(2))
    cores = os.sched_getaffinity(0) if _LINUX else set()
    for core in cores:
        if core < _MAX_CORES:
            allowed[core // 64] |= np.uint64(1 << core % 64)
    may_move = len(cores) > 1 and max(cores) < _MAX_CORES
    _serve(descriptor, start_of(word), start_of(shared), allowed, own, may_move)
    os.close(descriptor)


if _LINUX:
    _getcpu = types.ExternalFunction("sched_getcpu", types.int32())
    _setaffinity = types.ExternalFunction(
        "sched_setaffinity", types.int32(types.int32, types.int64, types.int64)
    )

    @compiled
    def _core():  # type: ignore[no-untyped-def]
        """Return the core this thread runs on."""
        return types.int64(_getcpu())

    @compiled
    def _leave_core(core, allowed, own):  # type: ignore[no-untyped-def]
        """Move this thread to another of the allowed cores; both arrays are sets of cores."""
        for word in range(len(own)):
            own[word] = allowed[word]
        own[core // 64] &= ~(types.uint64(1) << types.uint64(core % 64))
        _setaffinity(0, 8 * len(own), own.ctypes.data)

else:

    @compiled
    def _core():  # type: ignore[no-untyped-def]
        """Return nothing: cores have no number here."""
        return types.int64(-1)

    @compiled
    def _leave_core(core, allowed, own):  # type: ignore[no-untyped-def]
        """Stay."""


@compiled
def _be_polite(looks):  # type: ignore[no-untyped-def]
    """Let others have the core now and then, while another thread is waited for."""
    if looks % _SPINS == 0:
        if looks > _PATIENCE:
            _sleep_us(20)
        else:
            _yield()


@compiled
def _work(shared):  # type: ignore[no-untyped-def]
    """Take chunks until all phases are done."""
    phases = load_int(shared + _PHASES)
    for number in range(load_int(shared + _NUM_PHASES)):
        phase = phases + _PHASE_BYTES * number
        num_chunks = load_int(phase + _NUM_CHUNKS)
        chunk = fetch_add(phase + _NEXT, 1)
        while chunk < num_chunks:
            call(load_int(phase + _FUNCTION), load_int(phase + _TASK), chunk)
            fetch_add(phase + _DONE, 1)
            chunk = fetch_add(phase + _NEXT, 1)
        looks = 0
        while shared_load(phase + _DONE) < num_chunks:
            looks += 1
            _be_polite(looks)


@compiled
def _run(shared, message, phases, num_phases, wake, message_bytes):  # type: ignore[no-untyped-def]
    """Open the pool, work, close it, and wait for whoever still looks at the phases."""
    shared_store(shared + _PHASES, phases)
    shared_store(shared + _NUM_PHASES, num_phases)
    shared_store(shared + _CALLERS_CORE, _core())
    shared_store(shared + _OPEN, 1)
    if message_bytes > 0:
        _write(wake, message, message_bytes)
    _work(shared)
    shared_store(shared + _OPEN, 0)
    looks = 0
    while shared_load(shared + _ACTIVE) > 0:
        looks += 1
        _be_polite(looks)


@compiled
def _serve(descriptor, word, shared, allowed, own, may_move):  # type: ignore[no-untyped-def]
    """Wait for a word, work if there is work, again; return when the pool has ended.

    Schedulers like to wake a thread on the core of whoever wakes it, and that one goes on working:
    a thread that finds itself there moves to the other cores, until it meets a caller there.
    """
    while _read(descriptor, word, 8) == 8 and shared_load(shared + _ENDED) == 0:
        core = _core()
        if may_move and core == shared_load(shared + _CALLERS_CORE):
            _leave_core(core, allowed, own)
        fetch_add(shared + _ACTIVE, 1)  # before the look: the pool is not closed under a worker
        if shared_load(shared + _OPEN) == 1:
            _work(shared)
        fetch_add(shared + _ACTIVE, -1)
