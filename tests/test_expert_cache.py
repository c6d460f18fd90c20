"""The cache's contract, for every policy."""

import random
from collections.abc import Callable

import pytest

from mlx_flash.cache.expert_cache import ExpertCache
from mlx_flash.cache.policies import LCP, LFU, LRU, POLICIES, Policy


def new_cache(capacity: int, policy: Callable[[], Policy] = LRU, experts: int = 8) -> ExpertCache:
    return ExpertCache([experts], [capacity], policy)


def ask(cache: ExpertCache, *experts: int) -> tuple[set[int], set[int]]:
    """Admit experts in one call; return (hits, misses)."""
    with cache.admit(0, experts) as admission:
        pass
    return set(admission.hits), set(admission.misses)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
class TestContract:
    """What holds for every policy."""

    def test_a_first_ask_misses_and_a_second_hits(self, policy: Callable[[], Policy]) -> None:
        cache = new_cache(2, policy)
        assert ask(cache, 3, 5) == (set(), {3, 5})
        assert ask(cache, 3, 5) == ({3, 5}, set())

    def test_slots_are_distinct_and_stay_while_resident(self, policy: Callable[[], Policy]) -> None:
        cache = new_cache(3, policy)
        ask(cache, 7, 0)
        slots = cache.residents(0)
        assert len(set(slots.values())) == 2
        ask(cache, 4)
        assert {expert: cache.slot_of(0, expert) for expert in slots} == slots

    def test_what_is_asked_for_is_never_the_victim(self, policy: Callable[[], Policy]) -> None:
        cache = new_cache(2, policy)
        for first in range(8):
            for second in range(8):
                ask(cache, first, second)
                assert cache.residents(0).keys() >= {first, second}

    def test_a_pinned_expert_is_never_the_victim(self, policy: Callable[[], Policy]) -> None:
        cache = new_cache(2, policy)
        ask(cache, 6)
        with cache.pin(0, 6) as slot:
            for expert in range(6):
                ask(cache, expert)
                assert cache.slot_of(0, 6) == slot
        ask(cache, 0, 1)
        assert cache.slot_of(0, 6) is None

    def test_room_is_made_for_those_who_have_no_slot_and_no_more(
        self, policy: Callable[[], Policy]
    ) -> None:
        cache = new_cache(4, policy)
        ask(cache, 0, 1, 2, 3)
        with cache.pin(0, 3):
            cache.make_room(0, [0, 5, 6, 7])
            assert cache.residents(0).keys() == {0, 3}
        cache.make_room(0, [5])
        assert cache.residents(0).keys() == {0, 3}
        assert ask(cache, 0, 3, 5, 6) == ({0, 3}, {5, 6})
        cache.check_integrity()

    def test_a_failed_admission_leaves_its_misses_non_resident(
        self, policy: Callable[[], Policy]
    ) -> None:
        cache = new_cache(3, policy)
        ask(cache, 0, 1, 2)
        kept = cache.residents(0)

        def fail() -> None:
            with cache.admit(0, [0, 5]):
                raise OSError("disk")

        with pytest.raises(OSError, match="disk"):
            fail()
        cache.check_integrity()
        assert cache.slot_of(0, 5) is None
        assert cache.slot_of(0, 0) == kept[0]
        assert ask(cache, 5) == (set(), {5})

    def test_where_slots_are_short_residents_stay_and_the_first_asked_come_in(
        self, policy: Callable[[], Policy]
    ) -> None:
        for capacity in range(1, 9):
            cache = new_cache(capacity, policy)
            ask(cache, *range(capacity))
            asked = [7, 5, 5, 3, 1, 0]
            before = cache.residents(0)
            with cache.admit(0, asked) as admission:
                assert admission.hits == {e: before[e] for e in asked if e in before}
                missing = [e for e in (7, 5, 3, 1, 0) if e not in before]
                room = capacity - len(admission.hits)
                assert list(admission.misses) == missing[:room]
                assert list(admission.without_slot) == missing[room:]
            cache.check_integrity()

    def test_a_reserved_slot_goes_to_its_expert(self, policy: Callable[[], Policy]) -> None:
        cache = new_cache(3, policy)
        ask(cache, 0, 1, 2)
        reserved = cache.reserve(0, [2, 5, 5])
        assert reserved.keys() == {5}
        assert cache.slot_of(0, 5) is None
        with cache.admit(0, [4, 5]) as admission:
            assert admission.misses[5] == reserved[5]
            assert admission.misses.keys() == {4, 5}
        cache.check_integrity()
        assert {4, 5} <= cache.residents(0).keys()

    def test_a_reservation_ends_resident_or_free(self, policy: Callable[[], Policy]) -> None:
        cache = new_cache(3, policy)
        ask(cache, 0)
        slots = cache.reserve(0, [1, 2, 3])
        assert len(slots) == 3
        with cache.admit(0, [7]) as admission:
            assert admission.without_slot == (7,)
        first, second, third = slots
        cache.release(0, first, resident=True)
        cache.release(0, second, resident=False)
        cache.check_integrity()
        assert cache.slot_of(0, first) == slots[first]
        with cache.admit(0, [7]) as admission:
            assert admission.misses == {7: slots[second]}
        cache.release(0, third, resident=False)
        cache.check_integrity()

    def test_a_reservation_that_may_not_evict_takes_free_slots_only(
        self, policy: Callable[[], Policy]
    ) -> None:
        cache = new_cache(3, policy)
        ask(cache, 0)
        before = cache.residents(0)
        reserved = cache.reserve(0, [0, 4, 5, 6], evict=False)
        assert list(reserved) == [4, 5]
        assert cache.residents(0) == before
        assert cache.reserve(0, [7], evict=False) == {}
        cache.release(0, 4, resident=False)
        assert cache.reserve(0, [7], evict=False) == {7: reserved[4]}
        cache.check_integrity()

    def test_ranked_is_the_order_of_leaving_in_reverse(self, policy: Callable[[], Policy]) -> None:
        rng = random.Random(3)
        cache, told = new_cache(6, policy, experts=12), policy()
        for now in range(1, 200):
            asked = sorted(rng.sample(range(12), 2))
            before = cache.residents(0).keys()
            ask(cache, *asked)
            for expert in asked:
                told.used(expert, now)
            for expert in before - cache.residents(0).keys():
                told.evicted(expert)
            left, leaving = set(cache.residents(0)), []
            while left:
                leaving.append(told.victim(left, now))
                left.remove(leaving[-1])
            assert cache.ranked(0) == leaving[::-1]

    def test_what_was_used_before_this_cache_leaves_first_and_the_oldest_of_it(
        self, policy: Callable[[], Policy]
    ) -> None:
        cache = new_cache(5, policy)
        ask(cache, 0)
        ask(cache, 0)
        in_vain = 4
        for expert, age in ((5, 0), (2, 1), (3, 2), (in_vain, None)):
            cache.reserve(0, [expert], evict=False)
            cache.release(0, expert, resident=True, age=age)
        assert cache.ranked(0) == [0, 5, 2, 3, in_vain]
        ask(cache, 0, 6, 7)
        assert cache.residents(0).keys() == {0, 5, 2, 6, 7}

    def test_random_operations_keep_the_books(self, policy: Callable[[], Policy]) -> None:
        rng = random.Random(7)
        cache = ExpertCache([8, 5], [3, 1], policy)
        reserved: list[tuple[int, int]] = []
        for _ in range(2000):
            layer = rng.randrange(2)
            experts = rng.sample(range((8, 5)[layer]), rng.randint(1, 5))
            resident = cache.residents(layer)
            try:
                with cache.admit(layer, experts) as admission:
                    assert admission.hits == {e: s for e, s in resident.items() if e in experts}
                    missing = admission.misses.keys() | set(admission.without_slot)
                    assert missing == set(experts) - resident.keys()
                    if rng.random() < 0.2:
                        raise OSError
                kept = admission.hits.keys() | admission.misses.keys()
                assert kept <= cache.residents(layer).keys()
            except OSError:
                assert not admission.misses.keys() & cache.residents(layer).keys()
            cache.check_integrity()
            if rng.random() < 0.3:
                for expert in cache.reserve(layer, rng.sample(range((8, 5)[layer]), 2)):
                    reserved.append((layer, expert))
            while reserved and rng.random() < 0.7:
                place, expert = reserved.pop()
                if expert in cache._layers[place].reserved:
                    cache.release(place, expert, resident=rng.random() < 0.5)
            cache.check_integrity()


def test_check_integrity_finds_a_slot_held_twice() -> None:
    cache = new_cache(2)
    ask(cache, 0, 1)
    cache._layers[0].slot_of[1] = cache._layers[0].slot_of[0]
    with pytest.raises(AssertionError, match="once each"):
        cache.check_integrity()


@pytest.mark.parametrize("call", ["used", "evicted", "victim"])
def test_a_policy_that_raises_loses_no_slot(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = new_cache(2)
    ask(cache, 0, 1)

    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(LRU, call, fail)
        with pytest.raises(KeyboardInterrupt):
            ask(cache, 2, 3)
    cache.check_integrity()
    assert ask(cache, 4, 5) == (set(), {4, 5})
    cache.check_integrity()


def test_an_expert_that_the_layer_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="experts 0 to 7"), new_cache(2).admit(0, [8]):
        pass


def test_a_pinned_expert_is_no_victim_and_leaves_the_others_without_a_slot() -> None:
    cache = new_cache(1)
    ask(cache, 0)
    with cache.pin(0, 0), cache.admit(0, [1]) as admission:
        assert admission.without_slot == (1,)
    assert cache.residents(0).keys() == {0}


def victims(policy: Policy, uses: str, candidates: str) -> str:
    """Use experts in the order of `uses`, one per time step; return who leaves, first to last."""
    for now, expert in enumerate(uses, start=1):
        policy.used(ord(expert), now)
    left, order = set(map(ord, candidates)), ""
    while left:
        victim = policy.victim(left, len(uses) + 1)
        left.remove(victim)
        order += chr(victim)
    return order


def test_lru_evicts_by_age() -> None:
    assert victims(LRU(), "abcab", "abc") == "cab"


def test_lfu_evicts_by_count_and_then_by_age() -> None:
    assert victims(LFU(), "aabbcd", "abcd") == "cdab"


def test_lfu_remembers_counts_across_an_eviction() -> None:
    policy = LFU()
    for now in range(3):
        policy.used(0, now)
    policy.evicted(0)
    policy.used(0, 4)
    policy.used(1, 5)
    assert policy.victim([0, 1], 6) == 1


def test_lcp_halves_a_priority_in_64_steps() -> None:
    assert victims(LCP(), "aaa" + "b" * 2 + "x" * 50, "ab") == "ba"
    assert victims(LCP(), "aaa" + "x" * 100 + "bb", "ab") == "ab"


def test_lcp_forgets_what_was_evicted() -> None:
    policy = LCP()
    for now in range(9):
        policy.used(0, now)
    policy.evicted(0)
    policy.used(0, 10)
    policy.used(1, 10)
    policy.used(1, 11)
    assert policy.victim([0, 1], 12) == 0
