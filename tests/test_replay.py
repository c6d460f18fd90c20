"""Replay: what a cache would have hit is what it hits, and no policy beats the one that knows."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from comparing import opened, random_tokens, run_logits, stream_of
from routing import most_hits, random_trace, trace_of

from mlx_flash.bench.policies import compare_policies
from mlx_flash.cache.policies import POLICIES, Belady
from mlx_flash.config import CacheOptions, MemoryLimit, ReadOptions
from mlx_flash.engine.replay import (
    BELADY,
    REPLAY_NAMES,
    Replayed,
    as_decoded,
    curve_of,
    recovery_tokens,
    replay,
    shuffled,
)
from mlx_flash.engine.trace import Pass, recording, routing_of, trace_of_passes
from mlx_flash.errors import OptionError
from mlx_flash.planner.curve import lru_curve
from mlx_flash.streaming import adapter

NUM_EXPERTS, TOP_K = 8, 2
CHUNKS = (40, 25, 1, 1, 1, 7, 1, 1, 1, 1)  # tokens of each forward pass


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("capacity", [1, TOP_K, TOP_K + 1, NUM_EXPERTS // 2])
def test_replay_is_what_a_run_does(checkpoint: Path, capacity: int, policy: str) -> None:
    options = CacheOptions(capacity=capacity, policy=policy)
    loaded = opened(checkpoint, options, MemoryLimit(), "cpu", ReadOptions(prefetch=False))
    cache, counters = adapter.make_prompt_cache(loaded.model), stream_of(loaded).counters
    passes: list[Pass] = []
    hits, asks = [], []
    with recording(loaded, lambda *routing: passes.append(("text", *routing))):
        for number, tokens in enumerate(CHUNKS):
            before = counters.snapshot()
            mx.eval(loaded.model(random_tokens(tokens, 128, seed=number), cache=cache))
            hits.append(counters.hits - before.hits)
            asks.append(counters.asks - before.asks)
    trace = trace_of_passes(routing_of(loaded), passes)
    assert trace.steps.tolist() == list(CHUNKS)
    found = replay(trace, policy, capacity)
    assert found.asks.sum(axis=1).tolist() == asks
    assert found.hits.sum(axis=1).tolist() == hits
    swept = counters.swept  # experts without a slot are read too
    assert found.read_bytes == counters.bytes_read
    assert (swept > 0) == (capacity < NUM_EXPERTS)


def test_recording_changes_no_bit_and_ends_with_its_block(checkpoint: Path) -> None:
    loaded = opened(checkpoint, CacheOptions(capacity=3), MemoryLimit(), "cpu")
    prompt = random_tokens(9, 128)
    expected = list(run_logits(loaded.model, prompt, 5))
    passes: list[Any] = []
    with recording(loaded, lambda *routing: passes.append(routing)):
        found = list(run_logits(loaded.model, prompt, 5))
    assert all(mx.array_equal(a, b).item() for a, b in zip(found, expected, strict=True))
    assert len(passes) == 6
    mx.eval(loaded.model(prompt))
    assert len(passes) == 6


@pytest.mark.parametrize("skew", [0.0, 1.5])
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_the_curve_of_lru_is_its_replay_at_every_capacity(top_k: int, skew: float) -> None:
    trace = random_trace(150, experts=9, layers=3, top_k=top_k, skew=skew, seed=top_k)
    curve = lru_curve(trace)
    assert curve.capacities.tolist() == list(range(10))
    for capacity in range(top_k, 10):
        done = replay(trace, "lru", capacity)
        rates = done.hits.sum(axis=0) / done.asks.sum(axis=0)
        assert curve.hit_rates[:, capacity].tolist() == pytest.approx(rates.tolist(), abs=0)
    below = curve.hit_rates[:, : top_k + 1]
    assert np.allclose(below, below[:, [-1]] * np.arange(top_k + 1) / top_k)
    assert (np.diff(curve.hit_rates, axis=1) >= 0).all()


@pytest.mark.parametrize("skew", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("capacity", [2, 3, 5, 9])
def test_no_policy_beats_belady(capacity: int, skew: float) -> None:
    for seed in range(3):
        trace = random_trace(120, experts=10, layers=2, skew=skew, seed=seed)
        best = replay(trace, BELADY, capacity).hits.sum(axis=0)
        for policy in POLICIES:
            assert (replay(trace, policy, capacity).hits.sum(axis=0) <= best).all(), policy


def test_belady_hits_as_much_as_the_best_of_all_choices() -> None:
    rng = random.Random(4)
    beaten = 0
    for _ in range(60):
        asked = [rng.sample(range(5), 2) for _ in range(9)]
        for capacity in (2, 3, 4):
            best = most_hits(asked, capacity)
            assert replay(trace_of(asked, 5), BELADY, capacity).hits.sum() == best
            beaten += replay(trace_of(asked, 5), "lru", capacity).hits.sum() < best
    assert beaten > 20


def test_belady_lets_go_who_never_comes_back_and_then_who_comes_back_last() -> None:
    policy = Belady({0: [5, 9], 1: [6], 2: [1]})
    assert policy.ranked([0, 1, 2], 4) == [0, 1, 2]
    assert policy.victim([0, 1, 2], 4) == 2
    assert policy.victim([0, 1], 5) == 0
    assert policy.victim([1, 3], 0) == 3


def test_everything_hits_after_its_first_ask_where_there_is_room() -> None:
    trace = random_trace(60, experts=6, layers=1, skew=2.0)
    seen = len(np.unique(trace.experts))
    for policy in REPLAY_NAMES:
        done = replay(trace, policy, 6)
        assert done.asks.sum() - done.hits.sum() == seen, policy
        assert done.read_bytes == seen * trace.routing.expert_bytes[0]


def test_layers_may_have_their_own_slots() -> None:
    trace = random_trace(80, experts=8, layers=2)
    own = replay(trace, "lru", [2, 8]).hits
    assert np.array_equal(own[:, 0], replay(trace, "lru", 2).hits[:, 0])
    assert np.array_equal(own[:, 1], replay(trace, "lru", 8).hits[:, 1])


def test_a_pass_asks_once_for_each_of_its_experts() -> None:
    trace = random_trace(6, steps=[4, 2], layers=1)
    done = replay(trace, "lru", 8)
    expected = [len(np.unique(trace.experts[:4])), len(np.unique(trace.experts[4:]))]
    assert done.asks[:, 0].tolist() == expected
    assert replay(as_decoded(trace), "lru", 8).asks.tolist() == [[2]] * 6


@pytest.mark.parametrize(("policy", "capacity"), [("magic", 2), ("lru", 0), ("lru", [2, 0])])
def test_what_cannot_be_replayed_is_refused(policy: str, capacity: int | Sequence[int]) -> None:
    with pytest.raises(OptionError):
        replay(random_trace(4), policy, capacity)


def test_shuffling_keeps_the_tokens_and_loses_what_follows_what() -> None:
    walk = [[number // 6 % 10, (number // 6 + 1) % 10] for number in range(300)]
    trace = trace_of(walk, 10)
    mixed = shuffled(trace)
    assert sorted(mixed.experts.tolist()) == sorted(trace.experts.tolist())
    assert not np.array_equal(mixed.experts, trace.experts)
    assert np.array_equal(shuffled(trace, 0).experts, mixed.experts)
    assert not np.array_equal(shuffled(trace, 1).experts, mixed.experts)
    assert replay(trace, "lru", 3).hit_rate > 0.9
    assert replay(mixed, "lru", 3).hit_rate < 0.5


def test_routing_without_favourites_hits_by_capacity_over_experts() -> None:
    trace = random_trace(1500, experts=16, layers=1, seed=3)
    (control,) = compare_policies(trace, ["lru"], [8]).controls
    assert control.uniform_hit_rate == 0.5
    assert control.shuffled_hit_rate == pytest.approx(0.5, abs=0.06)
    assert replay(trace, "lru", 8).hit_rate == pytest.approx(0.5, abs=0.06)


def test_the_curve_of_a_policy_is_its_replay_without_the_start() -> None:
    trace = random_trace(200, experts=16, layers=2, skew=1.0, steps=[150, 50])
    curve = curve_of(trace, "lfu", warm_up=20)
    assert curve.capacities.tolist() == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    assert (curve.hit_rates[:, 0] == 0).all()
    done = replay(as_decoded(trace), "lfu", 6)
    expected = done.hits[20:].sum(axis=0) / done.asks[20:].sum(axis=0)
    assert curve.hit_rates[:, 3].tolist() == expected.tolist()
    assert curve.hit_rate(6, 16) == pytest.approx(expected.mean())
    assert curve.hit_rate(12, 32) == pytest.approx(expected.mean())


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_a_short_trace_has_a_curve(tokens: int) -> None:
    rates = curve_of(random_trace(tokens), "forward").hit_rates
    assert ((rates >= 0) & (rates <= 1)).all()


def test_a_change_of_domain_is_recovered_from_when_rates_are_steady_again() -> None:
    hits = np.array([[2]] * 100 + [[0]] * 30 + [[2]] * 170)
    done = Replayed(np.full((300, 1), 2), hits, 0)
    assert recovery_tokens(done, 100, 300) == 30
    assert recovery_tokens(done, 0, 100) == 0
    assert recovery_tokens(done, 100, 120) is None


def test_a_comparison_says_what_each_policy_did_on_each_domain() -> None:
    domains = [("code", 90), ("talk", 110)]
    trace = random_trace(200, experts=12, layers=2, skew=1.0, domains=domains)
    seen: list[tuple[str, int]] = []
    report = compare_policies(
        trace,
        ["lfu", "lru", "lfu"],
        [6, 3, 6],
        on_row=lambda r: seen.append((r.policy, r.capacity)),
    )
    assert seen == [("lfu", 3), ("lfu", 6), ("lru", 3), ("lru", 6)]
    assert report.tokens == {"code": 90, "talk": 110}
    row, parts = report.rows[1], trace.by_domain()
    alone = {name: replay(part, "lfu", 6) for name, part in parts.items()}
    assert row.by_domain == {name: done.hit_rate for name, done in alone.items()}
    assert row.hit_rate == pytest.approx(sum(row.by_domain.values()) / 2)
    assert row.bytes_per_token == sum(done.read_bytes for done in alone.values()) / 200
    assert row.switched_hit_rate is not None
    assert row.recovery_tokens is not None
    assert [control.capacity for control in report.controls] == [3, 6]
    assert report.lru_curve == lru_curve(trace).hit_rates.mean(axis=0).tolist()
    single = compare_policies(random_trace(20), ["lru"], [4]).rows[0]
    assert (single.switched_hit_rate, single.recovery_tokens) == (None, None)


def test_capacities_are_quarters_of_the_experts_each_once() -> None:
    for experts, expected in ((16, [4, 8, 12]), (2, [1, 2])):
        report = compare_policies(random_trace(9, experts=experts, top_k=1), ["lru"])
        assert [row.capacity for row in report.rows] == expected


def test_recorded_passes_are_replayed_only_when_asked_for() -> None:
    trace = random_trace(40, steps=[30, 10])
    decoded = compare_policies(trace, ["lru"], [4]).rows[0]
    recorded = compare_policies(trace, ["lru"], [4], recorded_passes=True).rows[0]
    assert decoded.hit_rate == replay(as_decoded(trace), "lru", 4).hit_rate
    assert recorded.hit_rate == replay(trace, "lru", 4).hit_rate != decoded.hit_rate
