"""What a recorder says of a router: its own experts and weights, NaN where they cannot be told."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest
from comparing import differing, random_tokens, resident, run_logits, streamed
from families import FAMILIES, write_checkpoint

from mlx_flash.engine.trace import record, recording, trace_of
from mlx_flash.errors import UnsupportedModelError
from mlx_flash.streaming import adapter, recorder
from mlx_flash.streaming.recorder import Recorder, router_weights
from mlx_flash.streaming.switch import StreamedSwitch

BY_NAME = {family.name: family for family in FAMILIES}
TOLD = ("qwen3_moe", "mixtral", "gpt_oss", "llama4", "deepseek_v3", "qwen3_next", "olmoe")
UNTOLD = ("gemma4_text", "nemotron_h", "kimi_k3")  # a router apart, a latent width, a norm


@pytest.fixture(autouse=True)
def _on_the_cpu() -> Iterator[None]:
    before = mx.default_device()
    mx.set_default_device(mx.Device(mx.cpu))
    yield
    mx.set_default_device(before)


def test_weights_are_those_of_the_router(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "_WEIGHED_TOKENS", 64)
    ours, theirs = streamed(checkpoint, 2), resident(checkpoint)
    inputs: list[mx.array] = []
    routed = [number for number, layer in enumerate(theirs.layers) if "switch_mlp" in layer.mlp]
    for number in routed:
        layer = theirs.layers[number]
        layer.mlp = _noting(layer.mlp, inputs)
    tokens = random_tokens(200, 128)[0].tolist()
    trace = trace_of(ours, [("text", tokens)])
    mx.eval(theirs(mx.array(tokens)[None]))
    assert len(inputs) == len(routed) == trace.experts.shape[1]
    for place, (number, x) in enumerate(zip(routed, inputs, strict=True)):
        block = ours.model.layers[number].mlp
        gates = mx.softmax(block.gate(x), axis=-1, precise=True)[0]
        picked = mx.array(trace.experts[:, place].astype(np.uint32))
        scores = mx.take_along_axis(gates, picked, axis=-1)
        if block.norm_topk_prob:
            scores = scores / scores.sum(axis=-1, keepdims=True)
        best = np.sort(np.argsort(-np.asarray(gates), axis=-1)[:, :2], axis=-1)
        assert np.array_equal(np.sort(trace.experts[:, place], axis=-1), best)
        assert np.allclose(trace.weights[:, place], np.asarray(scores), atol=1e-3)
    assert trace.steps.tolist() == [200]


def _noting(block: Any, inputs: list[mx.array]) -> Any:
    """Return a block that notes what it is given."""

    def noting(x: mx.array) -> Any:
        inputs.append(x)
        return block(x)

    return noting


@pytest.mark.parametrize("name", [*TOLD, *UNTOLD])
def test_experts_are_recorded_and_no_bit_changes(name: str, tmp_path: Path) -> None:
    write_checkpoint(BY_NAME[name], tmp_path)
    ours, theirs = streamed(tmp_path, 2), resident(tmp_path)
    asked: list[Any] = []
    for path, switch in adapter.find_switches(theirs):
        adapter.replace_module(theirs, path, _spied(switch, asked))
    prompt, passes = random_tokens(40, 100), []
    expected = list(run_logits(theirs, prompt, 2))
    with recording(ours, lambda experts, weights: passes.append((experts, weights))):
        found = list(run_logits(ours.model, prompt, 2))
    assert differing(found, expected) == []
    assert [experts.shape[0] for experts, _ in passes] == [40, 1, 1]
    layers = BY_NAME[name].moe_layers
    for number, (experts, weights) in enumerate(passes):
        of_pass = asked[number * layers : (number + 1) * layers]
        for layer, indices in enumerate(of_pass):
            assert np.array_equal(experts[:, layer], indices.reshape(-1, indices.shape[-1]))
        assert np.isnan(weights).all() == (name in UNTOLD)
        assert np.isnan(weights).any() == (name in UNTOLD)


def _spied(switch: Any, asked: list[Any]) -> Any:
    """Return a switch that notes which experts it is asked for."""
    kind = type(switch)

    class Spied(kind):  # type: ignore[misc, valid-type]
        def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
            asked.append(np.asarray(indices))
            y: mx.array = kind.__call__(self, x, indices)
            return y

    switch.__class__ = Spied
    return switch


def test_a_block_that_cannot_be_told_apart_gives_nan(checkpoint: Path) -> None:
    """Its result is no weighted sum, it takes other input, or asks for other experts."""
    ours = streamed(checkpoint, 2)
    block = ours.model.layers[0].mlp
    switch = block.switch_mlp
    x, others = mx.ones((1, 3, 256)), np.zeros((3, 2), np.int64)

    def told(x: mx.array) -> mx.array:
        y = switch(x, mx.array([[[1, 2]] * 3]))
        return (y * mx.array([0.25, 0.75])[:, None]).sum(axis=-2)

    right = np.array([[1, 2]] * 3)
    assert router_weights(told, switch, x, right).tolist() == [[0.25, 0.75]] * 3
    assert np.isnan(router_weights(told, switch, x, others)).all()
    for strange in (
        lambda x: told(x)[..., ::-1],
        lambda x: told(x) @ mx.ones((256, 256)),
        lambda x: (told(x), None),
        lambda x, mask: told(x),
    ):
        assert np.isnan(router_weights(strange, switch, x, right)).all()
    assert (switch.answer, switch.answering) == (None, None)
    mx.eval(block(x))


def test_a_pass_that_failed_is_forgotten() -> None:
    passes: list[Any] = []
    recording = Recorder(2, lambda experts, weights: passes.append(experts.tolist()))
    x, switch = mx.ones((1, 1, 4)), cast("StreamedSwitch", None)  # asked when there is a block
    for layer, experts in ((0, [1, 2]), (0, [3, 4]), (1, [5, 6])):
        recording.record(switch, layer, x, mx.array([[experts]]))
    assert passes == [[[[3, 4], [5, 6]]]]


@pytest.mark.parametrize(("layer", "experts"), [(1, [1]), (2, [1, 2])])
def test_layers_that_do_not_follow_each_other_cannot_be_recorded(
    layer: int, experts: list[int]
) -> None:
    recording = Recorder(3, lambda experts, weights: None)
    x, switch = mx.ones((1, 1, 4)), cast("StreamedSwitch", None)
    recording.record(switch, 0, x, mx.array([[[1, 2]]]))
    with pytest.raises(UnsupportedModelError, match="cannot be recorded"):
        recording.record(switch, layer, x, mx.array([[experts]]))
    recording.record(switch, 0, x, mx.array([[[1, 2]]]))
    recording.record(switch, 1, x, mx.array([[[1, 2]]]))


def test_texts_are_read_in_windows_each_from_an_empty_context(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_flash.engine.trace.WINDOW_TOKENS", 8)
    loaded = streamed(checkpoint, 3)
    text = random_tokens(20, 128)[0].tolist()
    done: list[int] = []
    trace = trace_of(loaded, [("a", text), ("b", text[:8])], done.append)
    assert trace.steps.tolist() == [8, 8, 4, 8]
    assert trace.domains == (("a", 20), ("b", 8))
    assert done == [8, 8, 4, 8]
    assert np.array_equal(trace.experts[:8], trace.experts[20:])
    passes: list[str] = []
    record(loaded, [("c", text[8:16])], lambda domain, experts, _: passes.append(domain))
    assert passes == ["c"]
    assert np.array_equal(trace_of(loaded, [("c", text[8:16])]).experts, trace.experts[8:16])
