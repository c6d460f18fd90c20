"""Guesses from expert numbers alone: tables that learn while a model runs. They cost microseconds.

Experts of layer l + 1 are guessed from those that layer l has just asked for.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


class PreviousToken:
    """Guesses that a layer asks again for what it asked for last."""

    def __init__(self, num_experts: Sequence[int]) -> None:
        self._num_experts = num_experts
        self._last: list[npt.NDArray[np.float64]] = [np.zeros(count) for count in num_experts]

    def observe(self, layer: int, experts: Sequence[int]) -> None:
        """Note what a layer asked for."""
        self._last[layer] *= 0.5  # those of the token before come behind
        self._last[layer][list(experts)] = 1.0

    def scores(self, layer: int, experts: Sequence[int]) -> npt.NDArray[np.float64]:
        """Return how sure each expert of layer `layer + 1` is, 0..1."""
        return self._last[layer + 1]


class CoOccurrence:
    """Guesses who went with whom: chances given the experts of the layers before, up to `hops`.

    Each expert asked for by an earlier layer votes with the share of its uses in which each expert
    of the next layer followed. Votes of one hop are averaged, hops are weighted by 1, 1/2, 1/4.
    """

    _PRIOR = 4.0  # uses after which a share counts half

    def __init__(self, num_experts: Sequence[int], hops: int = 1) -> None:
        self._num_experts = num_experts
        self._hops = hops
        self._asked: dict[int, list[int]] = {}
        self._uses = [np.zeros(count) for count in num_experts]
        self._pairs: dict[tuple[int, int], npt.NDArray[np.float32]] = {
            (layer, hop): np.zeros((count, num_experts[layer + hop]), np.float32)
            for layer, count in enumerate(num_experts)
            for hop in range(1, hops + 1)
            if layer + hop < len(num_experts)
        }

    def observe(self, layer: int, experts: Sequence[int]) -> None:
        """Count what a layer asked for as following what those before it asked for."""
        asked = list(experts)
        self._asked[layer] = asked
        self._uses[layer][asked] += 1
        for hop in range(1, min(self._hops, layer) + 1):
            before = self._asked.get(layer - hop)
            if before:
                self._pairs[layer - hop, hop][np.ix_(before, asked)] += 1

    def scores(self, layer: int, experts: Sequence[int]) -> npt.NDArray[np.float64]:
        """Return how sure each expert of layer `layer + 1` is, 0..1."""
        total, weights = np.zeros(self._num_experts[layer + 1]), 0.0
        for hop in range(1, self._hops + 1):
            start = layer + 1 - hop
            asked = list(experts) if hop == 1 else self._asked.get(start, [])
            if start < 0 or not asked:
                continue
            shares = self._pairs[start, hop][asked] / (self._uses[start][asked, None] + self._PRIOR)
            total += 0.5 ** (hop - 1) * shares.mean(axis=0)
            weights += 0.5 ** (hop - 1)
        return total / max(weights, 1.0)
