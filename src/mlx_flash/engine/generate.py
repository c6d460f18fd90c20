"""Generates text from a prompt and reports what it took."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
from mlx_lm import stream_generate
from mlx_lm.generate import GenerationResponse

from ..errors import OptionError, PromptError
from ..streaming.tokens import TokenizerWrapper, encode_prompt, sampler
from ..telemetry import machine
from ..telemetry.counters import StreamCounters
from .backend import backend_name
from .load import LoadedModel


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """How to generate: at most `max_tokens` tokens, sampled at `temperature` (0 is greedy)."""

    max_tokens: int = 256
    temperature: float = 0.0
    seed: int | None = None
    chat_template: bool = True

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise OptionError(f"cannot generate {self.max_tokens} tokens: ask for 1 or more.")
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise OptionError(f"a temperature of {self.temperature} is below 0 or no number.")
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise OptionError(f"a seed of {self.seed} is below 0 or above 2^64 - 1.")


@dataclass(frozen=True)
class Progress:
    """Where a generation stands: `text` is what the last token added."""

    text: str
    num_tokens: int
    tps: float
    counters: StreamCounters


@dataclass(frozen=True)
class GenerationReport:
    """What was generated, how fast, and what memory and reads it took.

    Sizes are bytes, times seconds, `*_tps` tokens per second; the first token counts as the
    prompt's, so `generation_tps` is of the others, 0 without. `capacity` is slots per layer, on the
    mean where they are `split` among layers.
    `restored` experts of `restored_bytes` were read back since the model was loaded because an
    earlier run had them in memory; `expert_bytes_read` includes what of that fell into this one.
    The slots were `resized` so many times since the model was loaded, to `capacity_now`; a resident
    model has as many as experts. `direct_io` says whether experts are read past the page cache;
    `ssd_bytes_written` is what this process wrote while it generated, None where the system does
    not count. Of the `experts` that `prefetch` read ahead, `used` were asked for, `late` of those
    before they had arrived; `why_off` says why none is read in the end. `peak_model_bytes` is the
    most memory that MLX held, to be compared with the limit; `peak_rss_bytes` is of the whole
    process, Python included.
    """

    text: str
    tokens: list[int]
    prompt_tokens: int
    generation_tokens: int
    finish_reason: str
    ttft_s: float
    prompt_tps: float
    generation_tps: float
    hit_rate: float
    decode_hit_rate: float
    expert_bytes_read: int
    decode_bytes_per_token: float
    restored: int
    restored_bytes: int
    resized: int
    capacity_now: int
    direct_io: bool
    ssd_bytes_written: int | None
    prefetch: dict[str, int | str]
    stall_s: float
    memory_limit_bytes: int
    resident_bytes: int
    slot_bytes: int
    expert_bytes: int
    capacity: int
    split: bool
    experts_per_layer: int
    peak_model_bytes: int
    peak_rss_bytes: int
    backend: str
    kernels: str
    lossy: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)


def encode(tokenizer: TokenizerWrapper, prompt: str, options: GenerateOptions) -> list[int]:
    """Return the prompt's tokens.

    Raises:
        PromptError: it is empty, or not Unicode text.
    """
    check_text(prompt)
    tokens = encode_prompt(tokenizer, prompt, options.chat_template)
    if not prompt or not tokens:
        raise PromptError("the prompt is empty: give some text.")
    return tokens


def check_text(text: str) -> None:
    """Raise PromptError where a text has half a character, which no tokenizer takes."""
    if not text.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise PromptError("the prompt is not valid text: give it in UTF-8.")


def room_for(prompt_tokens: int, context_tokens: int | None, options: GenerateOptions) -> int:
    """Return how many tokens can be generated: what is asked, or what the context leaves.

    Raises:
        PromptError: the prompt leaves no room in the model's context.
    """
    if context_tokens is None:
        return options.max_tokens
    if prompt_tokens >= context_tokens:
        raise PromptError(
            f"the prompt has {prompt_tokens} tokens and the model's context holds "
            f"{context_tokens}: shorten the prompt."
        )
    return min(options.max_tokens, context_tokens - prompt_tokens)


def generate(
    loaded: LoadedModel,
    tokenizer: TokenizerWrapper,
    prompt: Sequence[int],
    options: GenerateOptions,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> GenerationReport:
    """Generate from prompt tokens; call `on_progress` after each token.

    Ctrl-C ends the generation early: the report then says `interrupted`.

    Raises:
        PromptError: the prompt does not fit the model's context.
        ExpertReadError: an expert could not be read; the model can be used again.
    """
    max_tokens = room_for(len(prompt), loaded.checkpoint.context_tokens, options)
    if options.seed is not None:
        mx.random.seed(options.seed)
    counters = loaded.stream.counters if loaded.stream else StreamCounters()
    found = Generated(counters)
    try:
        for last in stream_generate(
            loaded.model,
            tokenizer,
            list(prompt),
            max_tokens=max_tokens,
            sampler=sampler(options.temperature),
            prefill_step_size=loaded.prefill_step,
        ):
            found.add(last)
            on_progress(Progress(last.text, len(found.tokens), found.tps, found.counted()))
    except KeyboardInterrupt:
        pass
    return _report(loaded, len(prompt), found)


class Generated:
    """What has been generated since this was made, and when."""

    def __init__(self, counters: StreamCounters) -> None:
        """Start the clock; `counters` are those of the model that generates."""
        self.tokens: list[int] = []
        self.text = ""
        self.finish_reason = "interrupted"
        self.prompt_tps = 0.0
        self._counters = counters
        self._before = self._after_prompt = counters.snapshot()
        self._written = machine.written_bytes()
        self._start_s = self._first_s = self._last_s = time.perf_counter()

    def add(self, response: GenerationResponse) -> None:
        """Note a token that has just come."""
        self._last_s = time.perf_counter()
        if not self.tokens:
            self._first_s = self._last_s
            self._after_prompt = self._counters.snapshot()
        self.tokens.append(int(response.token))
        self.text += response.text
        self.prompt_tps = response.prompt_tps
        self.finish_reason = response.finish_reason or self.finish_reason

    @property
    def ttft_s(self) -> float:
        """Seconds until the first token; 0 when there is none."""
        return self._first_s - self._start_s

    @property
    def generation_s(self) -> float:
        """Seconds between the first token and the last."""
        return self._last_s - self._first_s

    @property
    def tps(self) -> float:
        """Tokens per second after the first, which belongs to the prompt; 0 before the second."""
        seconds = self.generation_s
        return (len(self.tokens) - 1) / seconds if seconds > 0 else 0.0

    @property
    def ssd_bytes_written(self) -> int | None:
        """Bytes that this process has had written meanwhile; None where nobody counts."""
        now = machine.written_bytes()
        return None if self._written is None or now is None else now - self._written

    def counted(self, decode_only: bool = False) -> StreamCounters:
        """Return what was counted so far; since the first token with `decode_only`."""
        return self._counters.since(self._after_prompt if decode_only else self._before)


def _report(loaded: LoadedModel, prompt_tokens: int, found: Generated) -> GenerationReport:
    """Return what was generated and what it took."""
    total, decode = found.counted(), found.counted(decode_only=True)
    stream = loaded.stream
    so_far = stream.counters if stream else StreamCounters()
    memory = _memory_fields(loaded)
    return GenerationReport(
        text=found.text,
        tokens=found.tokens,
        prompt_tokens=prompt_tokens,
        generation_tokens=len(found.tokens),
        finish_reason=found.finish_reason,
        ttft_s=found.ttft_s,
        prompt_tps=found.prompt_tps,
        generation_tps=found.tps,
        hit_rate=total.hit_rate,
        decode_hit_rate=decode.hit_rate,
        expert_bytes_read=total.bytes_read,
        decode_bytes_per_token=decode.bytes_read / max(1, len(found.tokens) - 1),
        restored=so_far.restored,
        restored_bytes=so_far.restored_bytes,
        resized=so_far.resized,
        direct_io=stream.reader.direct if stream else False,
        ssd_bytes_written=found.ssd_bytes_written,
        prefetch={
            "experts": total.prefetched,
            "used": total.prefetch_hits,
            "late": total.prefetch_late,
            "why_off": stream.prefetcher.why_idle if stream else "nothing is streamed",
        },
        stall_s=total.stall_s,
        **memory,
        split=loaded.is_split,
        capacity_now=stream.capacity if stream else memory["capacity"],
        backend=backend_name(),
        kernels=loaded.kernels.name,
        lossy=[],
    )


def _memory_fields(loaded: LoadedModel) -> dict[str, int]:
    """Return the fields of a report that say what memory was planned and taken."""
    plan, layouts = loaded.plan, loaded.layouts
    experts_per_layer = max((layout.num_experts for layout in layouts), default=0)
    return {
        "memory_limit_bytes": plan.limit_bytes,
        "resident_bytes": plan.resident_bytes,
        "slot_bytes": plan.slot_bytes,
        "expert_bytes": sum(layout.num_experts * layout.expert_bytes for layout in layouts),
        "capacity": experts_per_layer if plan.capacity is None else plan.capacity,
        "experts_per_layer": experts_per_layer,
        "peak_model_bytes": int(mx.get_peak_memory()),
        "peak_rss_bytes": machine.peak_rss_bytes(),
    }
