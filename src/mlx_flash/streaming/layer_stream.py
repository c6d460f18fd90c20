"""One layer's stream: which experts a call asks for, their admission, their bytes, the result."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..cache.expert_cache import Admission, busiest_first
from ..errors import ExpertReadError, UnsupportedModelError
from ..store.reader import ReadBatch
from .compute import Compute
from .expert_stream import ExpertStream
from .prefetch import GuessNext
from .slots import SlotPool

HELD_RESULT_BYTES = 64 * 1024
"""Each layer holds on to its last result up to this size, until its slots are written again."""

SLOTS, SWEEP = 0, 1
"""The places that a layer's experts are computed on: its own slots, and the shared ones."""

_NOWHERE = np.uint32(2**32 - 1)  # the slot of an expert that is in another part


@dataclass(frozen=True)
class _Part:
    """Experts that are computed together: their slots, where those are, and what fills them."""

    slots: Mapping[int, int]
    place: int
    batch: ReadBatch | None = None


class LayerStream:
    """Runs a layer's switch on experts in memory, and on others while they are being read.

    Exact for every capacity. Threads take turns.
    """

    def __init__(
        self,
        stream: ExpertStream,
        layer: int,
        new_compute: Callable[[Sequence[SlotPool]], Compute],
    ) -> None:
        """Run layer number `layer`; `new_compute` returns what computes on its places."""
        self.stream = stream
        self.places: tuple[SlotPool, SlotPool] = (stream.pools[layer], stream.sweeps[layer])
        self.compute = new_compute(self.places)
        stream.layer_streams[layer] = self
        self._layout = stream.layouts[layer]
        self._running: list[mx.array] = []
        self._ahead: dict[int, ReadBatch] = {}  # prefetched experts
        self._leaving: dict[int, ReadBatch] = {}  # and those that were not asked for
        self.asks = self.hits = 0
        self.guess_next: GuessNext | None = None

    @property
    def layer(self) -> int:
        """The number of the layer among those that are streamed."""
        return self._layout.layer

    def __deepcopy__(self, memo: dict[int, Any]) -> "LayerStream":
        """Return itself: a copied model shares its slots, and with them their bookkeeping."""
        return self

    def run(self, x: mx.array, indices: mx.array) -> mx.array:
        """Return what the experts `indices[..., K]` make of `x[..., D]`: `[..., K, D]`, unweighted.

        Evaluates `indices`.

        Raises:
            ExpertReadError: an expert could not be read; it is not resident, the others are.
            UnsupportedModelError: inside a gradient.
        """
        experts = np.asarray(indices)
        if experts.size == 0:
            return mx.zeros((*indices.shape, x.shape[-1]), x.dtype)
        with self.stream.lock, ExitStack() as open_reads:
            asked = busiest_first(experts)
            self._settle(set(asked))
            self.stream.restorer.hand_over(self.stream, self.layer, set(asked), self._ahead)
            for batch in self._ahead.values():
                open_reads.callback(batch.close)
            try:
                with self.stream.cache.admit(self.layer, asked) as admission:
                    self._count(asked, admission)
                    try:
                        return self._compute(x, experts, self._parts(admission, open_reads, x))
                    except BaseException:
                        self._finish()  # the slots of the misses are about to be free
                        raise
            finally:
                ahead, self._ahead = self._ahead, {}
                self._release(ahead)

    def _count(self, asked: Sequence[int], admission: Admission) -> None:
        counters = self.stream.counters
        counters.calls += 1
        counters.asks += len(asked)
        counters.hits += len(admission.hits)
        counters.swept += len(admission.without_slot)
        self.asks += len(asked)
        self.hits += len(admission.hits)

    def _release(self, ahead: Mapping[int, ReadBatch]) -> None:
        """End the reservations of `ahead` that no admission took."""
        for expert in self.stream.cache.reserved(self.layer) & ahead.keys():
            ahead[expert].close()
            self.stream.cache.release(self.layer, expert, resident=False)

    def prefetch(self, experts: Sequence[int]) -> None:
        """Start reading those of `experts` that are not in memory, behind what is being read.

        Not while the disk is too hot.
        """
        if self.stream.reader.heat_pause.pause_s():
            return
        self._finish()
        cache = self.stream.cache
        before = cache.reserved(self.layer)
        try:
            slots = cache.reserve(self.layer, experts)
            self.stream.counters.prefetched += len(slots)
            for expert, slot in slots.items():
                register = partial(self._ahead.__setitem__, expert)
                self.stream.start_reading(self.layer, {expert: slot}, self.places[SLOTS], register)
        finally:  # an interrupt may leave some that nobody reads
            for expert in cache.reserved(self.layer) - before - self._ahead.keys():
                cache.release(self.layer, expert, resident=False)

    def resize(self, capacity: int) -> bool:
        """Change the layer's slots to `capacity`; False when experts are being read into them.

        Where there is no memory for them, that is raised and nothing has changed.
        """
        with self.stream.lock:
            self._settle(set())
            for batch in self._leaving.values():
                batch.close()
            self._settle(set())
            self._finish()
            capacity, slots = min(capacity, self._layout.num_experts), self.places[SLOTS]
            if not self.stream.cache.may_resize(self.layer, capacity):
                return False
            memory = slots.memory_for(capacity)
            moves = self.stream.cache.resize(self.layer, capacity)
            assert moves is not None, "nobody reserves slots meanwhile"
            if slots.resize(capacity, moves, memory):
                self.compute.refresh()
            return True

    def make_room(self, experts: Sequence[int]) -> None:
        """Evict until those of `experts` that are not in memory would all find free slots."""
        with self.stream.lock:
            self._settle(set())
            self._finish()
            self.stream.cache.make_room(self.layer, experts)

    def _settle(self, asked: set[int]) -> None:
        """Keep of what was prefetched what is asked for or has arrived; let go of the rest.

        Nobody waits for reads that nobody asked for: they keep their slots until they have ended.
        What could not be read ahead is read again.
        """
        counters, cache, layer = self.stream.counters, self.stream.cache, self._layout.layer
        for expert, batch in list(self._ahead.items()):
            failed = batch.done and not batch.complete
            if expert in asked and not failed:
                counters.prefetch_hits += 1
                counters.prefetch_late += not batch.done
            else:
                self._leaving[expert] = batch
                del self._ahead[expert]
                batch.cancel()
        for expert, batch in list(self._leaving.items()):
            if expert in asked:
                batch.close()
            if batch.settled:
                arrived = False
                if batch.complete:
                    with suppress(ExpertReadError):
                        counters.bytes_read += batch.wait()
                        arrived = True
                del self._leaving[expert]
                cache.release(layer, expert, resident=arrived)

    def _parts(self, admission: Admission, open_reads: ExitStack, x: mx.array) -> Iterator[_Part]:
        """Yield what can be computed, in turn, while the rest is being read.

        Experts without a slot of their own pass through the sweep buffer, one half of which is
        filled while the other is computed: who takes the next part has computed those before.
        `open_reads` ends what is still being read when the caller stops early.
        """
        self._finish()
        hits, misses, others = admission.hits, admission.misses, admission.without_slot
        early = {expert: misses[expert] for expert in self._ahead}
        misses = {expert: slot for expert, slot in misses.items() if expert not in early}
        half = self.places[SWEEP].capacity // 2
        if (len(misses) + len(others)) * self._layout.expert_bytes < self.stream.overlap_bytes:
            own = [(hits | misses, misses)]
        else:
            own = [(hits, {})] + [(group, group) for group in _groups(misses, half)]
        swept = [
            {expert: slot + number % 2 * half for slot, expert in enumerate(group)}
            for number, group in enumerate(_groups(dict.fromkeys(others), half))
        ]
        parts = [
            self._begin_part(slots, SLOTS, missing, open_reads) for slots, missing in own if slots
        ]
        parts[1:1] = [_Part({e: slot}, SLOTS, self._ahead[e]) for e, slot in early.items()]
        ahead = deque(self._begin_part(slots, SWEEP, slots, open_reads) for slots in swept[:2])
        if self.guess_next is not None:
            self.guess_next(x, [*hits, *admission.misses, *others])
        yield from parts
        for slots in [*swept[2:], None, None]:
            if ahead:
                yield ahead.popleft()
            if slots is not None:
                ahead.append(self._begin_part(slots, SWEEP, slots, open_reads))

    def _begin_part(
        self,
        slots: Mapping[int, int],
        place: int,
        missing: Mapping[int, int],
        open_reads: ExitStack,
    ) -> _Part:
        """Return a part of which the experts `missing` (expert -> slot) are being read."""
        if not missing:
            return _Part(slots, place)

        def register(batch: ReadBatch) -> None:
            open_reads.callback(batch.close)

        self.stream.reader.heat_pause.wait()
        batch = self.stream.start_reading(self.layer, missing, self.places[place], register)
        return _Part(slots, place, batch)

    def _compute(self, x: mx.array, experts: npt.NDArray[Any], parts: Iterable[_Part]) -> mx.array:
        """Compute part by part the (token, k) pairs whose expert is in it."""
        pairs, gathered = experts.reshape(-1), None
        for part in parts:
            self._wait(part)
            table = np.full(self._layout.num_experts, _NOWHERE)
            table[list(part.slots)] = list(part.slots.values())
            slots = table[pairs]
            inside = np.flatnonzero(slots != _NOWHERE)
            if inside.size == pairs.size:
                y = self.compute.whole(part.place, x, mx.array(slots.reshape(experts.shape)))
                self._launch(y, part.place)
                break
            if gathered is None:
                gathered = self.compute.in_parts(x, experts.shape)
            self._launch(gathered.add(part.place, inside, slots[inside]), part.place)
        else:
            assert gathered is not None
            y = gathered.result()
            _start_computing(y)
        self._running = [y]
        if y.nbytes > HELD_RESULT_BYTES:
            self._finish()
        return y

    def _wait(self, part: _Part) -> None:
        """Wait until the experts of a part are in memory."""
        if part.batch is not None:
            start = time.perf_counter()
            self.stream.counters.bytes_read += part.batch.wait()
            self.stream.counters.stall_s += time.perf_counter() - start
            self.stream.counters.busy_s = self.stream.reader.busy_s

    def _launch(self, y: mx.array | None, place: int) -> None:
        """Start computing `y`, which reads slots; wait for it where they are shared."""
        if y is None:
            return
        _start_computing(y)
        self._running.append(y)
        if place == SWEEP:
            mx.eval(y)

    def _finish(self) -> None:
        """Wait for the computations that may still read this layer's slots."""
        mx.eval(self._running)
        self._running.clear()


def _groups(experts: Mapping[int, Any], size: int) -> list[dict[int, Any]]:
    """Return a mapping in pieces of at most `size`."""
    items = list(experts.items())
    return [dict(items[start : start + size]) for start in range(0, len(items), size)]


def _start_computing(y: mx.array) -> None:
    """Start computing `y`.

    Raises:
        UnsupportedModelError: inside a gradient, whose backward pass would find other experts
            in the slots.
    """
    try:
        mx.async_eval(y)
    except ValueError as error:
        raise UnsupportedModelError(
            "a streamed model cannot be trained: load it with memory for all its experts."
        ) from error
