"""Eviction policies: small classes that pick the victim among the residents of one layer.

One policy object serves one layer. Time is counted in admissions of that layer, handed in by the
cache, so that a policy holds no clock of its own.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

from ..config import POLICY_NAMES

_NEVER = float("-inf")


class Policy(Protocol):
    """What a policy is told, and what it is asked: who leaves, and who is worth how much."""

    def used(self, expert: int, now: int) -> None:
        """Note that `expert` was asked for at time `now`, whether it was resident or not.

        Times of 0 and below are before the cache's first admission.
        """

    def evicted(self, expert: int) -> None:
        """Note that `expert` has left its slot."""

    def victim(self, candidates: Iterable[int], now: int) -> int:
        """Return the one of `candidates` (never empty) that should leave first.

        Ties go to the lowest expert number, so that every run decides alike.
        """

    def ranked(self, experts: Iterable[int], now: int) -> list[int]:
        """Return `experts`, most valuable first: `victim` would take them from the end."""


class _ByWorth:
    """Takes for a victim what is worth least; worths are compared as tuples."""

    def _worth(self, now: int, expert: int) -> tuple[float, ...]:
        raise NotImplementedError

    def victim(self, candidates: Iterable[int], now: int) -> int:
        """Return the candidate that is worth least."""
        return min(candidates, key=partial(self._worth, now))

    def ranked(self, experts: Iterable[int], now: int) -> list[int]:
        """Return the experts, those that are worth most first."""
        return sorted(experts, key=partial(self._worth, now), reverse=True)


class LRU(_ByWorth):
    """Evicts the expert that was used longest ago."""

    def __init__(self) -> None:
        self._last_use: dict[int, int] = {}

    def used(self, expert: int, now: int) -> None:
        """Note the use."""
        self._last_use[expert] = now

    def evicted(self, expert: int) -> None:
        """Forget the expert."""
        self._last_use.pop(expert, None)

    def _worth(self, now: int, expert: int) -> tuple[float, ...]:
        return (self._last_use.get(expert, _NEVER), expert)


class LFU(_ByWorth):
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

    def _worth(self, now: int, expert: int) -> tuple[float, ...]:
        return (self._uses.get(expert, 0), self._last_use.get(expert, _NEVER), expert)


class LCP(LFU):
    """Evicts the lowest `uses * 0.25 ** (age / 128)`, age in admissions since the last use.

    The "least critical priority" of mlx-moe and the first MLX-Flash; as there, an evicted
    expert starts again from zero uses.
    """

    def evicted(self, expert: int) -> None:
        """Forget the expert."""
        self._uses.pop(expert, None)
        self._last_use.pop(expert, None)

    def _worth(self, now: int, expert: int) -> tuple[float, ...]:
        age = now - self._last_use.get(expert, now)
        return (self._uses.get(expert, 0) * 0.25 ** (age / 128), expert)


POLICIES: dict[str, Callable[[], Policy]] = dict(zip(POLICY_NAMES, (LRU, LFU, LCP), strict=True))
"""Every policy by the name that options give it."""
