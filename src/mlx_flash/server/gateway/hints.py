"""What whoever runs the server may want to do or know, in plain words."""

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from ...planner.memory import gigabytes
from ..messages import ModelCard, Snapshot

HOT_C = 65.0
"""Degrees at which a disk is called hot: most slow down by themselves somewhere above 70."""

_WORTH_IT = 0.05
"""The least gain in hit rate for which more memory is suggested."""


class Hint(Struct, frozen=True):
    """One sentence. A `warning` is about something that costs speed now; `good` is good news."""

    kind: Literal["good", "note", "warning"]
    text: str


def hints_of(
    card: ModelCard, recent: Sequence[Snapshot], hit_rate: float | None, hot_c: float = HOT_C
) -> list[Hint]:
    """Return the hints for now, what matters most first.

    `recent` are the reports of the last seconds, oldest first; `hit_rate` is the one measured
    lately, None when nothing was asked.
    """
    if not recent:
        return []
    now = recent[-1]
    found = [
        _hot_disk(now, hot_c),
        _queue(card, recent),
        _slots_given_back(card, now),
        _more_memory(now, hit_rate),
        _all_fits(card),
    ]
    return [hint for hint in found if hint is not None]


def _hot_disk(now: Snapshot, hot_c: float) -> Hint | None:
    degrees = now.disk_temperature_c
    if degrees is None or degrees < hot_c:
        return None
    return Hint("warning", f"The disk is hot ({degrees:.0f} °C): reading may pause.")


def _queue(card: ModelCard, recent: Sequence[Snapshot]) -> Hint | None:
    """Say why requests wait, if they waited in all reports."""
    now = recent[-1]
    if not all(one.waiting and one.running for one in recent):
        return None
    if card.max_batch == 1 and card.kernels != "cpu":
        return Hint(
            "note",
            "Requests wait because answers are computed one after the other here, each as if "
            "alone: --fast-batch computes several together, which is not exact.",
        )
    if now.running >= card.max_batch:
        return Hint(
            "note",
            f"Requests wait because {now.running} are answered at once: a larger --max-batch "
            "lets more run.",
        )
    if now.kv_bytes * (now.running + 1) > now.kv_limit_bytes * now.running:
        return Hint(
            "warning",
            "Requests wait because the KV cache is full: a larger --max-context gives it more "
            "room, and the experts less.",
        )
    return None


def _slots_given_back(card: ModelCard, now: Snapshot) -> Hint | None:
    if not now.resized or not card.layers:
        return None
    times = "once" if now.resized == 1 else f"{now.resized} times"
    if now.capacity < card.capacity:
        return Hint(
            "warning",
            "Slots were given back because other programs needed memory: "
            f"{now.capacity} of {card.capacity} per layer are left (changed {times}).",
        )
    return Hint(
        "note",
        "Slots were given back because other programs needed memory, and are all there again "
        f"(changed {times}).",
    )


def _more_memory(now: Snapshot, hit_rate: float | None) -> Hint | None:
    """Say what the least memory that is worth it would bring, by the plan's expectation."""
    if hit_rate is None:
        return None
    for num_bytes, expected in sorted(now.more_memory_gains):
        if expected - hit_rate >= _WORTH_IT:
            return Hint(
                "note",
                f"{gigabytes(num_bytes)} more memory (--memory) would raise the hit rate from "
                f"{hit_rate:.0%} to about {expected:.0%}.",
            )
    return None


def _all_fits(card: ModelCard) -> Hint | None:
    if card.layers:
        return None
    return Hint("good", "The whole model fits: nothing is streamed.")
