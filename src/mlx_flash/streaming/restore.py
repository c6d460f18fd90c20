"""Reads back the experts that were in memory when a model last ran, while it is not in use."""

import threading
import time
import weakref
from collections import deque
from collections.abc import MutableMapping, Sequence, Set
from typing import TYPE_CHECKING

from ..errors import ExpertReadError
from ..store.reader import ReadBatch
from ..types import ExpertKey

if TYPE_CHECKING:
    from .expert_stream import ExpertStream

_QUIET_S = 0.05  # after a layer's call: none comes that soon when the model is at rest
_STEP_S = 0.001  # between two steps
_STEP_EXPERTS = 4  # that a step looks at: starting the reads of one takes a fraction of a ms
_IN_FLIGHT_BYTES = 4 * 1024 * 1024  # from which on a step starts nothing


class Restorer:
    """Reads experts into free slots, on a thread of its own that ends with its work.

    It never evicts. It works while the model is being loaded and while it is at rest: what a
    running model asks for fills free slots better, and needs the disk and the interpreter. What is
    being read when a call begins is no more than _IN_FLIGHT_BYTES and one expert. The books are
    touched in short steps under the stream's lock, which a call holds until it is done. The work
    ends early when a read fails, and when the stream is closed or no longer used: the thread holds
    no reference to it between steps.
    """

    def __init__(self) -> None:
        """Have nothing to do: `start` brings work."""
        self._pending: deque[tuple[int, ExpertKey]] = deque()
        self._reading: dict[ExpertKey, tuple[int, ReadBatch]] = {}
        self._last_call = float("-inf")
        self.thread: threading.Thread | None = None

    def start(self, stream: "ExpertStream", experts: Sequence[Sequence[int]]) -> None:
        """Begin to read `experts[layer]`, most valuable first, as far as there are free slots.

        The best of each layer come first, those of the first layers before the others: a token
        passes them in this order.
        """
        ranked = [
            (rank, ExpertKey(layer, expert))
            for layer, of_layer in enumerate(experts)
            for rank, expert in enumerate(of_layer)
        ]
        self._pending.extend(sorted(ranked))
        if self._pending:
            self.thread = threading.Thread(
                target=_work, args=(weakref.ref(stream),), name="expert-restorer", daemon=True
            )  # a daemon: the end of the program waits for all others before it closes streams
            self.thread.start()

    def turn(self, stream: "ExpertStream") -> float | None:
        """Take a step if the model is at rest; return the seconds until the next turn.

        None when nothing is left to be done.
        """
        if time.monotonic() - self._last_call < _QUIET_S:
            return _QUIET_S
        if hot_s := stream.reader.heat_pause.pause_s():
            return hot_s
        if not stream.lock.acquire(blocking=False):
            self._last_call = time.monotonic()  # it is not over yet
            return _QUIET_S
        try:
            return _STEP_S if self.step(stream) else None
        finally:
            stream.lock.release()

    def step(self, stream: "ExpertStream") -> bool:
        """Note what has arrived and start more; return whether anything is left to be done.

        The caller holds the stream's lock.
        """
        self._settle(stream)
        for _ in range(_STEP_EXPERTS):
            in_flight = sum(stream.layouts[layer].expert_bytes for layer, _ in self._reading)
            if not self._pending or in_flight >= _IN_FLIGHT_BYTES:
                break
            self._start_reading(stream, *self._pending.popleft())
        return bool(self._pending or self._reading)

    def hand_over(
        self,
        stream: "ExpertStream",
        layer: int,
        asked: Set[int],
        to: MutableMapping[int, ReadBatch],
    ) -> None:
        """Put the reads under way of those experts that a call of a layer asks for into `to`.

        Their slots are reserved. From now on they are the caller's, who holds the stream's lock.
        """
        if not self._pending and not self._reading:
            return
        self._last_call = time.monotonic()
        self._settle(stream)
        taken = [key for key in self._reading if key.layer == layer and key.expert in asked]
        for key in taken:  # one of the two has it, whatever interrupts: no call stands between
            to[key.expert] = self._reading[key][1]
            del self._reading[key]

    def _start_reading(self, stream: "ExpertStream", rank: int, key: ExpertKey) -> None:
        """Start to read an expert, unless it is in memory or its layer has no free slot."""
        slots = stream.cache.reserve(key.layer, [key.expert], evict=False)
        if not slots:
            return

        def register(batch: ReadBatch) -> None:
            self._reading[key] = (rank, batch)

        try:
            stream.start_reading(key.layer, slots, stream.pools[key.layer], register)
        except RuntimeError:  # no more threads: the stream was closed, or the program is ending
            stream.cache.release(key.layer, key.expert, resident=False)
            self._pending.clear()

    def _settle(self, stream: "ExpertStream") -> None:
        """Make resident what has arrived; let a slot go whose read failed, and stop at that."""
        done = [key for key, (_, batch) in self._reading.items() if batch.done]
        for key in done:
            rank, batch = self._reading.pop(key)
            try:
                num_bytes = batch.wait()
            except (ExpertReadError, OSError, KeyError):  # the latter two of files that were closed
                stream.cache.release(key.layer, key.expert, resident=False)
                self._pending.clear()
                continue
            stream.cache.release(key.layer, key.expert, resident=True, age=rank)
            stream.counters.restored += 1
            stream.counters.restored_bytes += num_bytes
            stream.counters.bytes_read += num_bytes
            stream.counters.busy_s = stream.reader.busy_s


def _work(reference: "weakref.ref[ExpertStream]") -> None:
    """Take turn after turn, until nothing is left to be done or the stream is gone."""
    while (stream := reference()) is not None and stream.close.alive:
        pause_s = stream.restorer.turn(stream)
        if pause_s is None:
            return
        del stream
        time.sleep(pause_s)
