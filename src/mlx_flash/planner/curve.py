"""Miss curves: which share of asks hits, for every number of slots."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..telemetry.trace import Trace


@dataclass(frozen=True)
class MissCurve:
    """Hit rates by capacity: `hit_rates[L, C]` of each layer with `capacities[C]` slots.

    Capacities ascend from 0 to the number of experts. Rates are of decode, in steady state.
    `source` says whose routing it is.
    """

    source: str
    num_experts: int
    top_k: int
    capacities: npt.NDArray[np.int64]
    hit_rates: npt.NDArray[np.float64]

    def hit_rate(self, capacity: int, num_experts: int) -> float:
        """Return the hit rate of `capacity` slots for `num_experts` experts a layer, 0..1.

        For a model of another size the curve is read at the same share of experts.
        """
        share = capacity / num_experts * self.num_experts
        return float(np.interp(share, self.capacities, self.hit_rates.mean(axis=0)))

    def split(self, capacity: int) -> list[int]:
        """Return slots for each layer, `capacity` on the mean, that hit most by this curve.

        One slot after the other goes to the layer that gains most by it. No layer has fewer than
        top-k or half the mean, or more than it has experts.
        """
        slots = np.arange(self.num_experts + 1)
        rates = np.stack([np.interp(slots, self.capacities, rate) for rate in self.hit_rates])
        gains = np.minimum.accumulate(np.diff(rates, axis=1), axis=1)
        least = min(max(self.top_k, capacity // 2), capacity)
        taken = np.full(len(rates), least)
        for _ in range(capacity * len(rates) - int(taken.sum())):
            here = np.minimum(taken, self.num_experts - 1)
            gain = np.where(taken < self.num_experts, gains[np.arange(len(rates)), here], -np.inf)
            taken[int(np.lexsort((taken, -gain))[0])] += 1
        return [int(count) for count in taken]


def lru_curve(trace: Trace) -> MissCurve:
    """Return the exact curve of LRU, decoding token by token from an empty cache, in one pass.

    An ask hits with so many slots as experts were used since its expert's last use: its stack
    distance (Mattson et al., 1970). Holds for capacities of top-k and more, where no call asks for
    more experts than there are slots; below, a rate is that of top-k slots scaled down.
    """
    num_layers, num_experts = len(trace.routing.num_experts), max(trace.routing.num_experts)
    experts = trace.experts.astype(np.int64)  # [T, L, K]
    order = np.tile(np.arange(num_experts) - 2 * num_experts, (num_layers, 1))  # of last use
    never = order.copy()
    layers = np.arange(num_layers)[:, None]
    hits = np.zeros((num_layers, num_experts + 1), np.int64)
    for now, asked in enumerate(experts):
        there = order[layers, asked]
        distance = (order[:, None, :] > there[:, :, None]).sum(axis=2)  # before them in the stack
        seen = there > never.max()
        np.add.at(hits, (np.broadcast_to(layers, asked.shape)[seen], distance[seen] + 1), 1)
        order[layers, asked] = now * num_experts + asked
    rates = np.cumsum(hits, axis=1) / max(1, experts.shape[0] * experts.shape[2])
    top_k = trace.routing.top_k
    below = np.arange(top_k) / top_k
    rates[:, :top_k] = rates[:, [top_k]] * below
    capacities = np.arange(num_experts + 1)
    return MissCurve(trace.routing.model, num_experts, top_k, capacities, rates)
