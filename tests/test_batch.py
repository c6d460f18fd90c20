"""Sequences computed together give what each gives alone, and one that breaks leaves the rest."""

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_flash.config import CacheOptions, KernelOptions, MemoryLimit, ReadOptions
from mlx_flash.engine.load import LoadedModel, ModelFiles, load_model
from mlx_flash.engine.sampling import SamplingOptions, greedy, make_draw
from mlx_flash.errors import ExpertReadError
from mlx_flash.server.worker.batch import Batch, Broken, Drawn, Left, Prefill, can_batch
from mlx_flash.streaming.tokens import tokens_after

CAPACITY = 6
LENGTHS = (5, 150, 40, 271)  # the attention kernels take 128 keys at a time


@pytest.fixture(scope="module")
def loaded() -> Iterator[LoadedModel]:
    usual = mx.default_device()
    mx.set_default_device(mx.Device(mx.cpu))  # the kernels that are exact in a batch are the CPU's
    files = ModelFiles.open(None)
    model = load_model(
        files.checkpoint,
        MemoryLimit(),
        CacheOptions(capacity=CAPACITY),
        context_tokens=512,
        kernel_options=KernelOptions(kernels="cpu"),
        read_options=ReadOptions(prefetch=False),
    )
    yield model
    model.close()
    mx.set_default_device(usual)


def prompts() -> list[list[int]]:
    rng = np.random.default_rng(7)
    return [rng.integers(5, 8000, length).tolist() for length in LENGTHS]


def alone(model: Any, prompt: list[int], num_tokens: int) -> list[tuple[int, bytes]]:
    """Return the tokens and log-probabilities that follow a prompt in a batch of its own."""
    batch = Batch(model)
    join(batch, model, 0, prompt)
    return [bits(batch.step()[0]) for _ in range(num_tokens)]


def join(
    batch: Batch, model: Any, key: int, prompt: list[int], left: Left | None = None, step: int = 64
) -> None:
    prefill = Prefill(model, key, prompt, left, greedy, [])
    while not prefill.ready:
        prefill.step(step)
    batch.join(prefill)


def bits(drawn: Drawn | Broken) -> tuple[int, bytes]:
    assert isinstance(drawn, Drawn)
    return drawn.token, np.asarray(drawn.logprobs).tobytes()


def test_a_batch_gives_every_sequence_the_bits_it_gives_alone(loaded: LoadedModel) -> None:
    model = loaded.model
    expected = [alone(model, prompt, 12) for prompt in prompts()]
    batch = Batch(model)
    got: dict[int, list[tuple[int, bytes]]] = {key: [] for key in range(len(LENGTHS))}
    for key, prompt in enumerate(prompts()):  # they join one after the other, and leave so
        join(batch, model, key, prompt, step=32 + 16 * key)
        for drawn in batch.step():
            got[drawn.key].append(bits(drawn))
    while len(batch):
        for drawn in batch.step():
            got[drawn.key].append(bits(drawn))
            if len(got[drawn.key]) == 12:
                batch.leave(drawn.key)
    assert [got[key] for key in range(len(LENGTHS))] == expected


def test_batched_tokens_are_those_of_mlx_lm(loaded: LoadedModel) -> None:
    prompt = prompts()[1]
    tokens = [token for token, _ in alone(loaded.model, prompt, 8)]
    assert tokens == list(tokens_after(loaded.model, prompt, 8, 0.0, 64))


def test_what_a_sequence_leaves_is_the_beginning_of_the_next(loaded: LoadedModel) -> None:
    model, prompt = loaded.model, prompts()[2]
    batch = Batch(model)
    join(batch, model, 1, prompt)
    said = [bits(batch.step()[0])[0] for _ in range(5)]
    left = batch.leave(1)
    assert left.tokens == prompt + said
    longer = [*left.tokens, 17, 18, 19]
    expected = alone(model, longer, 5)
    join(batch, model, 2, longer, left)
    assert [bits(batch.step()[0]) for _ in range(5)] == expected


def test_an_expert_that_cannot_be_read_ends_only_who_asks_for_it(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, stream = loaded.model, loaded.stream
    assert stream is not None
    expected = [alone(model, prompt, 9) for prompt in prompts()[:3]]
    batch = Batch(model)
    for key, prompt in enumerate(prompts()[:3]):
        join(batch, model, key, prompt)
    got: dict[int, list[tuple[int, bytes]]] = {0: [], 1: [], 2: []}
    for _ in range(3):
        for drawn in batch.step():
            got[drawn.key].append(bits(drawn))

    start = stream.start_reading
    computed = [0, 1, 2]

    def failing(layer: int, experts: Any, *rest: Any) -> Any:
        """Fail as the disk would, in the middle of the model, while the victim is computed."""
        if layer == 5 and 1 in computed:
            path = next(iter(stream.layouts[5].files))
            raise ExpertReadError("bad sector", layer=5, expert=0, path=path, offset=0)
        return start(layer, experts, *rest)

    again = Batch._again

    def noted(self: Batch, failed: Any, place: int, pending: int) -> Any:
        computed[:] = [failed.uids[place]]
        return again(self, failed, place, pending)

    monkeypatch.setattr(Batch, "_again", noted)
    monkeypatch.setattr(stream, "start_reading", failing)
    results = batch.step()
    monkeypatch.undo()
    broken = [one for one in results if isinstance(one, Broken)]
    assert [(one.key, type(one.error)) for one in broken] == [(1, ExpertReadError)]
    for one in results:
        if isinstance(one, Drawn):
            got[one.key].append(bits(one))
    while len(got[0]) < 9:
        for drawn in batch.step():
            got[drawn.key].append(bits(drawn))
    assert (got[0], got[2]) == (expected[0], expected[2])
    assert got[1] == expected[1][: len(got[1])]
    assert alone(model, prompts()[1], 9) == expected[1]  # the next request works


def test_a_seed_draws_the_same_tokens_whoever_runs_beside(loaded: LoadedModel) -> None:
    def draw(beside: bool) -> list[int]:
        batch = Batch(loaded.model)
        options = SamplingOptions(temperature=1.0, top_p=0.9, top_k=50, min_p=0.01, seed=11)
        prefill = Prefill(loaded.model, 1, prompts()[0], None, make_draw(options, 8192), [])
        prefill.step(100)
        batch.join(prefill)
        if beside:
            join(batch, loaded.model, 2, prompts()[2])
        steps = [batch.step() for _ in range(10)]
        return [
            one.token for step in steps for one in step if isinstance(one, Drawn) and one.key == 1
        ]

    assert draw(True) == draw(False)
    assert len(set(draw(False))) > 1


def test_the_bundled_model_can_batch(loaded: LoadedModel) -> None:
    assert can_batch(loaded.model)
