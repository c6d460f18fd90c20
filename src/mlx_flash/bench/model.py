"""Measures a model: what it does per second, and how near that is to what the machine allows."""

import inspect
import mmap
import os
import random
import shutil
import statistics
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ..config import CacheOptions, ReadOptions
from ..engine.alone import drop_page_cache, everything_resident, reading_alone
from ..engine.load import LoadedModel
from ..errors import OptionError
from ..formats.layout import ExpertLayout
from ..streaming.expert_stream import ExpertStream
from ..streaming.tokens import TokenizerWrapper, tokens_after
from ..telemetry import machine
from ..telemetry.counters import StreamCounters

TEMPERATURE = 0.8
COLD_TOKENS = 100
MMAP = "mmap"
"""A reader to compare with, which is nowhere else."""

_COMPUTE_TOKENS = 100
_READ_BYTES = 8 * 10**9  # to measure the disk


@dataclass(frozen=True)
class PromptRun:
    """One prompt and what followed; the counters are of the decode, but `prefill_bytes`.

    `why_no_prefetch` says why nothing was read ahead in the end.
    """

    prompt_tokens: int
    ttft_s: float
    token_s: list[float]
    prefill_bytes: int
    decode: StreamCounters
    why_no_prefetch: str

    @property
    def decode_s(self) -> float:
        """Mean seconds of a decoded token."""
        return statistics.fmean(self.token_s)

    @property
    def prefill_tps(self) -> float:
        """Prompt tokens per second until the first token."""
        return self.prompt_tokens / self.ttft_s

    @property
    def bytes_per_token(self) -> float:
        """Expert bytes read per decoded token."""
        return self.decode.bytes_read / len(self.token_s)


@dataclass(frozen=True)
class BenchReport:
    """What a model did: sizes are bytes, times seconds, `*_tps` tokens and `*_gbps` 10^9 bytes/s.

    All but `cold` is of the second prompt, when the cache was warm; with a warm start (see
    `settings`) `cold` had what was read back by then. A bound is what the slower of computing
    (`compute_only_tps`, measured with every expert taken for resident) and of reading what was
    missing at `disk_gbps` allows; its fraction is what was reached. `compute_s` is the time of a
    decoded token that was not waiting for bytes, `stall_s` the rest; `read_gbps` is the rate while
    anything was being read. Where `settings` say that the page cache was not dropped, the disk and
    `cold` may be faster than they are.
    """

    prompt_tokens: int
    decode_tokens: int
    ttft_s: float
    prefill_tps: float
    decode_tps: float
    tpot_p50_s: float
    tpot_p99_s: float
    hit_rate: float
    bytes_per_token: float
    missed_bytes_per_token: float
    prefill_bytes: int
    stall_s: float
    compute_s: float
    compute_only_tps: float
    compute_only_prefill_tps: float
    prefetch: dict[str, float | str]
    read_gbps: float
    disk_gbps: float
    bound_decode_tps: float
    bound_decode_fraction: float
    bound_prefill_tps: float
    bound_prefill_fraction: float
    memory_limit_bytes: int
    peak_rss_bytes: int
    cold: dict[str, float]
    settings: dict[str, Any]

    @property
    def beats_the_disk(self) -> bool:
        """Whether the page cache gave experts faster than the disk, which sets the bound."""
        return not self.settings["direct"] and (
            self.bound_decode_tps < min(self.decode_tps, self.compute_only_tps)
            or self.bound_prefill_tps < min(self.prefill_tps, self.compute_only_prefill_tps)
        )

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)


def measure_model(
    loaded: LoadedModel,
    tokenizer: TokenizerWrapper,
    prompt_tokens: int,
    decode_tokens: int,
    settings: dict[str, Any],
    on_step: Callable[[str], None] = lambda step: None,
    text: str | None = None,
) -> BenchReport:
    """Measure a loaded model: cold, warm, computing alone, and its disk.

    The prompts are Python's own source code, and what follows is drawn with a fixed seed. Given a
    `text`, the cold prompt is its beginning, the warm one a later part, and what follows them there
    is decoded. `on_step(name)` is called before each part.

    Raises:
        OptionError: the prompt and what follows do not fit the model's context, or the text is
            too short.
    """
    room = loaded.checkpoint.context_tokens
    if room is not None and prompt_tokens + max(decode_tokens, COLD_TOKENS) > room:
        raise OptionError(
            f"{prompt_tokens} prompt tokens and {decode_tokens} more do not fit the model's "
            f"context of {room}: ask for less."
        )
    first, second = _parts(tokenizer, prompt_tokens, decode_tokens, text)
    mx.random.seed(0)
    dropped = drop_page_cache({path for layout in loaded.layouts for path in layout.files})
    on_step(f"cold: page cache{'' if dropped else ' not'} dropped, no expert resident")
    cold = _run(loaded, first, COLD_TOKENS)
    on_step("warm")
    warm = _run(loaded, second, decode_tokens)
    on_step("computing alone")
    with everything_resident(loaded.stream):
        compute = _run(loaded, second, min(decode_tokens, _COMPUTE_TOKENS))
    on_step("reading alone")
    disk_gbps = _disk_gbps(loaded.stream) if loaded.stream else 0.0
    settings = {**settings, **_settings_found(loaded), "page_cache_dropped": dropped}
    return _report(loaded, cold, warm, compute, disk_gbps, settings)


def _report(
    loaded: LoadedModel,
    cold: PromptRun,
    warm: PromptRun,
    compute: PromptRun,
    disk_gbps: float,
    settings: dict[str, Any],
) -> BenchReport:
    """Return what was measured, beside what it could have been."""
    prefetch: dict[str, float | str] = {
        "precision": warm.decode.prefetch_precision,
        "experts_per_token": warm.decode.prefetched / len(warm.token_s),
        "late": warm.decode.prefetch_late / max(1, warm.decode.prefetch_hits),
        "seconds_per_token": warm.decode.prefetch_s / len(warm.token_s),
        "why_off": warm.why_no_prefetch,
    }
    return BenchReport(
        **_measured(warm),
        **_bounds(warm, compute, disk_gbps, _mean_expert_bytes(loaded.layouts)),
        compute_only_tps=1 / compute.decode_s,
        compute_only_prefill_tps=compute.prefill_tps,
        prefetch=prefetch,
        disk_gbps=disk_gbps,
        memory_limit_bytes=loaded.plan.limit_bytes,
        peak_rss_bytes=machine.peak_rss_bytes(),
        cold={
            "ttft_s": cold.ttft_s,
            "prefill_tps": cold.prefill_tps,
            "decode_tps": 1 / cold.decode_s,
            "hit_rate": cold.decode.hit_rate,
        },
        settings=settings,
    )


def _measured(warm: PromptRun) -> dict[str, Any]:
    """Return the fields of a report that say what the warm run did."""
    ordered, busy_s = sorted(warm.token_s), warm.decode.busy_s
    stall_s = warm.decode.stall_s / len(warm.token_s)
    return {
        "prompt_tokens": warm.prompt_tokens,
        "decode_tokens": len(warm.token_s),
        "ttft_s": warm.ttft_s,
        "prefill_tps": warm.prefill_tps,
        "decode_tps": 1 / warm.decode_s,
        "tpot_p50_s": statistics.median(ordered),
        "tpot_p99_s": ordered[len(ordered) * 99 // 100],
        "hit_rate": warm.decode.hit_rate,
        "bytes_per_token": warm.bytes_per_token,
        "prefill_bytes": warm.prefill_bytes,
        "stall_s": stall_s,
        "compute_s": warm.decode_s - stall_s,
        "read_gbps": warm.decode.bytes_read / busy_s / 1e9 if busy_s else 0.0,
    }


def _bounds(
    warm: PromptRun, compute: PromptRun, disk_gbps: float, expert_bytes: float
) -> dict[str, Any]:
    """Return the fields that say what computing and the disk allow, and how near the run came."""
    rate = disk_gbps * 1e9 or float("inf")
    missed_bytes = (warm.decode.asks - warm.decode.hits) / len(warm.token_s) * expert_bytes
    token_s = max(compute.decode_s, missed_bytes / rate)
    prefill_s = max(compute.ttft_s, warm.prefill_bytes / rate)
    return {
        "missed_bytes_per_token": missed_bytes,
        "bound_decode_tps": 1 / token_s,
        "bound_decode_fraction": token_s / warm.decode_s,
        "bound_prefill_tps": warm.prompt_tokens / prefill_s,
        "bound_prefill_fraction": prefill_s / warm.ttft_s,
    }


def _disk_gbps(stream: ExpertStream) -> float:
    """Return the rate at which experts are read, from now on as anywhere else."""
    if isinstance(stream.reader.preadv, MmapPreadv):
        stream.reader.preadv.close()
        stream.reader.preadv = os.preadv
    return reading_alone(stream, _READ_BYTES).gbps


def _settings_found(loaded: LoadedModel) -> dict[str, Any]:
    """Return the settings that were decided while the model was loaded."""
    found: dict[str, Any] = {"capacity": loaded.plan.capacity, "kernels": loaded.kernels.name}
    found |= {"direct": False, "prefetch": False}
    if loaded.stream is not None:
        layers = loaded.stream.layer_streams.values()
        found["direct"] = loaded.stream.reader.direct
        found["prefetch"] = any(layer.guess_next is not None for layer in layers)
    return found


def _mean_expert_bytes(layouts: Sequence[ExpertLayout]) -> float:
    """Return the bytes of an expert, on the mean over layers."""
    return statistics.fmean(layout.expert_bytes for layout in layouts) if layouts else 0.0


@dataclass(frozen=True)
class _Part:
    """A prompt, and what is decoded after it; None draws tokens."""

    prompt: list[int]
    following: list[int] | None = None


def _parts(
    tokenizer: TokenizerWrapper, prompt_tokens: int, decode_tokens: int, text: str | None
) -> tuple[_Part, _Part]:
    """Return two parts of real text that share nothing."""
    if text is None:
        texts = [inspect.getsource(module) for module in (shutil, textwrap, statistics, random)]
        tokens = list(tokenizer.encode("\n\n".join(texts)))
        if len(tokens) < 2 * prompt_tokens:
            raise OptionError(f"there are no prompts of {prompt_tokens} tokens: ask for less.")
        return _Part(tokens[:prompt_tokens]), _Part(tokens[-prompt_tokens:])
    tokens = list(tokenizer.encode(text))
    cold, warm = prompt_tokens + 1 + COLD_TOKENS, prompt_tokens + 1 + decode_tokens
    if len(tokens) < cold + warm:
        raise OptionError(
            f"the text has {len(tokens)} tokens and {cold + warm} are needed: give more text, or "
            "ask for less."
        )
    ends = tokens[:cold], tokens[-warm:]
    first, second = (_Part(part[:prompt_tokens], part[prompt_tokens:]) for part in ends)
    return first, second


def _run(loaded: LoadedModel, part: _Part, num_tokens: int) -> PromptRun:
    """Compute a prompt and decode `num_tokens` after the first token."""
    prompt = part.prompt
    counters = loaded.stream.counters if loaded.stream else StreamCounters()
    before = after_prompt = counters.snapshot()
    token_s: list[float] = []
    start, ttft_s = time.perf_counter(), 0.0
    for _ in tokens_after(
        loaded.model, prompt, 1 + num_tokens, TEMPERATURE, loaded.prefill_step, part.following
    ):
        now = time.perf_counter()
        if not ttft_s:
            ttft_s, after_prompt = now - start, counters.snapshot()
        else:
            token_s.append(now - start)
        start = now
    prefill = after_prompt.since(before)
    why = loaded.stream.prefetcher.why_idle if loaded.stream else "nothing is streamed"
    decode = counters.since(after_prompt)
    return PromptRun(len(prompt), ttft_s, token_s, prefill.bytes_read, decode, why)


def read_options_of(
    reader: str,
    overlap: bool,
    prefetch: bool | None,
    predictor: str = ReadOptions.predictor,
) -> ReadOptions:
    """Return the options of a run whose experts are read by one of READERS, or by MMAP.

    Raises:
        OptionError: there is no such reader.
    """
    direct = False if reader == MMAP else ReadOptions.direct_by(reader)
    overlap_bytes = ReadOptions.overlap_bytes if overlap else 2**62
    return ReadOptions(
        direct=direct, overlap_bytes=overlap_bytes, prefetch=prefetch, predictor=predictor
    )


def use_reader(loaded: LoadedModel, reader: str) -> None:
    """Read a model's experts through maps from now on if the reader is MMAP: no option says so."""
    if reader == MMAP and loaded.stream is not None:
        loaded.stream.reader.preadv = MmapPreadv()


class MmapPreadv:
    """Reads as one who maps the files into memory: the system reads pages as they are touched."""

    def __init__(self) -> None:
        self._maps: dict[int, mmap.mmap] = {}

    def __call__(self, descriptor: int, views: Sequence[memoryview], offset: int) -> int:
        """Fill the views from the file's offset on; return the bytes."""
        if descriptor not in self._maps:
            self._maps[descriptor] = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
        source, start = np.frombuffer(self._maps[descriptor], np.uint8), offset
        for view in views:
            np.frombuffer(view, np.uint8)[:] = source[offset : offset + view.nbytes]
            offset += view.nbytes
        return offset - start

    def close(self) -> None:
        """End the maps, so that the page cache can be dropped."""
        while self._maps:
            self._maps.popitem()[1].close()


def settings_of(cache: CacheOptions, reads: ReadOptions) -> dict[str, Any]:
    """Return the settings of a run as plain values."""
    warm_start = cache.warm_start is not None
    return {**asdict(cache), "warm_start": warm_start, **asdict(reads)}
