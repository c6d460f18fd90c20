"""Gives slots back while the machine is short of memory, and takes them again afterwards."""

import logging
import threading
import time
import weakref
from collections.abc import Callable

import mlx.core as mx

from ..planner.governor import Governor, default_reserve_bytes
from ..planner.memory import MemoryPlan
from ..streaming.expert_stream import ExpertStream
from ..telemetry.machine import rss_bytes
from ..telemetry.pressure import MemoryPressure, memory_pressure
from .backend import Memory

_log = logging.getLogger(__name__)

_LOOK_S = 0.25  # between two looks at the memory: what is needed is free within a second


class MemoryGuard:
    """Looks at the machine's memory now and then, on a thread of its own, and resizes a stream.

    The thread ends with the stream, which it does not keep alive.
    """

    def __init__(
        self,
        stream: ExpertStream,
        plan: MemoryPlan,
        before: Memory,
        pressure: Callable[[], MemoryPressure] = memory_pressure,
    ) -> None:
        """Start nothing yet. `before` is the memory as it was before the model was loaded."""
        assert plan.capacity is not None, "a stream has slots"
        self._step_bytes = sum(layout.expert_bytes for layout in stream.layouts)
        reserve = default_reserve_bytes(before.available_bytes, before.total_bytes)
        self._governor = Governor(plan.capacity, self._step_bytes, reserve)
        self._plan = plan
        self._pressure = pressure
        self._stream = weakref.ref(stream)
        self._failure = ""

    def start(self) -> None:
        """Look again and again from now on."""
        threading.Thread(target=self._watch, name="memory-guard", daemon=True).start()

    def look(self) -> None:
        """Look once; resize the stream when there is too little memory, or more again."""
        stream = self._stream()
        if stream is None:
            return
        capacity, pressure = stream.capacity, self._pressure()
        target = self._governor.observe(
            time.monotonic(),
            pressure.free_bytes - self._promised_bytes(capacity),
            must_give_back=pressure.must_give_back,
            capacity=capacity,
        )
        stream.resize(target)  # also where a layer kept its slots the last time

    def _promised_bytes(self, capacity: int) -> int:
        """Return what the plan allows the model and it has not taken yet, such as KV cache."""
        assert self._plan.capacity is not None
        given_back = (self._plan.capacity - capacity) * self._step_bytes
        return max(0, self._plan.total_bytes - given_back - rss_bytes())

    def _watch(self) -> None:
        with mx.stream(mx.new_stream(mx.default_device())):
            while (stream := self._stream()) is not None and stream.close.alive:
                del stream
                self._look_or_report()
                time.sleep(_LOOK_S)

    def _look_or_report(self) -> None:
        """Look once; log a failure when it is another than the last one, and go on."""
        try:
            self.look()
        except Exception as error:  # noqa: BLE001 - the outermost loop of a thread
            if str(error) != self._failure:
                _log.warning("cannot look after the memory: %s", error, exc_info=error)
            self._failure = str(error)
        else:
            self._failure = ""
