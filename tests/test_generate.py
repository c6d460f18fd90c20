"""Generating: what is reported was measured, of the tokens that it says."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from comparing import random_tokens, run_logits, streamed

from mlx_flash.config import ReadOptions
from mlx_flash.engine import generate as module
from mlx_flash.engine.generate import GenerateOptions, GenerationReport, Progress, generate


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def perf_counter(self) -> float:
        return self.now_s


def report_of(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, after_s: list[float], interrupt: bool = False
) -> tuple[GenerationReport, list[float]]:
    """Generate tokens that come so long after each other; return the report and what was shown."""
    clock, shown = Clock(), []

    def tokens(*arguments: Any, **options: Any) -> Iterator[Any]:
        for number, seconds in enumerate(after_s):
            clock.now_s += seconds
            yield SimpleNamespace(
                text="x", token=number, prompt_tps=7.0, generation_tps=1e9, finish_reason=None
            )
        if interrupt:
            raise KeyboardInterrupt

    def on_progress(progress: Progress) -> None:
        shown.append(progress.tps)

    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "stream_generate", tokens)
    loaded = streamed(checkpoint, 2)
    options = GenerateOptions()
    return generate(loaded, None, [1, 2], options, on_progress), shown  # type: ignore[arg-type]


def test_the_first_token_counts_as_the_prompts(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, shown = report_of(checkpoint, monkeypatch, [8.0, 0.5, 0.5, 1.0])
    assert report.ttft_s == 8.0
    assert report.generation_tps == 3 / 2.0
    assert shown == [0.0, 2.0, 2.0, 1.5]
    assert (report.prompt_tps, report.generation_tokens) == (7.0, 4)


@pytest.mark.parametrize("prefetch", [True, False])
def test_what_was_read_ahead_is_reported_or_why_nothing_was(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, prefetch: bool
) -> None:
    loaded = streamed(checkpoint, 2, reads=ReadOptions(prefetch=prefetch))

    def tokens(*arguments: Any, **options: Any) -> Iterator[Any]:
        list(run_logits(loaded.model, random_tokens(1, 100), 40))
        yield SimpleNamespace(text="x", token=1, prompt_tps=7.0, finish_reason="length")

    monkeypatch.setattr(module, "stream_generate", tokens)
    found = generate(loaded, None, [1], GenerateOptions()).prefetch  # type: ignore[arg-type]
    assert (int(found["experts"]) > 0) == prefetch
    assert 0 <= int(found["late"]) <= int(found["used"]) <= int(found["experts"])
    if not prefetch:
        assert found["why_off"] == "it is switched off"


@pytest.mark.parametrize("after_s", [[], [2.0]])
def test_less_than_two_tokens_have_no_speed(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, after_s: list[float]
) -> None:
    report, _ = report_of(checkpoint, monkeypatch, after_s, interrupt=True)
    assert report.generation_tps == 0.0
    assert report.ttft_s == sum(after_s)
    assert report.finish_reason == "interrupted"
