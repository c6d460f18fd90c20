"""Eviction policies: small classes that pick the victim among the residents of one layer.

One policy object serves one layer. Time is counted in admissions of that layer, handed in by the
cache, so that a policy holds no clock of its own.
"""

import bisect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt

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
        """Return `experts`, most valuable first: `victim` would take them from the end.

        Changes nothing, and may be called in any thread while the others run.
        """


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


class LRU2(_ByWorth):
    """Evicts the expert whose last use but one was longest ago (O'Neil et al., LRU-K, 1993).

    Uses outlive an eviction. One that was used once leaves before all that were used twice.
    """

    def __init__(self) -> None:
        self._uses: dict[int, tuple[float, float]] = {}

    def used(self, expert: int, now: int) -> None:
        """Note the use."""
        last = self._uses.get(expert, (_NEVER, _NEVER))[1]
        self._uses[expert] = (last, now)

    def evicted(self, expert: int) -> None:
        """Keep the uses: they say how often an expert comes back."""

    def _worth(self, now: int, expert: int) -> tuple[float, ...]:
        return (*self._uses.get(expert, (_NEVER, _NEVER)), expert)


class SLRU(_ByWorth):
    """Evicts first who was used once since it came in, then by age (segmented LRU).

    At most four fifths of the residents are protected; beyond that the oldest of them is not.
    """

    _PROTECTED_SHARE = 0.8

    def __init__(self) -> None:
        self._last_use: dict[int, int] = {}
        self._protected: dict[int, None] = {}  # oldest use first

    def used(self, expert: int, now: int) -> None:
        """Note the use; protect who is used again."""
        again = expert in self._last_use
        self._last_use[expert] = now
        if again:
            self._protected.pop(expert, None)
            self._protected[expert] = None
        while len(self._protected) > max(1, self._PROTECTED_SHARE * len(self._last_use)):
            del self._protected[next(iter(self._protected))]

    def evicted(self, expert: int) -> None:
        """Forget the expert."""
        self._last_use.pop(expert, None)
        self._protected.pop(expert, None)

    def _worth(self, now: int, expert: int) -> tuple[float, ...]:
        return (expert in self._protected, self._last_use.get(expert, _NEVER), expert)


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


class LFRU(LFU):
    """Evicts the lowest `uses / age`, age in admissions since the last use: vLLM's "LFRU"."""

    def _worth(self, now: int, expert: int) -> tuple[float, ...]:
        last = self._last_use.get(expert)
        worth = 0.0 if last is None else self._uses[expert] / (now - last + 1)
        return (worth, self._last_use.get(expert, _NEVER), expert)


class LCP(LFU):
    """Evicts the lowest `uses * 0.25 ** (age / 128)`, age in admissions since the last use.

    The "least critical priority" of mlx-moe and the first MLX-Flash; as there, an evicted
    expert starts again from zero uses. Their bias by a layer's depth is left out: it favours all
    experts of a layer alike, and each layer has slots of its own.
    """

    def evicted(self, expert: int) -> None:
        """Forget the expert."""
        self._uses.pop(expert, None)
        self._last_use.pop(expert, None)

    def _worth(self, now: int, expert: int) -> tuple[float, ...]:
        age = now - self._last_use.get(expert, now)
        return (self._uses.get(expert, 0) * 0.25 ** (age / 128), expert)


class Decayed(_ByWorth):
    """Evicts the lowest frequency, which halves in `half_life` admissions and grows by 1 a use.

    Frequencies outlive an eviction. What is kept is `log2(frequency) + last use / half_life`, which
    orders experts as their frequencies do at any one time, and changes with a use alone.
    """

    def __init__(self, half_life: float = 32.0) -> None:
        self._half_life = half_life
        self._score: dict[int, float] = {}

    def used(self, expert: int, now: int) -> None:
        """Let the frequency decay until now and add the use."""
        before = self._score.get(expert, _NEVER)
        self._score[expert] = _log2_of_sum(before, now / self._half_life)

    def evicted(self, expert: int) -> None:
        """Keep the frequency."""

    def _worth(self, now: int, expert: int) -> tuple[float, ...]:
        return (self._score.get(expert, _NEVER), expert)


class LeastStale(_ByWorth):
    """Evicts who is expected back last: last use plus the mean time between its uses.

    The reading of SpecMD's "Least-Stale" (2026) by moving averages of reuse. One that was used once
    is expected back as long after as it has been away.
    """

    _WEIGHT = 0.25  # of the newest interval in the mean

    def __init__(self) -> None:
        self._last_use: dict[int, int] = {}
        self._interval: dict[int, float] = {}

    def used(self, expert: int, now: int) -> None:
        """Note the use and the time since the one before."""
        if expert in self._last_use:
            away = now - self._last_use[expert]
            mean = self._interval.get(expert, away)
            self._interval[expert] = mean + self._WEIGHT * (away - mean)
        self._last_use[expert] = now

    def evicted(self, expert: int) -> None:
        """Keep what is known of its uses."""

    def _worth(self, now: int, expert: int) -> tuple[float, ...]:
        last = self._last_use.get(expert)
        if last is None:
            return (_NEVER, _NEVER, expert)
        staleness = max(now - last, self._interval.get(expert, now - last))
        return (-staleness, last, expert)


@dataclass(frozen=True)
class _Tables:
    """What is known of the experts below `len(score)`. Never resized: more room is a new object."""

    score: npt.NDArray[np.float64]  # as in `Decayed`
    weight: npt.NDArray[np.float64]  # of an expert's followers: 1 / (uses + prior)
    followers: npt.NDArray[np.float32]

    def with_room(self, size: int, weight: float) -> "_Tables":
        """Return tables of at least `size` experts; new ones have `weight` and no followers."""
        more = size - len(self.score)
        if more <= 0:
            return self
        return _Tables(
            np.pad(self.score, (0, more), constant_values=_NEVER),
            np.pad(self.weight, (0, more), constant_values=weight),
            np.pad(self.followers, (0, more)),
        )


class Forward:
    """Evicts who is least likely used soon: its frequency, and who followed who is used now.

    An online guess at Belady's choice. It counts which experts a layer uses one step after which
    others; that share of the followers of those used now is added, `_TRUST` times, to the decayed
    frequency. It learns from when experts first have to leave. Tables are arrays: a victim among
    hundreds is found in microseconds.
    """

    _TRUST = 16.0  # 2 to 80 tried: see the lab log
    _PRIOR = 8.0  # uses after which an expert's followers count half
    _MAX_USED = 64  # in a step, to learn from it: a prompt asks for nearly all

    def __init__(self, half_life: float = 32.0) -> None:
        self._half_life = half_life
        self._now = 0
        self._current: list[int] = []
        self._previous: list[int] = []
        self._tables = _Tables(np.zeros(0), np.zeros(0), np.zeros((0, 0), np.float32))
        self._evicts = False

    def used(self, expert: int, now: int) -> None:
        """Note the use, and that it followed those of the step before."""
        if now != self._now:
            if self._evicts and len(self._current) <= self._MAX_USED:
                self._learn()
            self._previous, self._current, self._now = self._current, [], now
        self._tables = self._with_room(expert + 1)
        self._current.append(expert)  # now that it is in the tables: `ranked` may look any time
        score = self._tables.score
        score[expert] = _log2_of_sum(float(score[expert]), now / self._half_life)

    def evicted(self, expert: int) -> None:
        """Keep what is known of the expert."""
        self._evicts = True

    def victim(self, candidates: Iterable[int], now: int) -> int:
        """Return the candidate that is worth least."""
        experts = sorted(candidates)
        self._tables = self._with_room(experts[-1] + 1)
        return experts[int(self._worth(experts, now).argmin())]

    def ranked(self, experts: Iterable[int], now: int) -> list[int]:
        """Return the experts, those that are worth most first."""
        ascending = sorted(experts)
        order = self._worth(ascending, now).argsort(kind="stable")
        return [ascending[number] for number in order[::-1]]

    def _learn(self) -> None:
        """Count the experts used in the last step as followers of those used before."""
        weight, followers = self._tables.weight, self._tables.followers
        users = np.array(self._previous, np.int64)
        pairs = np.add.outer(users * len(weight), np.array(self._current, np.int64))
        followers.reshape(-1)[pairs.reshape(-1)] += 1.0
        weight[users] = weight[users] / (1.0 + weight[users])

    def _with_room(self, size: int) -> _Tables:
        """Return the tables, or larger ones, that have the experts below `size`."""
        return self._tables.with_room(size, 1 / self._PRIOR)

    def _worth(self, experts: Sequence[int], now: int) -> npt.NDArray[np.float64]:
        """Return the worth of `experts`, which ascend. Changes nothing."""
        current = np.array(self._current, np.int64)  # before the tables, which have all of these
        tables = self._with_room(experts[-1] + 1 if experts else 0)
        picked = np.array(experts, np.int64)
        worth: npt.NDArray[np.float64] = np.exp2(tables.score[picked] - now / self._half_life)
        if current.size:
            expected = tables.weight[current] @ tables.followers[current]
            worth += self._TRUST * expected[picked]
        return worth


class Belady(_ByWorth):
    """Evicts who is used again last: the bound of all others, for replay, which knows all uses."""

    def __init__(self, uses: Mapping[int, Sequence[int]]) -> None:
        """`uses` are the times at which each expert will be asked for, ascending."""
        self._uses = uses

    def used(self, expert: int, now: int) -> None:
        """Nothing new: all uses are known."""

    def evicted(self, expert: int) -> None:
        """Nothing new."""

    def _worth(self, now: int, expert: int) -> tuple[float, ...]:
        uses = self._uses.get(expert, ())
        following = bisect.bisect_right(uses, now)
        return (-uses[following] if following < len(uses) else _NEVER, expert)


def _log2_of_sum(first: float, second: float) -> float:
    """Return `log2(2 ** first + 2 ** second)`, however large or far apart they are."""
    high, low = max(first, second), min(first, second)
    return high + math.log2(1.0 + 2.0 ** (low - high))


_CLASSES = (Forward, Decayed, LRU, LRU2, SLRU, LFU, LFRU, LCP, LeastStale)
POLICIES: dict[str, Callable[[], Policy]] = dict(zip(POLICY_NAMES, _CLASSES, strict=True))
"""Every policy by the name that options give it."""
