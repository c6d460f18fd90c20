"""Eviction policies: small classes that pick the victim among the residents of one layer.

One policy object serves one layer. Time is counted in admissions of that layer, handed in by the
cache, so that a policy holds no clock of its own.
"""

from collections.abc import Callable, Iterable
from typing import Protocol

from ..config import POLICY_NAMES


class Policy(Protocol):
    """What a policy is told, and the one thing it is asked."""

    def used(self, expert: int, now: int) -> None:
        """Note that `expert` was asked for at time `now`, whether it was resident or not."""

    def evicted(self, expert: int) -> None:
        """Note that `expert` has left its slot."""

    def victim(self, candidates: Iterable[int], now: int) -> int:
        """Return the one of `candidates` (never empty) that should leave first.

        Ties go to the lowest expert number, so that every run decides alike.
        """


class LRU:
    """Evicts the expert that was used longest ago."""

    def __init__(self) -> None:
        self._last_use: dict[int, int] = {}

    def used(self, expert: int, now: int) -> None:
        """Note the use."""
        self._last_use[expert] = now

    def evicted(self, expert: int) -> None:
        """Forget the expert."""
        self._last_use.pop(expert, None)

    def victim(self, candidates: Iterable[int], now: int) -> int:
        """Return the candidate with the oldest last use."""
        return min(candidates, key=lambda expert: (self._last_use.get(expert, -1), expert))


class LFU:
    """Evicts the expert with the fewest uses; counts outlive an eviction, ties go by age."""

    def __init__(self) -> None:
        self._uses: dict[int, int] = {}
        self._last_use: dict[int, int] = {}

    def used(self, expert: int, now: int) -> None:
        """Count the use."""
        self._uses[expert] = self._uses.get(expert, 0) + 1
        self._last_use[expert] = now

    def evicted(self, expert: int) -> None:
        """Keep the count: an expert that comes back is as frequent as it was."""

    def victim(self, candidates: Iterable[int], now: int) -> int:
        """Return the candidate with the fewest uses."""
        return min(
            candidates,
            key=lambda expert: (self._uses.get(expert, 0), self._last_use.get(expert, -1), expert),
        )


class LCP(LFU):
    """Evicts the lowest `uses * 0.25 ** (age / 128)`, age in admissions since the last use.

    The "least critical priority" of mlx-moe and the first MLX-Flash; as there, an evicted
    expert starts again from zero uses.
    """

    def evicted(self, expert: int) -> None:
        """Forget the expert."""
        self._uses.pop(expert, None)
        self._last_use.pop(expert, None)

    def victim(self, candidates: Iterable[int], now: int) -> int:
        """Return the candidate with the lowest priority."""

        def priority(expert: int) -> tuple[float, int]:
            age = now - self._last_use.get(expert, now)
            return (self._uses.get(expert, 0) * 0.25 ** (age / 128), expert)

        return min(candidates, key=priority)


POLICIES: dict[str, Callable[[], Policy]] = dict(zip(POLICY_NAMES, (LRU, LFU, LCP), strict=True))
"""Every policy by the name that options give it."""
