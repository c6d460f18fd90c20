"""Replays a routing trace on the production cache: hits of any policy, with any number of slots."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..cache.expert_cache import ExpertCache, busiest_first
from ..cache.policies import POLICIES, Belady, Policy
from ..errors import OptionError, TraceError
from ..planner.curve import MissCurve, lru_curve
from ..telemetry.trace import Trace
from ..telemetry.trace_file import read_trace

BELADY = "belady"
"""The policy that knows the future, in replay alone: the bound of all others."""

REPLAY_NAMES = (*POLICIES, BELADY)
"""The policies that can be replayed."""

_MOST_TOKENS = 3072  # of a trace, its last: rates change little with more
_CLEARLY = 0.002  # of the hit rate
_CURVE_SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)


@dataclass(frozen=True)
class Replayed:
    """What a cache did on a trace: per forward pass and layer, `asks[S, L]` and `hits[S, L]`.

    `read_bytes` are what its misses would have read.
    """

    asks: npt.NDArray[np.int64]
    hits: npt.NDArray[np.int64]
    read_bytes: int

    @property
    def hit_rate(self) -> float:
        """Hits over asks, 0..1, an empty cache at the start included."""
        return float(self.hits.sum() / max(1, self.asks.sum()))

    def rate_of(self, start: int, end: int) -> float:
        """Return the hit rate of some passes."""
        return float(self.hits[start:end].sum() / max(1, self.asks[start:end].sum()))


def as_decoded(trace: Trace) -> Trace:
    """Return a trace as if every token had been a forward pass of its own."""
    return replace(trace, steps=np.ones(trace.num_tokens, np.int64))


def shuffled(trace: Trace, seed: int = 0) -> Trace:
    """Return a trace whose tokens are in random order: as frequent, without their neighbours."""
    order = np.random.default_rng(seed).permutation(trace.num_tokens)
    return replace(trace, experts=trace.experts[order], weights=trace.weights[order])


def replay(trace: Trace, policy: str, capacity: int | Sequence[int]) -> Replayed:
    """Drive the cache with the passes of a trace; `capacity` slots a layer, or one number each.

    Raises:
        OptionError: there is no such policy, or a capacity below 1.
    """
    routing = trace.routing
    num_layers = len(routing.num_experts)
    capacities = [capacity] * num_layers if isinstance(capacity, int) else list(capacity)
    if any(slots < 1 for slots in capacities):
        raise OptionError(f"a capacity of {min(capacities)} slots holds no expert: give 1 or more.")
    asked = _asked(trace)
    cache = ExpertCache(routing.num_experts, capacities, _factory(policy, asked))
    shape = (len(trace.steps), num_layers)
    asks, hits = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for layer, of_layer in enumerate(asked):
        for step, experts in enumerate(of_layer):
            with cache.admit(layer, experts) as admission:
                asks[step, layer] = len(experts)
                hits[step, layer] = len(admission.hits)
    misses = (asks - hits).sum(axis=0)
    return Replayed(asks, hits, int(misses @ np.array(routing.expert_bytes)))


def _asked(trace: Trace) -> list[list[list[int]]]:
    """Return for each layer, pass by pass, the distinct experts in the order of admission."""
    ends = np.cumsum(trace.steps)
    starts = ends - trace.steps
    return [
        [
            busiest_first(trace.experts[start:end, layer])
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        ]
        for layer in range(len(trace.routing.num_experts))
    ]


def _factory(policy: str, asked: Sequence[Sequence[Sequence[int]]]) -> Callable[[], Policy]:
    """Return what makes the policy of each layer, in turn."""
    if policy == BELADY:
        oracles = iter(_oracles(asked))
        return lambda: next(oracles)
    if policy not in POLICIES:
        raise OptionError(
            f"there is no policy {policy!r} to replay: take one of {', '.join(REPLAY_NAMES)}."
        )
    return POLICIES[policy]


def _oracles(asked: Sequence[Sequence[Sequence[int]]]) -> Iterator[Policy]:
    """Yield for each layer the policy that knows when which expert will be asked for."""
    for of_layer in asked:
        uses: dict[int, list[int]] = {}
        for now, experts in enumerate(of_layer, start=1):
            for expert in experts:
                uses.setdefault(expert, []).append(now)
        yield Belady(uses)


def curve_of(trace: Trace, policy: str, warm_up: int = 64) -> MissCurve:
    """Return hit rates of decode in steady state, each layer's, at eighths of the capacity.

    The first `warm_up` tokens, or a quarter of a shorter trace, are not counted.
    """
    decoded = as_decoded(trace.slice(trace.num_tokens - _MOST_TOKENS, trace.num_tokens))
    experts = max(trace.routing.num_experts)
    warm_up = min(warm_up, decoded.num_tokens // 4)
    capacities = sorted({max(1, round(share * experts)) for share in _CURVE_SHARES})
    rates = []
    for capacity in capacities:
        done = replay(decoded, policy, capacity)
        rates.append(done.hits[warm_up:].sum(axis=0) / done.asks[warm_up:].sum(axis=0))
    return MissCurve(
        trace.routing.model,
        experts,
        trace.routing.top_k,
        np.array([0, *capacities]),
        np.stack([np.zeros(len(trace.routing.num_experts)), *rates], axis=1),
    )


def split_slots(trace: Trace, policy: str, capacity: int) -> tuple[list[int], float] | None:
    """Return slots for each layer, `capacity` on the mean, and by how much they raise the hit rate.

    The split is made by the first two thirds of the trace, and compared with an even one on the
    rest; None where it is not clearly better there.
    """
    decoded = as_decoded(trace.slice(trace.num_tokens - _MOST_TOKENS, trace.num_tokens))
    seen = 2 * decoded.num_tokens // 3
    slots = lru_curve(decoded.slice(0, seen)).split(capacity)
    rest = decoded.slice(seen, decoded.num_tokens)
    gain = replay(rest, policy, slots).hit_rate - replay(rest, policy, capacity).hit_rate
    return (slots, gain) if gain >= _CLEARLY else None


def splitting_by(
    path: Path | None, policy: str
) -> Callable[[int, Sequence[int]], list[int] | None]:
    """Return a function from a mean capacity to slots for each layer, by the trace in a file.

    It is given the experts of each layer too, and returns None without a file and where an even
    split is as good. It raises TraceError where the trace is of a model of another shape.

    Raises:
        TraceError: the file is no trace.
    """
    if path is None:
        return lambda capacity, experts: None
    trace = read_trace(path)

    def split(capacity: int, experts: Sequence[int]) -> list[int] | None:
        if list(experts) != list(trace.routing.num_experts):
            raise TraceError(
                f"{path} is a trace of {trace.routing.model}, which has other layers or experts: "
                "give a trace of the model itself."
            )
        found = split_slots(trace, policy, capacity)
        return None if found is None else found[0]

    return split


def recovery_tokens(replayed: Replayed, start: int, end: int, window: int = 32) -> int | None:
    """Return the passes after `start` until the hit rate is within 2 points of steady state.

    Steady state is the second half of the passes before `end`. Rates are means of `window` passes;
    None where that never comes near.
    """
    steady = replayed.rate_of((start + end) // 2, end)
    for first in range(start, end - window + 1):
        if replayed.rate_of(first, first + window) >= steady - 0.02:
            return first - start
    return None
