"""Which expert sits in which slot. Holds no bytes and reads none: it only decides."""

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .policies import Policy


@dataclass(frozen=True)
class Admission:
    """What one admission found and decided.

    `hits` were resident before; `misses` must be read into their slots inside the transaction.
    Both map an expert to its slot. `without_slot` are those for whom there was none.
    """

    hits: dict[int, int]
    misses: dict[int, int]
    without_slot: tuple[int, ...]


def busiest_first(experts: npt.NDArray[Any]) -> list[int]:
    """Return the distinct experts that a call `[..., K]` asks for, in the order to admit them.

    Those that more tokens ask for come first.
    """
    if experts.size == experts.shape[-1]:  # one token asks for each of its experts once
        return sorted(set(experts.reshape(-1).tolist()))
    asked, counts = np.unique(experts, return_counts=True)
    ordered: list[int] = asked[np.argsort(-counts, kind="stable")].tolist()
    return ordered


class _LayerSlots:
    """The slots of one layer: explicit expert -> slot maps, pins and a policy.

    A slot that no map names is free: nothing else says so, so nothing can be lost.
    """

    def __init__(self, num_experts: int, capacity: int, policy: Policy) -> None:
        self.num_experts = num_experts
        self.capacity = capacity
        self.policy = policy
        self.slot_of: dict[int, int] = {}
        self.reserved: dict[int, int] = {}
        self.pins: dict[int, int] = {}
        self.now = 0


class ExpertCache:
    """Slots per layer, filled through `admit()`. Not thread-safe: one model thread owns it."""

    def __init__(
        self,
        num_experts: Sequence[int],
        capacities: Sequence[int],
        new_policy: Callable[[], Policy],
    ) -> None:
        """Start empty, with `capacities[layer]` slots for `num_experts[layer]` experts."""
        if any(capacity < 1 for capacity in capacities):
            raise ValueError(f"every layer needs a slot, got capacities {list(capacities)}")
        self._layers = [
            _LayerSlots(experts, min(capacity, experts), new_policy())
            for experts, capacity in zip(num_experts, capacities, strict=True)
        ]

    @property
    def capacities(self) -> list[int]:
        """Slots of each layer."""
        return [layer.capacity for layer in self._layers]

    def slot_of(self, layer: int, expert: int) -> int | None:
        """Return the slot that holds an expert, or None when it is not resident."""
        return self._layers[layer].slot_of.get(expert)

    def residents(self, layer: int) -> dict[int, int]:
        """Return a copy of the expert -> slot map of a layer."""
        return dict(self._layers[layer].slot_of)

    def reserved(self, layer: int) -> Set[int]:
        """Return a copy of the experts of a layer that slots are reserved for."""
        return set(self._layers[layer].reserved)

    def ranked(self, layer: int) -> list[int]:
        """Return the residents of a layer, by the policy's judgement most valuable first.

        May be called in any thread: it reads from copies, which a running admission may outdate.
        """
        slots = self._layers[layer]
        return slots.policy.ranked(list(slots.slot_of), slots.now)

    @contextmanager
    def admit(self, layer: int, experts: Iterable[int]) -> Iterator[Admission]:
        """Give `experts` slots for as long as the block runs; commit when it ends.

        Where there are more than slots, those that are resident keep theirs, and the first of the
        others get what is left. The block reads the bytes of the misses. They become resident when
        it ends; when it raises, none of them does and their slots are free, whatever was written
        there. Hits stay resident either way. No expert asked for, and no pinned one, is ever a
        victim.

        Raises:
            ValueError: an expert that the layer does not have. Nothing has changed then.
        """
        slots = self._layers[layer]
        asked = list(dict.fromkeys(experts))
        unknown = [expert for expert in asked if not 0 <= expert < slots.num_experts]
        if unknown:
            raise ValueError(
                f"layer {layer} has experts 0 to {slots.num_experts - 1}, asked for {unknown}"
            )
        slots.now += 1
        hits = {expert: slots.slot_of[expert] for expert in asked if expert in slots.slot_of}
        missing = [expert for expert in asked if expert not in hits]
        missing.sort(key=lambda expert: expert not in slots.reserved)  # those have a slot already
        others = slots.reserved.keys() - asked
        room = slots.capacity - len(hits) - len(slots.pins.keys() - hits.keys()) - len(others)
        for expert in sorted([*hits, *missing[:room]]):
            slots.policy.used(expert, slots.now)
        misses = self._place(slots, missing[:room], keep=hits.keys() | slots.pins.keys())
        for expert in misses:
            slots.reserved.pop(expert, None)
        try:
            yield Admission(hits, misses, tuple(missing[room:]))
        except BaseException:
            for expert in misses:
                slots.policy.evicted(expert)
            raise
        slots.slot_of.update(misses)

    @staticmethod
    def _place(slots: _LayerSlots, missing: Sequence[int], keep: Set[int]) -> dict[int, int]:
        """Return a slot for each of `missing`; where none is free evict, none of `keep`."""
        taken = {*slots.slot_of.values(), *slots.reserved.values()}
        free = sorted(set(range(slots.capacity)) - taken, reverse=True)
        misses = {}
        for expert in missing:
            if expert in slots.reserved:
                misses[expert] = slots.reserved[expert]
                continue
            if not free:
                victim = slots.policy.victim(slots.slot_of.keys() - keep, slots.now)
                free.append(slots.slot_of.pop(victim))
                slots.policy.evicted(victim)
            misses[expert] = free.pop()
        return misses

    def reserve(self, layer: int, experts: Iterable[int], *, evict: bool = True) -> dict[int, int]:
        """Set slots aside for experts that may be asked for next; return the slot of each.

        Those that are resident or reserved get none, nor do those beyond the slots that are not
        pinned, or without `evict` those that are free. `admit` gives a reserved slot to its
        expert; `release` ends a reservation.
        """
        slots = self._layers[layer]
        there = slots.slot_of.keys() | slots.reserved.keys()
        new = [expert for expert in dict.fromkeys(experts) if expert not in there]
        keep = slots.pins.keys() if evict else slots.slot_of.keys()
        room = slots.capacity - len(slots.reserved) - len(keep)
        placed = self._place(slots, new[: max(0, room)], keep)
        slots.reserved.update(placed)
        return placed

    def make_room(self, layer: int, experts: Iterable[int]) -> None:
        """Evict until those of `experts` that are not in memory would all find free slots.

        The policy picks who leaves; none of `experts` does, and no pinned one.
        """
        slots = self._layers[layer]
        wanted = set(experts)
        leaving = set(slots.slot_of.keys() - wanted - slots.pins.keys())
        missing = wanted - slots.slot_of.keys() - slots.reserved.keys()
        needed = len(missing) + len(slots.slot_of) + len(slots.reserved) - slots.capacity
        for _ in range(min(needed, len(leaving))):
            victim = slots.policy.victim(leaving, slots.now)
            leaving.remove(victim)
            del slots.slot_of[victim]
            slots.policy.evicted(victim)

    def release(self, layer: int, expert: int, *, resident: bool, age: int | None = None) -> None:
        """End a reservation: its expert is `resident`, read and unused, or its slot is free.

        `age` is for one that was used before this cache: how many admissions before the first.
        """
        slots = self._layers[layer]
        slot = slots.reserved.pop(expert)
        if resident:
            slots.slot_of[expert] = slot
            if age is not None:
                slots.policy.used(expert, -age)

    def may_resize(self, layer: int, capacity: int) -> bool:
        """Return whether no slot is reserved, nor more experts pinned than there would be slots."""
        slots = self._layers[layer]
        return not slots.reserved and len(slots.pins) <= min(capacity, slots.num_experts)

    def resize(self, layer: int, capacity: int) -> dict[int, int] | None:
        """Change a layer's slots; return the new slot for each old one that still holds an expert.

        An expert moves only when its slot is gone, to one that was free.

        Where there are too many experts the policy's victims leave. None, and nothing has changed,
        where it may not be resized.
        """
        if not self.may_resize(layer, capacity):
            return None
        slots = self._layers[layer]
        capacity = min(capacity, slots.num_experts)
        while len(slots.slot_of) > capacity:
            victim = slots.policy.victim(slots.slot_of.keys() - slots.pins.keys(), slots.now)
            del slots.slot_of[victim]
            slots.policy.evicted(victim)
        slots.capacity = capacity
        kept = slots.slot_of.values()
        free = [slot for slot in range(capacity) if slot not in kept]
        moves = {old: old if old < capacity else free.pop(0) for old in kept}
        slots.slot_of = {expert: moves[old] for expert, old in slots.slot_of.items()}
        return moves

    @contextmanager
    def pin(self, layer: int, expert: int) -> Iterator[int]:
        """Keep a resident expert in its slot while the block runs; yield the slot. Pins nest.

        Raises:
            KeyError: the expert is not resident.
        """
        slots = self._layers[layer]
        slot = slots.slot_of[expert]
        slots.pins[expert] = slots.pins.get(expert, 0) + 1
        try:
            yield slot
        finally:
            slots.pins[expert] -= 1
            if not slots.pins[expert]:
                del slots.pins[expert]

    def check_integrity(self) -> None:
        """Walk every layer both ways.

        Raises:
            AssertionError: a slot is held twice or out of range, or a pin is not resident.
        """
        for number, slots in enumerate(self._layers):
            held = sorted([*slots.slot_of.values(), *slots.reserved.values()])
            once = sorted(set(held) & set(range(slots.capacity)))
            assert held == once, (
                f"layer {number}: slots {held} are not some of 0..{slots.capacity - 1} once each"
            )
            experts = slots.slot_of.keys()
            assert not experts & slots.reserved.keys(), f"layer {number}: reserved and resident"
            assert all(0 <= expert < slots.num_experts for expert in experts), (
                f"layer {number} holds experts it does not have: {sorted(experts)}"
            )
            assert slots.pins.keys() <= experts, f"layer {number}: a pinned expert is not resident"
