"""Streamed logits equal resident logits bit for bit, whatever the capacity, policy and format."""

import copy
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from comparing import (
    ONLY_EXPERTS,
    differing,
    differing_steps,
    differing_switches,
    opened,
    random_tokens,
    resident,
    run_logits,
    streamed,
)
from families import Family, write_checkpoint
from packing import packed

from mlx_flash.config import CacheOptions, MemoryLimit, ReadOptions
from mlx_flash.errors import ExpertReadError, UnsupportedModelError

FORMATS: dict[str, tuple[dict[str, Any] | None, str]] = {
    **{f"affine-{bits}": ({"group_size": 64, "bits": bits}, "bfloat16") for bits in (2, 3, 5, 6)},
    "affine-4-bf16": ({"group_size": 32, "bits": 4}, "bfloat16"),
    "affine-4-f16": ({"group_size": 64, "bits": 4}, "float16"),
    "affine-4-f32": ({"group_size": 128, "bits": 4}, "float32"),
    "affine-8": ({"group_size": 128, "bits": 8}, "bfloat16"),
    "mxfp4": ({"group_size": 32, "bits": 4, "mode": "mxfp4"}, "bfloat16"),
    "mxfp8": ({"group_size": 32, "bits": 8, "mode": "mxfp8"}, "bfloat16"),
    "nvfp4": ({"group_size": 16, "bits": 4, "mode": "nvfp4"}, "bfloat16"),
    "bf16": (None, "bfloat16"),
    "f16": (None, "float16"),
    "f32": (None, "float32"),
}
OVERLAPPED = ReadOptions(overlap_bytes=1)  # experts this small are read at once otherwise
EVERYTHING = ReadOptions(overlap_bytes=1, direct=True, prefetch=True)
READS = pytest.mark.parametrize(
    "reads", [None, OVERLAPPED, EVERYTHING], ids=["at once", "overlapped", "everything"]
)
CAPACITIES = (1, 2, 3, 4, 8)  # of 8 experts, 2 per token: 1, k, k + 1, E / 2, E
VOCAB = 128


SHORT, LONG = random_tokens(40, VOCAB), random_tokens(300, VOCAB, seed=1)


class Reference:
    """A checkpoint in one format, and the logits of its resident run per device."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._logits: dict[str, list[mx.array]] = {}

    def logits(self, device: str) -> list[mx.array]:
        if device not in self._logits:
            try:
                self._logits[device] = list(run_both(resident(self.folder, device)))
            except RuntimeError as error:  # MLX's CUDA kernel for float32 4-bit, groups of 128
                if device != "gpu":
                    raise
                pytest.skip(f"plain mlx-lm cannot run this checkpoint on this GPU: {error}")
        return self._logits[device]

    @cached_property
    def packed(self) -> Path:
        """The same checkpoint in the packed store."""
        return packed(self.folder)

    def repeats(self, device: str) -> bool:
        """Whether a second resident run gives the same logits, as it does on the CPU."""
        if device != "gpu":
            return True
        return not differing(self.logits(device), run_both(resident(self.folder)))


def run_both(model: Any) -> Iterator[mx.array]:
    yield from run_logits(model, SHORT, 32)
    yield from run_logits(model, LONG, 2)


@pytest.fixture(scope="module")
def reference(
    request: pytest.FixtureRequest, qwen: Family, tmp_path_factory: pytest.TempPathFactory
) -> Reference:
    quantization, dtype = FORMATS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    write_checkpoint(qwen, folder, quantization=quantization, dtype=dtype, shards=2)
    return Reference(folder)


@pytest.mark.parametrize(
    ("policy", "capacity"), [*(("forward", c) for c in CAPACITIES), ("lru", 3)]
)
@pytest.mark.parametrize("reference", FORMATS, indirect=True)
def test_streamed_logits_equal_resident_logits(
    reference: Reference, policy: str, capacity: int, device: str
) -> None:
    expected = reference.logits(device)
    ours = streamed(reference.folder, capacity, policy, device, EVERYTHING)
    assert ours.stream is not None
    run = list(run_both(ours.model))
    ours.stream.cache.check_integrity()
    assert ours.stream.cache.capacities == [capacity] * len(ours.layouts)
    steps = differing(run, expected)
    if steps and not reference.repeats(device):
        assert differing_switches(ours.model, resident(reference.folder)) == []
        pytest.skip(ONLY_EXPERTS)
    assert steps == []


@pytest.mark.parametrize("reads", [OVERLAPPED, EVERYTHING], ids=["overlapped", "everything"])
@pytest.mark.parametrize("capacity", [1, 3])
@pytest.mark.parametrize("reference", FORMATS, indirect=True)
def test_packed_experts_give_the_same_logits(
    reference: Reference, capacity: int, device: str, reads: ReadOptions
) -> None:
    expected = reference.logits(device)
    if not reference.repeats(device):
        pytest.skip("plain mlx-lm gives other logits each time")
    reads = replace(reads, verify=True)
    ours = streamed(reference.packed, capacity, device=device, reads=reads)
    assert ours.stream is not None
    assert differing(run_both(ours.model), expected) == []
    assert ours.stream.counters.bytes_read > 0


@pytest.mark.parametrize("reference", FORMATS, indirect=True)
def test_a_packed_model_runs_resident_too(reference: Reference, device: str) -> None:
    expected = reference.logits(device)
    if not reference.repeats(device):
        pytest.skip("plain mlx-lm gives other logits each time")
    everything = MemoryLimit(everything=True)
    loaded = opened(reference.packed, CacheOptions(), everything, device)
    assert loaded.stream is None
    assert differing(run_both(loaded.model), expected) == []


@READS
@pytest.mark.parametrize("capacity", CAPACITIES)
def test_batches_stay_exact(
    checkpoint: Path, capacity: int, device: str, reads: ReadOptions | None
) -> None:
    ours = streamed(checkpoint, capacity, device=device, reads=reads)
    theirs = resident(checkpoint, device)
    prompt = random_tokens(17, VOCAB, batch=3)
    assert differing_steps(ours.model, theirs, prompt, num_decode=8) == []


@READS
@pytest.mark.parametrize("capacity", CAPACITIES)
def test_results_are_exact_when_computed_long_after_the_slots_moved_on(
    checkpoint: Path, capacity: int, device: str, reads: ReadOptions | None
) -> None:
    """Results stay lazy until asked for: by then later calls have overwritten the slots."""
    ours = streamed(checkpoint, capacity, device=device, reads=reads).model
    theirs = resident(checkpoint, device)
    prompts = [random_tokens(3, VOCAB, seed=seed) for seed in range(12)]
    lazy = [ours(prompt) for prompt in prompts]
    for prompt, logits in zip(prompts, lazy, strict=True):
        assert mx.array_equal(logits, theirs(prompt)).item()


@READS
@pytest.mark.parametrize("capacity", CAPACITIES)
def test_a_failed_read_ends_the_call_and_the_next_one_is_exact(
    checkpoint: Path, capacity: int, device: str, reads: ReadOptions | None
) -> None:
    ours = streamed(checkpoint, capacity, device=device, reads=reads)
    theirs = resident(checkpoint, device)
    assert ours.stream is not None
    reader = ours.stream.reader
    healthy, calls = reader.preadv, 0

    def fail_later(descriptor: int, views: Any, offset: int) -> int:
        nonlocal calls
        calls += 1
        for view in views:
            view[:] = b"\xa5" * view.nbytes  # a failed read may leave anything behind
        if calls > 5:
            raise OSError(5, "Input/output error")
        return healthy(descriptor, views, offset)

    prompt = random_tokens(40, VOCAB)
    reader.preadv = fail_later
    with pytest.raises(ExpertReadError, match=r"expert \d of layer \d.*safetensors.*Input/output"):
        list(run_logits(ours.model, prompt, 32))
    reader.preadv = healthy
    ours.stream.cache.check_integrity()
    assert differing_steps(ours.model, theirs, prompt, num_decode=8) == []


def test_a_copied_model_shares_its_slots_and_stays_exact(checkpoint: Path) -> None:
    ours, theirs = streamed(checkpoint, 2).model, resident(checkpoint)
    twin = copy.deepcopy(ours)
    for seed in range(4):
        prompt = random_tokens(5, VOCAB, seed=seed)
        expected = theirs(prompt)
        assert mx.array_equal(ours(prompt), expected).item()
        assert mx.array_equal(twin(prompt), expected).item()


def test_casting_a_streamed_model_leaves_its_slots_alone(checkpoint: Path) -> None:
    ours, theirs = streamed(checkpoint, 2).model, resident(checkpoint)
    ours.set_dtype(mx.bfloat16)
    ours.set_dtype(mx.float32)  # norms and scales are bf16 in the file, so this is the identity
    prompt = random_tokens(9, VOCAB)
    assert mx.array_equal(ours(prompt), theirs(prompt)).item()


def test_no_tokens_give_no_results(checkpoint: Path) -> None:
    switch = streamed(checkpoint, 2).model.layers[0].mlp.switch_mlp
    assert switch(mx.zeros((1, 0, 256)), mx.zeros((1, 0, 2), mx.uint32)).shape == (1, 0, 2, 256)


def test_a_gradient_is_refused(checkpoint: Path) -> None:
    ours = streamed(checkpoint, 2).model
    block = ours.layers[0].mlp

    def loss(x: mx.array) -> mx.array:
        return block(x).sum()

    for num_tokens in (1, 3, 200):
        with pytest.raises(UnsupportedModelError, match="cannot be trained"):
            mx.grad(loss)(mx.ones((1, num_tokens, 256)) + mx.arange(num_tokens)[None, :, None])


def test_threads_take_turns(checkpoint: Path) -> None:
    """Two threads decode different texts on one model at a time when slots are fewest."""
    ours = streamed(checkpoint, 2)
    assert ours.stream is not None
    prompts = [random_tokens(5, VOCAB, seed=seed) for seed in range(3)]
    found: dict[int, list[list[float]]] = {}

    def decode(number: int) -> None:
        with mx.stream(mx.new_stream(mx.cpu)):
            found[number] = [step.tolist() for step in run_logits(ours.model, prompts[number], 12)]

    threads = [threading.Thread(target=decode, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ours.stream.cache.check_integrity()
    theirs = resident(checkpoint)
    for number, prompt in enumerate(prompts):
        assert found[number] == [step.tolist() for step in run_logits(theirs, prompt, 12)]
