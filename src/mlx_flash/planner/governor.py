"""How many slots per layer to hold while the free memory changes. Arithmetic: time is told."""

import math

from .memory import spare_bytes

_RESERVE_SHARE, _RESERVE_BYTES = 0.05, 512 * 1024 * 1024
_GROWTH_SHARE, _GROWTH_S = 0.03, 5.0  # of the largest capacity, at most, per so many seconds
_CALM_S, _MAX_CALM_S = 10.0, 600.0
_FLAP_S = 600.0  # a loss this soon after the last one, with growth between, is flapping
_GIVE_BACK_ONE_IN, _GIVE_BACK_S = 8, 2.0  # slots; the system needs time to notice


def default_reserve_bytes(available: int, total: int) -> int:
    """Return the memory that should stay free, from what the machine had before the model came.

    That is 5% of the total, 512 MiB at least, so that other programs can start without swapping;
    but never more than half of what a plan without a limit leaves free, or the governor would take
    back at once what the plan gave. So it is small in a tight cgroup, which holds no others.
    """
    usual = max(int(total * _RESERVE_SHARE), _RESERVE_BYTES)
    return min(usual, (available - spare_bytes(available)) // 2)


class Governor:
    """Decides a capacity, in slots per layer, between one and that of the plan.

    It shrinks at once by what is lacking of a reserve. It grows only after memory has been free for
    a while, by a few percent of the largest capacity at a time, and never into the margin above the
    reserve: so growing is no reason to shrink. Where other programs take what was grown, again and
    again, it waits twice as long each time. Not thread-safe.
    """

    def __init__(self, max_capacity: int, step_bytes: int, reserve_bytes: int) -> None:
        """Start at `max_capacity`; one slot in every layer takes `step_bytes`."""
        assert max_capacity >= 1, "a layer needs a slot"
        assert step_bytes > 0, "slots take memory"
        self.target = max_capacity
        self._max_capacity = max_capacity
        self._step_bytes = step_bytes
        self._reserve_bytes = reserve_bytes
        self._growth = math.ceil(max_capacity * _GROWTH_SHARE)
        self._growth_s = _GROWTH_S * self._growth / (max_capacity * _GROWTH_SHARE)
        self._calm_s = _CALM_S
        self._calm_since_s: float | None = None
        self._grew_at_s = self._lost_at_s = self._gave_back_at_s = -math.inf
        self._grew_since_loss = False

    def observe(
        self, time_s: float, free_bytes: int, *, must_give_back: bool, capacity: int
    ) -> int:
        """Take in one reading of the memory; return the capacity to go to.

        `capacity` is what is held now: the target of before may not be reached yet. `free_bytes` is
        without what the model has yet to take of its plan, such as the rest of its KV cache; it may
        be negative. `time_s` never goes back. `must_give_back` takes one slot in eight, again every
        two seconds while it lasts.
        """
        free_bytes += (capacity - self.target) * self._step_bytes  # once the target is reached
        lost = -((free_bytes - self._reserve_bytes) // self._step_bytes)
        if must_give_back and self._may_give_back(time_s, capacity):
            lost = max(lost, self.target // _GIVE_BACK_ONE_IN, 1)
            self._gave_back_at_s = time_s
        room = (free_bytes - self._reserve_bytes - self._reserve_bytes // 2) // self._step_bytes
        if must_give_back or room < 1:
            self._calm_since_s = None
        elif self._calm_since_s is None:
            self._calm_since_s = time_s
        if lost > 0:
            self._shrink(time_s, lost)
        elif self._may_grow(time_s):
            self._grow(time_s, room)
        return self.target

    def _may_give_back(self, time_s: float, capacity: int) -> bool:
        """Return whether the system could have noticed what was given back before."""
        return capacity <= self.target and time_s - self._gave_back_at_s >= _GIVE_BACK_S

    def _shrink(self, time_s: float, slots: int) -> None:
        smaller = max(1, self.target - slots)
        if smaller == self.target:
            return
        if self._grew_since_loss:
            flaps = time_s - self._lost_at_s <= _FLAP_S
            self._calm_s = min(2 * self._calm_s, _MAX_CALM_S) if flaps else _CALM_S
        self.target = smaller
        self._lost_at_s = time_s
        self._grew_since_loss = False

    def _may_grow(self, time_s: float) -> bool:
        return (
            self.target < self._max_capacity
            and self._calm_since_s is not None
            and time_s - self._calm_since_s >= self._calm_s
            and time_s - max(self._grew_at_s, self._lost_at_s) >= self._growth_s
        )

    def _grow(self, time_s: float, room: int) -> None:
        self.target = min(self._max_capacity, self.target + min(self._growth, room))
        self._grew_at_s = time_s
        self._grew_since_loss = True
