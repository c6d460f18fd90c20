"""What spares the disk: a cap on the rate of reads, and pauses while the disk is hot."""

import threading
import time
from collections.abc import Callable

_BURST_S = 0.05
_COOLER_BY_C = 5.0
_CHECK_S = 1.0


class RateCap:
    """Keeps reads at `max_gbps` (10^9 bytes per second) or below; None lets all pass. Thread-safe.

    A token bucket: in any interval it lets through what the rate allows, and beyond that what the
    rate allows in 50 ms, or one read where that is more.
    """

    def __init__(
        self,
        max_gbps: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Start with a full bucket."""
        self._bytes_per_s = None if max_gbps is None else max_gbps * 1e9
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._full_at_s = clock()

    def wait(self, nbytes: int) -> None:
        """Return when `nbytes` may be read. Threads get their turn in the order they ask in."""
        if self._bytes_per_s is None:
            return
        takes_s = nbytes / self._bytes_per_s
        with self._lock:
            now = self._clock()
            start = max(now, self._full_at_s - _BURST_S + min(takes_s, _BURST_S))
            self._full_at_s = max(start, self._full_at_s) + takes_s
        if start > now:
            self._sleep(start - now)


class HeatPause:
    """Pauses reads from when the disk is above `max_c` degrees Celsius until it is 5 below it.

    None never pauses. The temperature is read at most once a second; where there is none,
    `unreadable` says so and nothing pauses. `paused_s` is the time spent in `wait`. Thread-safe.
    """

    def __init__(
        self,
        max_c: float | None,
        read_c: Callable[[], float | None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Read the temperature for the first time. `read_c` returns None where it cannot."""
        self.temperature_c: float | None = None
        self.paused_s = 0.0
        self._max_c = max_c
        self._read_c = read_c
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._is_hot = False
        self._check_at_s = clock()
        self.pause_s()

    @property
    def unreadable(self) -> bool:
        """Whether there is a limit, and no temperature to hold against it."""
        return self._max_c is not None and self.temperature_c is None

    def pause_s(self) -> float:
        """Return how long to pause before asking again: 0 when reads may go on."""
        if self._max_c is None:
            return 0.0
        with self._lock:
            now = self._clock()
            if now >= self._check_at_s:
                self._check_at_s = now + _CHECK_S
                self.temperature_c = self._read_c()
                limit = self._max_c - _COOLER_BY_C if self._is_hot else self._max_c
                self._is_hot = self.temperature_c is not None and self.temperature_c > limit
            return _CHECK_S if self._is_hot else 0.0

    def wait(self) -> None:
        """Return when the disk is cool enough. May be interrupted: for the thread that asks."""
        while pause := self.pause_s():
            self._sleep(pause)
            with self._lock:
                self.paused_s += pause
