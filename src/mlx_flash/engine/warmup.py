"""Measures a cache that warms up: text of one domain, then of another, then of the first again.

Each token is decoded, a forward pass of its own, and taken from the text whatever the model says:
so every run with the same options asks for the same experts.
"""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..config import WarmupOptions
from ..errors import OptionError, UnsupportedModelError
from ..formats.checkpoint import Checkpoint
from ..streaming.expert_stream import ExpertStream
from ..streaming.tokens import TokenizerWrapper, follow_tokens
from .find import model_name
from .load import LoadedModel, expert_counts
from .samples import sample_text

WINDOW_TOKENS = 16
"""Tokens that a rolling number is about, and that count as the first ones of a phase."""

_NEAR_STEADY = 0.02


@dataclass(frozen=True)
class TokenMeasurement:
    """What one token took: `hits` of the `asks` of all layers, seconds, bytes read.

    `phase` counts from 0; the context is empty at the start of each, the slots are not.
    """

    phase: int
    asks: int
    hits: int
    seconds: float
    bytes_read: int


@dataclass(frozen=True)
class PhaseSummary:
    """How a phase went, of `tokens` tokens.

    `steady_hit_rate` and `steady_token_s`, the median, are of its second half. `tokens_to_steady`
    is where the first 16 tokens start whose hit rate is within 2 points of that, None if none do.
    """

    domain: str
    tokens: int
    first_hit_rate: float
    steady_hit_rate: float
    tokens_to_steady: int | None
    steady_token_s: float
    bytes_read: int


@dataclass(frozen=True)
class WarmupReport:
    """What was measured: `phase` to `bytes_read` have one number per token, hit rates are 0..1.

    `restored` experts of the profile were in memory before the first token. `capacity` is slots per
    layer in the end.
    """

    model: str
    policy: str
    profile: str | None
    capacity: int
    experts_per_layer: int
    direct_io: bool
    interrupted: bool
    restored: int
    restored_bytes: int
    phase: list[int]
    asks: list[int]
    hits: list[int]
    hit_rate: list[float]
    token_s: list[float]
    bytes_read: list[int]
    summary: list[PhaseSummary]

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)


def quarter_of_experts(checkpoint: Checkpoint) -> int:
    """Return a quarter of the experts of the layer that has most, at least 1. Reads no weight.

    Raises:
        UnsupportedModelError: the model has no experts, or mlx-lm cannot load it.
    """
    counts = expert_counts(checkpoint)
    if not counts:
        raise UnsupportedModelError("the model has no experts: there is no cache to warm up.")
    return max(1, max(counts) // 4)


def encode_phases(
    tokenizer: TokenizerWrapper, options: WarmupOptions, context_tokens: int | None
) -> list[list[int]]:
    """Return the tokens of each phase; the last one goes on where the first one ended.

    Raises:
        OptionError: there is less sample text, or the model's context holds less.
    """
    wanted = options.num_tokens
    first = list(tokenizer.encode(sample_text(options.first)))
    second = list(tokenizer.encode(sample_text(options.second)))
    most = min(len(first) // 2, len(second), context_tokens or wanted)
    if wanted > most:
        raise OptionError(f"cannot read {wanted} tokens of each domain: give {most} at most.")
    return [first[:wanted], second[:wanted], first[wanted : 2 * wanted]]


def streamed(loaded: LoadedModel) -> ExpertStream:
    """Return what stands behind a model.

    Raises:
        UnsupportedModelError: it has no experts.
    """
    if loaded.stream is None:
        raise UnsupportedModelError("the model has no experts: there is no cache to warm up.")
    return loaded.stream


def follow(loaded: LoadedModel, phases: Sequence[Sequence[int]]) -> Iterator[TokenMeasurement]:
    """Decode the tokens of each phase; yield what each took. Time between two does not count.

    Raises:
        ExpertReadError: an expert could not be read.
    """
    counters = streamed(loaded).counters
    for phase, tokens in enumerate(phases):
        steps = follow_tokens(loaded.model, tokens)
        for _ in tokens:
            before, start = counters.snapshot(), time.perf_counter()
            next(steps)
            seconds = time.perf_counter() - start
            took = counters.since(before)
            yield TokenMeasurement(phase, took.asks, took.hits, seconds, took.bytes_read)


def hit_rate(tokens: Sequence[TokenMeasurement]) -> float:
    """Return hits over asks of some tokens, 0..1; 1 when nothing was asked."""
    asks = sum(token.asks for token in tokens)
    return sum(token.hits for token in tokens) / asks if asks else 1.0


def median_s(tokens: Sequence[TokenMeasurement]) -> float:
    """Return the seconds that half of some tokens, of which there are any, took at most."""
    return statistics.median(token.seconds for token in tokens)


def summarize(domains: Sequence[str], measured: Sequence[TokenMeasurement]) -> list[PhaseSummary]:
    """Return the summary of each phase that has begun."""
    found = []
    for phase, domain in enumerate(domains):
        if tokens := [token for token in measured if token.phase == phase]:
            found.append(_summary_of(domain, tokens))
    return found


def _summary_of(domain: str, tokens: Sequence[TokenMeasurement]) -> PhaseSummary:
    half = tokens[len(tokens) // 2 :]
    steady = hit_rate(half)
    starts = range(len(tokens) - WINDOW_TOKENS + 1)
    near = (n for n in starts if hit_rate(tokens[n : n + WINDOW_TOKENS]) >= steady - _NEAR_STEADY)
    return PhaseSummary(
        domain=domain,
        tokens=len(tokens),
        first_hit_rate=hit_rate(tokens[:WINDOW_TOKENS]),
        steady_hit_rate=steady,
        tokens_to_steady=next(near, None),
        steady_token_s=median_s(half),
        bytes_read=sum(token.bytes_read for token in tokens),
    )


def report_of(
    loaded: LoadedModel,
    options: WarmupOptions,
    policy: str,
    profile: str | None,
    measured: Sequence[TokenMeasurement],
) -> WarmupReport:
    """Return the report of what has been measured, all of it or what there was time for."""
    stream = streamed(loaded)
    return WarmupReport(
        model=model_name(loaded.checkpoint.folder),
        policy=policy,
        profile=profile,
        capacity=stream.capacity,
        experts_per_layer=max(layout.num_experts for layout in loaded.layouts),
        direct_io=stream.reader.direct,
        interrupted=len(measured) < len(options.domains) * options.num_tokens,
        restored=stream.counters.restored,
        restored_bytes=stream.counters.restored_bytes,
        phase=[token.phase for token in measured],
        asks=[token.asks for token in measured],
        hits=[token.hits for token in measured],
        hit_rate=[hit_rate([token]) for token in measured],
        token_s=[token.seconds for token in measured],
        bytes_read=[token.bytes_read for token in measured],
        summary=summarize(options.domains, measured),
    )
