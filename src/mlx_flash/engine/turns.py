"""What the turns of a conversation took, and what memory it takes now."""

from dataclasses import dataclass, field

import mlx.core as mx

from ..telemetry import machine
from ..telemetry.counters import StreamCounters
from .generate import Generated
from .load import LoadedModel


@dataclass(frozen=True)
class TurnStats:
    """What answers took: one, or added up all of a session.

    Of `prompt_tokens`, `cached_tokens` were in the KV cache and not computed. `generation_s` is the
    time of the tokens after the first, which belongs to the prompt.
    """

    turns: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generation_tokens: int = 0
    ttft_s: float = 0.0
    generation_s: float = 0.0
    counters: StreamCounters = field(default_factory=StreamCounters)

    @classmethod
    def of(cls, prompt_tokens: int, cached_tokens: int, found: Generated) -> "TurnStats":
        """Return what one answer took, with at least one token."""
        return cls(
            1,
            prompt_tokens,
            cached_tokens,
            len(found.tokens),
            found.ttft_s,
            found.generation_s,
            found.counted(),
        )

    @property
    def generation_tps(self) -> float:
        """Tokens per second after the first of each answer; 0 when there are none."""
        after_first = self.generation_tokens - self.turns
        return after_first / self.generation_s if self.generation_s > 0 else 0.0

    @property
    def mean_ttft_s(self) -> float:
        """Seconds until the first token of an answer, on the mean; 0 without one."""
        return self.ttft_s / self.turns if self.turns else 0.0

    def plus(self, other: "TurnStats") -> "TurnStats":
        """Return both together."""
        return TurnStats(
            self.turns + other.turns,
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.generation_tokens + other.generation_tokens,
            self.ttft_s + other.ttft_s,
            self.generation_s + other.generation_s,
            self.counters.plus(other.counters),
        )


@dataclass(frozen=True)
class MemoryNow:
    """The memory of a model in use, in bytes, and its slots per layer.

    `used_bytes` is what MLX holds, slots and KV cache included, to be compared with the limit;
    `rss_bytes` is of the whole process. A resident model has as many slots as experts.
    """

    limit_bytes: int
    used_bytes: int
    resident_bytes: int
    slot_bytes: int
    kv_bytes: int
    rss_bytes: int
    capacity: int
    experts_per_layer: int
    streamed: bool

    @classmethod
    def of(cls, loaded: LoadedModel, kv_bytes: int) -> "MemoryNow":
        """Return what a model takes now, with a KV cache of so many bytes."""
        experts = max((layout.num_experts for layout in loaded.layouts), default=0)
        stream = loaded.stream
        return cls(
            loaded.plan.limit_bytes,
            int(mx.get_active_memory()),
            loaded.plan.resident_bytes,
            stream.slot_bytes if stream else 0,
            kv_bytes,
            machine.rss_bytes(),
            stream.capacity if stream else experts,
            experts,
            stream is not None,
        )
