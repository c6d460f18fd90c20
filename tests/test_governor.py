"""The governor: shrinks at once by what is lacking, grows slowly, and does not flap."""

import itertools
import random
from collections.abc import Callable

import pytest

from mlx_flash.planner.governor import Governor, default_reserve_bytes
from mlx_flash.planner.memory import spare_bytes

MB, GB = 1024**2, 1024**3
STEP, RESERVE = 10 * MB, 40 * MB  # so the margin above the reserve is two steps
FULL = 100


def governor(max_capacity: int = FULL) -> Governor:
    return Governor(max_capacity, STEP, RESERVE)


def simulate(
    subject: Governor,
    steps_left_by_others: Callable[[int], float],
    seconds: int,
    *,
    lag: int = 0,
    asks: Callable[[int], bool] = lambda second: False,
) -> list[int]:
    """Return the target of each second on a machine that others leave so many steps of memory.

    Those are steps above the reserve, our slots included; slots follow the target after `lag`.
    """
    targets = [subject.target]
    for second in range(seconds):
        held = targets[max(0, len(targets) - 1 - lag)]
        free = RESERVE + int((steps_left_by_others(second) - held) * STEP)
        target = subject.observe(second, free, must_give_back=asks(second), capacity=held)
        targets.append(target)
    return targets[1:]


def rises(targets: list[int]) -> int:
    """Return how often the target goes up after it went down."""
    changes = [b - a for a, b in itertools.pairwise(targets) if a != b]
    return sum(a < 0 < b for a, b in itertools.pairwise(changes))


@pytest.mark.parametrize(
    ("free", "target"),
    [
        (RESERVE, 100),
        (RESERVE - 1, 99),
        (RESERVE - STEP, 99),
        (RESERVE - STEP - 1, 98),
        (0, 96),
        (-50 * STEP, 46),
        (-10 * GB, 1),
        (100 * GB, 100),
    ],
)
def test_what_is_lacking_of_the_reserve_is_given_back_at_once(free: int, target: int) -> None:
    assert governor().observe(0.0, free, must_give_back=False, capacity=FULL) == target


@pytest.mark.parametrize("lag", [0, 1, 5])
@pytest.mark.parametrize(
    ("left", "seconds", "final"),
    [
        pytest.param(lambda s: 100 if s < 5 else 60, 60, 60, id="sudden"),
        pytest.param(lambda s: 100 - s / 4, 100, 75, id="slow"),
        pytest.param(lambda s: 100 if s % 20 else 98.5, 100, 98, id="a dip"),
        pytest.param(lambda s: -100, 20, 1, id="everything"),
        pytest.param(lambda s: 100, 100, 100, id="none"),
    ],
)
def test_a_loss_takes_as_many_slots_as_it_must_and_no_more(
    left: Callable[[int], float], seconds: int, final: int, lag: int
) -> None:
    """Also while slots that were given up are not free yet."""
    targets = simulate(governor(), left, seconds, lag=lag)
    assert targets[-1] == final
    assert targets == sorted(targets, reverse=True)


def test_freed_memory_is_taken_again_slowly_and_only_when_it_stays() -> None:
    targets = simulate(governor(), lambda s: 200 if s >= 10 else 40, 300)
    assert targets[:20] == [40] * 20
    assert targets[20] == 43
    assert targets[-1] == FULL
    for second in range(300 - 5):
        assert targets[second + 5] - targets[second] <= 3


@pytest.mark.parametrize("max_capacity", [2, 3, 8, 33, 34, 66, 67, 128, 1000])
def test_growing_from_empty_takes_minutes_whatever_the_capacity(max_capacity: int) -> None:
    subject = governor(max_capacity)
    targets = simulate(subject, lambda s: 0 if s == 0 else 10_000, 600)
    assert (targets[0], targets[-1]) == (1, max_capacity)
    least_s = 5 / 0.03 * (max_capacity - 1) / max_capacity
    assert least_s * 0.95 <= targets.index(max_capacity) <= least_s * 1.25 + 10


@pytest.mark.parametrize("left", [40, 45.5, 50, 97.9])
def test_growing_stops_a_margin_above_the_reserve_and_never_makes_it_shrink(left: float) -> None:
    targets = simulate(governor(), lambda s: left if s else 20, 600, lag=3)
    assert targets == sorted(targets)
    assert targets[-1] == int(left - 2)


@pytest.mark.parametrize("low", [40, 42])
def test_a_single_reading_without_room_restarts_the_wait(low: int) -> None:
    targets = simulate(governor(), lambda s: 200 if s % 10 else low if s else 40, 300)
    assert targets == [40] * 300


@pytest.mark.parametrize(
    ("period", "low"), [(2, 1), (30, 15), (60, 6), (60, 30), (200, 100), (600, 300), (600, 10)]
)
def test_memory_that_comes_and_goes_is_left_alone(period: int, low: int) -> None:
    targets = simulate(governor(), lambda s: 50 if s % period < low else 90, 4 * 3600)
    assert rises(targets) <= 7
    assert set(targets[2 * 3600 :]) == {50}


def test_after_flapping_has_ended_memory_is_taken_again() -> None:
    subject = governor()
    simulate(subject, lambda s: 90 if s % 60 < 30 else 50, 3600)
    before = subject.target
    later = [
        subject.observe(3600 + s, 100 * GB, must_give_back=False, capacity=subject.target)
        for s in range(900)
    ]
    assert (before, later[-1]) == (50, FULL)


def test_a_loss_long_after_the_last_one_is_no_flapping() -> None:
    subject = governor()
    targets = simulate(subject, lambda s: 50 if s % 1000 == 0 else 200, 3010)
    for second in (1000, 2000, 3000):
        assert targets[second - 1 : second + 1] == [FULL, 50]
    assert targets[2009:2012] == [50, 50, 53]


def test_noise_within_the_margin_moves_nothing() -> None:
    noise = random.Random(3)
    subject = governor()
    simulate(subject, lambda s: 50, 5)
    targets = simulate(subject, lambda s: 50 + noise.random() * 2.9, 2000)
    assert set(targets) == {50}


def test_a_system_that_asks_gets_an_eighth_each_time_it_could_have_noticed() -> None:
    targets = simulate(governor(), lambda s: 1000, 8, asks=lambda s: s < 5)
    assert targets == [88, 88, 77, 77, 68, 68, 68, 68]
    waiting = simulate(governor(), lambda s: 1000, 8, lag=4, asks=lambda s: True)
    assert waiting == [88, 88, 88, 88, 88, 77, 77, 77]
    lacking = simulate(governor(), lambda s: 50, 1, asks=lambda s: True)
    assert lacking == [50]


def test_while_the_system_asks_nothing_grows_and_one_slot_is_kept() -> None:
    targets = simulate(governor(), lambda s: 1000, 600, asks=lambda s: True)
    assert targets == sorted(targets, reverse=True)
    assert targets[-1] == 1


def test_every_reading_gives_a_capacity_within_bounds_and_the_same_one_again() -> None:
    chance = random.Random(7)
    time_s, readings = 0.0, []
    for _ in range(3000):
        time_s += chance.choice([0.0, 0.01, 1.0, 30.0])
        free = chance.randint(-2 * GB, 4 * GB) if chance.random() < 0.3 else 2 * GB
        readings.append((time_s, free, chance.random() < 0.1, chance.randint(1, FULL)))
    first, second = governor(), governor()
    for time_s, free, asks, held in readings:
        target = first.observe(time_s, free, must_give_back=asks, capacity=held)
        assert 1 <= target <= FULL
        assert target == second.observe(time_s, free, must_give_back=asks, capacity=held)


@pytest.mark.parametrize(
    ("available", "total", "reserve"),
    [
        (120 * GB, 128 * GB, 6.0 * GB),  # half of the headroom
        (120 * GB, 24 * GB, 1.2 * GB),  # 5%
        (7 * GB, 8 * GB, 0.35 * GB),
        (30 * GB, 8 * GB, 0.5 * GB),  # 512 MiB
        (1.4 * GB, 1.5 * GB, 0.07 * GB),  # a tight cgroup
        (200 * MB, 256 * MB, 64 * MB),
        (0, GB, 0),
    ],
)
def test_the_reserve_is_at_most_half_of_what_a_plan_leaves_free(
    available: float, total: float, reserve: float
) -> None:
    found = default_reserve_bytes(int(available), int(total))
    assert found == pytest.approx(reserve, abs=MB)
    assert found <= (int(available) - spare_bytes(int(available))) / 2


def test_a_plan_without_a_slot_is_our_own_bug() -> None:
    with pytest.raises(AssertionError):
        governor(0)
