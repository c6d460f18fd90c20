"""Made-up routing traces, and what is known of how caches answer them."""

from collections.abc import Sequence
from functools import cache

import numpy as np

from mlx_flash.telemetry.trace import Routing, Trace


def routing(
    experts: int = 8, layers: int = 2, top_k: int = 2, model: str = "a/model", nbytes: int = 100
) -> Routing:
    return Routing(model, (experts,) * layers, (nbytes,) * layers, top_k)


def random_trace(
    tokens: int,
    *,
    experts: int = 8,
    layers: int = 2,
    top_k: int = 2,
    skew: float = 0.0,
    seed: int = 0,
    domains: Sequence[tuple[str, int]] = (),
    steps: Sequence[int] = (),
) -> Trace:
    """Return a trace of `tokens`; the larger `skew`, the more often the same experts are used."""
    rng = np.random.default_rng(seed)
    likes = skew * rng.standard_normal((1, layers, experts))
    noise = rng.gumbel(size=(tokens, layers, experts))
    picked = np.argsort(-(likes + noise), axis=-1)[..., :top_k].astype(np.uint16)
    weights = rng.random(picked.shape).astype(np.float16)
    return Trace(
        routing(experts, layers, top_k),
        picked,
        weights,
        np.array(list(steps) or [1] * tokens, np.int64),
        tuple(domains) or (("text", tokens),),
    )


def trace_of(asked: Sequence[Sequence[int]], experts: int) -> Trace:
    """Return a trace of one layer that asks for the experts of each line in turn."""
    picked = np.array(asked, np.uint16)[:, None, :]
    return Trace(
        routing(experts, 1, picked.shape[-1]),
        picked,
        np.full(picked.shape, np.nan, np.float16),
        np.ones(len(picked), np.int64),
        (("text", len(picked)),),
    )


def most_hits(asked: Sequence[Sequence[int]], capacity: int) -> int:
    """Return the most hits that any choice of victims gives: every one is tried."""
    calls = [frozenset(call) for call in asked]

    @cache
    def best(start: int, residents: frozenset[int]) -> int:
        if start == len(calls):
            return 0
        hits = len(calls[start] & residents)
        others = residents - calls[start]
        room = capacity - len(calls[start])
        followers = [others] if len(others) <= room else _kept(others, room)
        return hits + max(best(start + 1, kept | calls[start]) for kept in followers)

    return best(0, frozenset())


def _kept(residents: frozenset[int], room: int) -> list[frozenset[int]]:
    """Return every way to keep `room` of the residents."""
    if room == 0:
        return [frozenset()]
    ways = {
        kept | {expert} for expert in residents for kept in _kept(residents - {expert}, room - 1)
    }
    return list(ways)
