"""Reading ahead: what the next layer's router would pick now, and what becomes of it."""

import threading
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from comparing import differing, opened, random_tokens, resident, run_logits, streamed
from families import FAMILIES, Family, write_checkpoint

from mlx_flash.config import CacheOptions, MemoryLimit, ReadOptions
from mlx_flash.streaming import prefetch

PREFETCH = ReadOptions(overlap_bytes=1, prefetch=True)


@pytest.fixture(autouse=True)
def _on_the_cpu() -> Any:
    before = mx.default_device()
    mx.set_default_device(mx.Device(mx.cpu))
    yield
    mx.set_default_device(before)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_reads_ahead_or_says_why_not(family: Family, tmp_path: Path) -> None:
    write_checkpoint(family, tmp_path)
    ours = streamed(tmp_path, 3, reads=PREFETCH)
    assert ours.stream is not None
    theirs = resident(tmp_path)
    prompt = random_tokens(5, 100)
    assert differing(run_logits(ours.model, prompt, 8), run_logits(theirs, prompt, 8)) == []
    ours.stream.cache.check_integrity()
    if len(ours.layouts) > 1 and ours.stream.prefetcher.why_off == "":
        assert ours.stream.counters.guesses > 0


def test_the_guess_is_what_the_next_router_picks_of_this_layers_input(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where both layers have the same input and router, every guess is right."""
    monkeypatch.setattr(prefetch, "_NOISE", 0.0)
    ours = streamed(checkpoint, 2, reads=PREFETCH)
    assert ours.stream is not None
    first, second = (ours.model.layers[number].mlp for number in (0, 2))
    second.gate = first.gate
    x = mx.random.normal((1, 1, 256))
    mx.eval(first(x))
    mx.eval(second(x))
    counters = ours.stream.counters
    assert (counters.prefetched, counters.prefetch_hits) == (2, 2)


def test_a_guess_that_is_mostly_wrong_ends_itself(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "_TRIAL", 4)
    monkeypatch.setattr(prefetch, "_LEAST_PRECISION", 1.1)
    ours = streamed(checkpoint, 2, reads=PREFETCH)
    assert ours.stream is not None
    list(run_logits(ours.model, random_tokens(1, 100), 12))
    before = ours.stream.counters.prefetched
    assert "of the experts read ahead were used" in ours.stream.prefetcher.why_off
    list(run_logits(ours.model, random_tokens(1, 100, seed=3), 12))
    assert ours.stream.counters.prefetched == before


@pytest.mark.parametrize("hidden", [0.0, 1e9])
def test_guessing_goes_on_as_long_as_it_hides_more_than_it_takes(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, hidden: float
) -> None:
    monkeypatch.setattr(prefetch, "_REVIEW_ASKS", 16)
    monkeypatch.setattr(prefetch, "_HIDDEN", hidden)
    monkeypatch.setattr(prefetch, "_LEAST_PRECISION", 0.0)
    ours = streamed(checkpoint, 2, reads=PREFETCH)
    assert ours.stream is not None
    list(run_logits(ours.model, random_tokens(1, 100), 12))
    before = ours.stream.counters.guesses
    assert before > 0
    why = ours.stream.prefetcher.why_idle
    assert why.startswith("did not pay: ") if hidden == 0.0 else why == ""
    list(run_logits(ours.model, random_tokens(1, 100, seed=3), 12))
    assert (ours.stream.counters.guesses == before) == (hidden == 0.0)


def test_only_experts_that_most_votes_go_to_are_read_ahead() -> None:
    token = [[1, 2], [1, 2], [2, 1], [1, 2], [2, 1], [1, 2], [1, 3], [1, 4]]
    other = [[5, 6], [7, 5], [5, 6], [5, 6], [6, 5], [5, 6], [6, 5], [5, 6]]
    assert prefetch._elected(np.array([token]), 8, 7) == [1]
    assert prefetch._elected(np.array([token + other]), 8, 7) == [1, 5, 6]


def test_the_first_vote_is_cast_without_noise() -> None:
    x = mx.random.normal((1, 3, 64))
    noisy = prefetch._with_noise(x, 8)
    assert noisy.shape == (1, 24, 64)
    votes = noisy.reshape(3, 8, 64)
    assert mx.array_equal(votes[:, 0], x[0]).item()
    apart = np.sqrt(np.mean(np.square(np.asarray(votes - votes[:, :1])), axis=-1))
    size = np.sqrt(np.mean(np.square(np.asarray(x[0])), axis=-1))[:, None]
    assert np.allclose(apart[:, 1:] / size, 0.5, atol=0.2)
    assert mx.array_equal(noisy, prefetch._with_noise(x, 8)).item()


def test_a_guess_in_one_thread_changes_no_result_in_another(checkpoint: Path) -> None:
    ours = streamed(checkpoint, 2, reads=PREFETCH)
    block, x = ours.model.layers[2].mlp, mx.ones((1, 1, 256))
    mx.eval(x)
    expected = block.switch_mlp(x, mx.array([[[3, 4]]])).tolist()
    guessing, answered = threading.Event(), threading.Event()

    def block_that_waits(x: mx.array) -> mx.array:
        guessing.set()
        answered.wait(60)
        y: mx.array = block(x)
        return y

    def guess() -> None:
        with mx.stream(mx.new_stream(mx.cpu)):
            prefetch.picks(block_that_waits, block.switch_mlp, x)

    thread = threading.Thread(target=guess)
    thread.start()
    guessing.wait(60)
    try:
        assert block.switch_mlp(x, mx.array([[[3, 4]]])).tolist() == expected
    finally:
        answered.set()
        thread.join()
    assert block.switch_mlp.guessing is None


def test_what_could_not_be_read_ahead_is_read_when_it_is_asked_for(checkpoint: Path) -> None:
    loaded = opened(checkpoint, CacheOptions(capacity=2), MemoryLimit(), "cpu", PREFETCH)
    assert loaded.stream is not None
    layer = loaded.model.layers[2].mlp.switch_mlp.layer_stream
    healthy = loaded.stream.reader.preadv

    def broken(descriptor: int, views: Any, offset: int) -> int:
        raise OSError(5, "Input/output error")

    loaded.stream.reader.preadv = broken
    layer.prefetch([5])
    batch = layer._ahead[5]
    with batch._change:
        batch._change.wait_for(lambda: batch.done)
    loaded.stream.reader.preadv = healthy
    layer._settle({5})
    assert not layer._ahead
    loaded.stream.cache.check_integrity()
    theirs = resident(checkpoint)
    prompt = random_tokens(5, 100)
    assert differing(run_logits(loaded.model, prompt, 8), run_logits(theirs, prompt, 8)) == []


def test_an_interrupt_between_slot_and_read_loses_no_slot(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = opened(checkpoint, CacheOptions(capacity=2), MemoryLimit(), "cpu", PREFETCH)
    assert loaded.stream is not None
    layer = loaded.model.layers[2].mlp.switch_mlp.layer_stream

    def interrupted(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loaded.stream, "start_reading", interrupted)
        with pytest.raises(KeyboardInterrupt):
            layer.prefetch([5, 6])
    assert len(loaded.stream.cache.reserve(1, [0, 1])) == 2


def test_what_is_read_ahead_in_vain_is_a_victim_before_what_was_used(checkpoint: Path) -> None:
    loaded = opened(checkpoint, CacheOptions(capacity=2), MemoryLimit(), "cpu", PREFETCH)
    assert loaded.stream is not None
    layer = loaded.model.layers[2].mlp.switch_mlp.layer_stream
    with loaded.stream.cache.admit(1, [0]):
        pass
    layer.prefetch([5])
    layer._ahead[5].wait()
    layer._settle({0})
    assert loaded.stream.cache.residents(1).keys() == {0, 5}
    with loaded.stream.cache.admit(1, [7]):
        pass
    assert loaded.stream.cache.residents(1).keys() == {0, 7}
