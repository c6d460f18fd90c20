"""Each policy's own rule, on uses that tell it from the others."""

import sys
from types import FrameType
from typing import Any

import pytest

from mlx_flash.cache.policies import (
    LFRU,
    LRU2,
    POLICIES,
    SLRU,
    Decayed,
    Forward,
    LeastStale,
    Policy,
)


def leaving(policy: Policy, uses: str, candidates: str, now: int | None = None) -> str:
    """Use experts in the order of `uses`, one per time step; return who leaves, first to last."""
    for time, expert in enumerate(uses, start=1):
        if expert != "-":
            policy.used(ord(expert) - ord("a"), time)
    order = policy.ranked([ord(expert) - ord("a") for expert in candidates], now or len(uses) + 1)
    return "".join(chr(expert + ord("a")) for expert in reversed(order))


def test_lru2_goes_by_the_last_use_but_one() -> None:
    assert leaving(LRU2(), "abbca", "abc") == "cab"


def test_lru2_remembers_uses_across_an_eviction() -> None:
    policy = LRU2()
    assert leaving(policy, "ab-", "ab") == "ab"
    policy.evicted(0)
    assert leaving(policy, "----ab", "ab") == "ab"
    assert leaving(LRU2(), "----ab", "ab") == "ab"
    assert leaving(policy, "------b", "ab") == "ab"


def test_slru_protects_who_came_back_from_a_scan() -> None:
    assert leaving(SLRU(), "aabcde", "abcde") == "bcdea"


def test_slru_protects_four_fifths_and_then_the_newest() -> None:
    assert leaving(SLRU(), "aabbccddee", "abcde") == "abcde"
    assert leaving(SLRU(), "aabbccddeef", "abcdef") == "afbcde"


def test_slru_forgets_what_was_evicted() -> None:
    policy = SLRU()
    leaving(policy, "aab", "ab")
    policy.evicted(0)
    policy.used(0, 4)
    assert policy.ranked([0, 1], 5) == [0, 1]
    policy.used(1, 6)
    assert policy.victim([0, 1], 7) == 0


def test_lfru_divides_uses_by_age() -> None:
    assert leaving(LFRU(), "aa----b", "ab") == "ab"
    assert leaving(LFRU(), "aa----b", "ab", now=30) == "ba"


def test_a_decayed_frequency_halves_in_its_half_life() -> None:
    assert leaving(Decayed(4.0), "aaa" + "-" * 4 + "b", "ab") == "ba"
    assert leaving(Decayed(4.0), "aaa" + "-" * 8 + "b", "ab") == "ab"


def test_least_stale_goes_by_when_an_expert_is_due() -> None:
    assert leaving(LeastStale(), "abababab----", "ab", now=12) == "ab"
    assert leaving(LeastStale(), "a---a---ab", "ab") == "ab"
    assert leaving(LeastStale(), "b-------a", "ab", now=9) == "ba"


@pytest.mark.parametrize("new_policy", [Decayed, Forward])
def test_a_use_before_this_cache_is_noted_also_late(new_policy: type[Decayed | Forward]) -> None:
    policy = new_policy()
    for now in (40_000, 40_001):
        policy.used(1, now)
    policy.used(1, -3)  # read back by a warm start
    policy.used(0, -2)
    policy.used(2, 100_000)
    assert policy.victim([0, 1, 2], 100_001) == 0
    assert policy.ranked([0, 1, 2], 100_001) == [2, 1, 0]


def test_forward_keeps_who_followed_those_that_are_used_now() -> None:
    uses = "abcd" * 9 + "a"
    forward = Forward()
    forward.evicted(0)
    assert leaving(forward, uses, "bd", now=37) == "db"
    assert leaving(Decayed(), uses, "bd", now=37) == "bd"
    unaware = Forward()  # nobody had to leave
    assert leaving(unaware, uses, "bd", now=37) == "bd"


def test_forward_learns_nothing_before_someone_has_to_leave() -> None:
    policy = Forward()
    leaving(policy, "abcabc", "abc")
    assert not policy._tables.followers.any()
    policy.evicted(0)
    leaving(policy, "abcabc", "abc")
    assert policy._tables.followers[0, 1] > 0 == policy._tables.followers[1, 0]


def test_forward_does_not_learn_from_a_prompt() -> None:
    policy = Forward()
    policy.evicted(0)
    for now in (1, 2, 3):
        for expert in range(policy._MAX_USED + 1):
            policy.used(expert, now)
    assert not policy._tables.followers.any()


@pytest.mark.parametrize("name", POLICIES)
def test_ties_go_to_the_lowest_expert(name: str) -> None:
    policy = POLICIES[name]()
    for expert in (5, 3, 4):
        policy.used(expert, 1)
    assert policy.victim([5, 4, 3], 2) == 3
    assert policy.ranked([3, 5, 4], 2) == [5, 4, 3]
    unknown = POLICIES[name]()
    assert unknown.victim([9, 7, 8], 1) == 7
    assert unknown.ranked([], 1) == []


@pytest.mark.parametrize("name", POLICIES)
def test_experts_are_ranked_at_any_moment_of_a_use(name: str) -> None:
    policy = POLICIES[name]()
    found: list[list[int]] = []

    def rank_at_each_line(frame: FrameType, event: str, argument: Any) -> Any:
        if "policies" in frame.f_code.co_filename and event == "line":
            found.append(sorted(policy.ranked([0, 1], 5)))
        return rank_at_each_line

    traced = sys.gettrace()
    sys.settrace(rank_at_each_line)  # a tracer is not traced itself: it stands for another thread
    try:
        for now, expert in enumerate((0, 1, 3, 1, 0, 6), start=1):
            policy.used(expert, now)
            policy.evicted(9)
    finally:
        sys.settrace(traced)
    assert len(found) > 6
    assert all(experts == [0, 1] for experts in found)


def test_ranking_makes_no_room_for_experts_that_were_never_used() -> None:
    policy = Forward()
    policy.used(2, 1)
    before = policy._tables
    assert policy.ranked([1, 2, 700], 2) == [2, 700, 1]
    assert policy._tables is before
