"""The worker's reports of the last two minutes, from whose differences speeds are told."""

from collections import deque
from collections.abc import Iterator

from ..messages import Snapshot

SPAN_S = 120.0
_SPACING_S = 0.75


class Reports:
    """Keeps about one report a second, oldest first. Of one worker: another counts from zero."""

    def __init__(self) -> None:
        self._kept: deque[Snapshot] = deque(maxlen=int(SPAN_S) + 1)

    def add(self, snapshot: Snapshot) -> None:
        """Keep a report, unless it comes soon after the one before; forget the oldest."""
        if self._kept and 0 <= snapshot.time_s - self._kept[-1].time_s < _SPACING_S:
            return
        self._kept.append(snapshot)

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()

    def __iter__(self) -> Iterator[Snapshot]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)
