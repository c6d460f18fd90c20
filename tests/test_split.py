"""Slots split among layers: as many in all as an even split has, where they hit most."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from calling import refusal
from comparing import stream_of
from routing import random_trace, routing

from mlx_flash.config import CacheOptions, MemoryLimit
from mlx_flash.engine.load import load_model
from mlx_flash.engine.replay import replay, split_slots, splitting_by
from mlx_flash.formats.checkpoint import Checkpoint
from mlx_flash.planner.curve import lru_curve
from mlx_flash.telemetry.trace import Trace
from mlx_flash.telemetry.trace_file import TraceWriter


def uneven(tokens: int = 300) -> Trace:
    """Return a trace whose first layer uses all its experts alike, and whose second a few."""
    parts = [random_trace(tokens, experts=12, layers=1, skew=skew) for skew in (0.0, 6.0)]
    experts = np.concatenate([part.experts for part in parts], axis=1)
    weights = np.concatenate([part.weights for part in parts], axis=1)
    return Trace(routing(12, 2, 2), experts, weights, parts[0].steps, parts[0].domains)


@pytest.mark.parametrize("capacity", range(1, 13))
def test_a_split_has_as_many_slots_and_no_layer_less_than_it_needs(capacity: int) -> None:
    for trace in (uneven(), random_trace(40, experts=12, layers=5, skew=1.0)):
        slots = lru_curve(trace).split(capacity)
        assert sum(slots) == capacity * len(trace.routing.num_experts)
        assert min(slots) >= min(capacity, max(2, capacity // 2))
        assert max(slots) <= 12


def test_slots_go_where_they_hit_more() -> None:
    found = split_slots(uneven(), "lru", 6)
    assert found is not None
    slots, gain = found
    assert slots[0] > 6 > slots[1]
    assert gain > 0
    assert replay(uneven(), "lru", slots).hit_rate > replay(uneven(), "lru", 6).hit_rate


def test_layers_that_are_alike_are_not_split() -> None:
    trace = random_trace(300, experts=12, skew=1.0)
    trace.experts[:, 1] = trace.experts[:, 0]
    assert split_slots(trace, "lru", 6) is None
    assert split_slots(random_trace(1, experts=12), "lru", 6) is None
    assert splitting_by(None, "lru")(6, [12, 12]) is None


def test_a_split_by_a_file_is_that_by_its_trace_and_is_loaded(
    checkpoint: Path, tmp_path: Path
) -> None:
    trace = uneven()
    writer = TraceWriter(tmp_path / "trace", trace.routing)
    writer.add("text", trace.experts)
    writer.close()
    found = split_slots(trace, "lru", 6)
    assert found is not None
    assert splitting_by(tmp_path / "trace", "lru")(6, [12, 12]) == found[0]
    seen: list[tuple[int, list[int]]] = []

    def split(capacity: int, experts: Sequence[int]) -> list[int]:
        seen.append((capacity, list(experts)))
        return [2, 4, *[capacity] * (len(experts) - 2)]

    loaded = load_model(
        Checkpoint.open(checkpoint),
        MemoryLimit(),
        CacheOptions(capacity=3),
        context_tokens=64,
        split=split,
    )
    with contextlib.closing(loaded):
        layers = len(loaded.layouts)
        assert seen == [(3, [8] * layers)]
        assert stream_of(loaded).cache.capacities == [2, 4, *[3] * (layers - 2)]


def test_a_trace_of_another_model_splits_nothing(tmp_path: Path) -> None:
    trace = uneven()
    writer = TraceWriter(tmp_path / "trace", trace.routing)
    writer.add("text", trace.experts)
    writer.close()
    (tmp_path / "empty").touch()
    ask = ("generate", "-p", "x", "-n", "1", "--capacity", "6", "--split-by")
    assert "is no routing trace" in refusal(*ask, tmp_path / "empty")
    assert "is a trace of a/model, which has other layers or experts" in refusal(
        *ask, tmp_path / "trace"
    )
