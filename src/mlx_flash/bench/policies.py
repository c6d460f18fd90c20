"""Compares policies on traces: hit rates at several capacities, controls, changes of domain."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..engine.replay import as_decoded, recovery_tokens, replay, shuffled
from ..planner.curve import lru_curve
from ..telemetry.trace import Trace, joined

SHARES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class PolicyRow:
    """What one policy reached with `capacity` slots a layer; the cache was empty at first.

    `hit_rate` and `bytes_per_token` are means over the domains, each replayed alone, and
    `by_domain` has theirs. `switched_hit_rate` is of the domains one after the other, and
    `recovery_tokens` the mean over changes of domain of the tokens until the hit rate is within 2
    points of steady state; None with a single domain.
    """

    policy: str
    capacity: int
    hit_rate: float
    bytes_per_token: float
    by_domain: dict[str, float]
    switched_hit_rate: float | None
    recovery_tokens: float | None


@dataclass(frozen=True)
class Control:
    """What a cache reaches without any locality, with `capacity` slots a layer.

    `shuffled_hit_rate` is of the same tokens in random order, under the first of the policies;
    `uniform_hit_rate` is capacity over experts: that of routing that knows no favourites.
    """

    capacity: int
    shuffled_hit_rate: float
    uniform_hit_rate: float


@dataclass(frozen=True)
class PolicyReport:
    """Every policy at every capacity, controls, and the exact curve of LRU by stack distance."""

    model: str
    tokens: dict[str, int]
    rows: list[PolicyRow]
    controls: list[Control]
    lru_curve: list[float]

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)


def compare_policies(
    trace: Trace,
    policies: Sequence[str],
    capacities: Sequence[int] = (),
    *,
    recorded_passes: bool = False,
    on_row: Callable[[PolicyRow], None] = lambda row: None,
) -> PolicyReport:
    """Replay a trace with each policy and capacity; by default as if each token was decoded.

    With `recorded_passes` the forward passes are those that were recorded. Capacities are a
    quarter, half and three quarters of the experts unless given.
    """
    if not recorded_passes:
        trace = as_decoded(trace)
    experts = max(trace.routing.num_experts)
    chosen = sorted({*capacities} or {max(1, round(share * experts)) for share in SHARES})
    domains = trace.by_domain()
    rows = []
    for policy in dict.fromkeys(policies):
        for capacity in chosen:
            rows.append(_row(domains, policy, capacity))
            on_row(rows[-1])
    controls = [
        Control(
            capacity,
            replay(shuffled(trace), policies[0], capacity).hit_rate,
            min(1.0, capacity / experts),
        )
        for capacity in chosen
    ]
    curve = lru_curve(trace).hit_rates.mean(axis=0).tolist()
    tokens = {name: part.num_tokens for name, part in domains.items()}
    return PolicyReport(trace.routing.model, tokens, rows, controls, curve)


def _row(domains: dict[str, Trace], policy: str, capacity: int) -> PolicyRow:
    alone = {name: replay(part, policy, capacity) for name, part in domains.items()}
    tokens = sum(part.num_tokens for part in domains.values())
    rates = {name: done.hit_rate for name, done in alone.items()}
    switched_rate, recovery = _switched(domains, policy, capacity)
    return PolicyRow(
        policy,
        capacity,
        sum(rates.values()) / len(rates),
        sum(done.read_bytes for done in alone.values()) / tokens,
        rates,
        switched_rate,
        recovery,
    )


def _switched(
    domains: dict[str, Trace], policy: str, capacity: int
) -> tuple[float | None, float | None]:
    """Replay all domains one after the other; return the hit rate and the mean recovery."""
    if len(domains) < 2:
        return None, None
    parts = list(domains.values())
    whole = joined([*parts, parts[0]])  # and back to the first
    done = replay(whole, policy, capacity)
    start, recoveries = 0, []
    for part, following in zip(parts, [*parts[1:], parts[0]], strict=True):
        start += len(part.steps)
        end = start + len(following.steps)
        tokens = recovery_tokens(done, start, end)
        recoveries.append(float(len(following.steps) if tokens is None else tokens))
    return done.hit_rate, sum(recoveries) / len(recoveries)
