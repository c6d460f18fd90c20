"""Options that a user may set, validated where they are made. Each default lives here, once."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from .errors import MemoryPlanError, OptionError

POLICY_NAMES = (
    "forward",
    "decayed",
    "lru",
    "lru2",
    "slru",
    "lfu",
    "lfru",
    "lcp",
    "least-stale",
)
"""The eviction policies that there are."""

KERNEL_NAMES = ("reference", "cpu")
"""The kernels that there are: MLX's operations, and ours for the CPU."""

PREDICTOR_NAMES = ("votes", "router", "co-occurrence", "previous")
"""What may guess the next layer's experts: its router, asked with noise or once, and tables."""

READERS = ("auto", "buffered", "direct")
"""How experts may be read."""

TASKS = ("coding", "writing", "math", "chat")
"""The tasks that the bundled model has profiles for, and that we have sample text of."""

_UNITS = {"": 1, "B": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {f"{unit}B": factor for unit, factor in _UNITS.items() if unit not in ("", "B")}
_UNITS |= {f"{unit}IB": 1024**power for power, unit in enumerate("KMGT", start=1)}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)")


@dataclass(frozen=True)
class MemoryLimit:
    """How much memory the whole model may take: bytes, a share of its need, or all of it.

    Exactly one field is set; all unset means "what the machine can spare". The share is of what
    the model would need to run resident.

    Raises:
        MemoryPlanError: a number that is not above zero, or a share above one.
    """

    num_bytes: int | None = None
    share: float | None = None
    everything: bool = False

    def __post_init__(self) -> None:
        if self.num_bytes is not None and self.num_bytes < 1:
            raise MemoryPlanError("a memory limit of 0 cannot hold anything: give more.")
        if self.share is not None and not 0 < self.share <= 1:
            raise MemoryPlanError(
                f"a memory limit of {self.share:.0%} of the model makes no sense: "
                "give more than 0% and at most 100%."
            )

    @classmethod
    def parse(cls, text: str | int | None) -> "MemoryLimit":
        """Return the limit that `text` names: `6GB`, `512MiB`, `40%`, `all`, bytes, or None.

        Raises:
            MemoryPlanError: it is none of these, or not above zero.
        """
        if text is None:
            return cls()
        cleaned = str(text).strip()
        if cleaned.lower() == "all":
            return cls(everything=True)
        number = cleaned.removesuffix("%").strip()
        if cleaned.endswith("%") and re.fullmatch(r"[0-9]+(\.[0-9]+)?", number):
            return cls(share=float(number) / 100)
        if (match := _SIZE.fullmatch(cleaned)) and match[2].upper() in _UNITS:
            return cls(num_bytes=int(float(match[1]) * _UNITS[match[2].upper()]))
        raise MemoryPlanError(
            f"{cleaned!r} is not an amount of memory: give bytes (6GB, 512MiB), "
            "a share of the model (40%) or all."
        )

    @classmethod
    def bytes_of(cls, text: str) -> int:
        """Return the bytes that a text such as 48GB names: no share of a model, nor all of it.

        Raises:
            OptionError: it names no amount above 0.
        """
        try:
            num_bytes = cls.parse(text).num_bytes
        except MemoryPlanError:
            num_bytes = None
        if num_bytes is None:
            raise OptionError(f"{text!r} is no amount of memory: give one above 0, such as 48GB.")
        return num_bytes


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """How experts are kept: the policy that picks victims, and slots per layer when fixed.

    `capacity` stands in the place of a memory limit; None lets the plan decide. `warm_start` is the
    folder that remembers which experts were in memory when the model was last closed, to read
    them back in the background; None neither remembers nor reads back.

    Raises:
        OptionError: an unknown policy, or a capacity below 1.
    """

    policy: str = "forward"
    capacity: int | None = None
    warm_start: Path | None = None

    def __post_init__(self) -> None:
        if self.policy not in POLICY_NAMES:
            raise OptionError(
                f"there is no policy {self.policy!r}: take one of {', '.join(POLICY_NAMES)}."
            )
        if self.capacity is not None and (type(self.capacity) is not int or self.capacity < 1):
            raise OptionError(
                f"a capacity of {self.capacity} slots per layer cannot hold an expert: "
                "give 1 or more."
            )


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How expert bytes are read.

    `num_threads` reads are in flight together. A read is split above `split_bytes`. A failed
    read is tried `num_retries` more times. Where a layer must read `overlap_bytes` or more, what it
    has in memory is computed meanwhile. `direct` reads past the page cache, False through it; None
    does what suits the memory that the model leaves free. `prefetch` reads what the next layer's
    router would pick now, as long as that pays; None does so on the CPU. `predictor`, one of
    PREDICTOR_NAMES, is what guesses. `verify` compares each record of a packed model with its
    checksum.

    Reads stay below `max_gbps` 10^9 bytes per second, counted in whole blocks, also those that the
    page cache answers. They pause while the disk is hotter than `max_temperature_c` degrees
    Celsius, where it tells. None is no limit.

    Raises:
        OptionError: a number that is too small, or a limit that makes no sense.
    """

    num_threads: int = 8
    split_bytes: int = 4 * 1024 * 1024
    num_retries: int = 2
    overlap_bytes: int = 1024 * 1024
    direct: bool | None = None
    prefetch: bool | None = None
    predictor: str = "votes"
    verify: bool = False
    max_gbps: float | None = None
    max_temperature_c: float | None = None

    @staticmethod
    def direct_by(reader: str) -> bool | None:
        """Return the value of `direct` for one of READERS.

        Raises:
            OptionError: there is no such reader.
        """
        if reader not in READERS:
            raise OptionError(f"there is no reader {reader!r}: take one of {', '.join(READERS)}.")
        return None if reader == "auto" else reader == "direct"

    def __post_init__(self) -> None:
        if self.predictor not in PREDICTOR_NAMES:
            raise OptionError(
                f"there is no predictor {self.predictor!r}: take one of "
                f"{', '.join(PREDICTOR_NAMES)}."
            )
        if self.num_threads < 1 or self.split_bytes < 4096 or self.num_retries < 0:
            raise OptionError(
                f"{self} cannot read: give 1 thread or more, 4096 bytes or more to split above, "
                "and 0 retries or more."
            )
        if self.max_gbps is not None and not 0 < self.max_gbps < math.inf:
            raise OptionError(
                f"{self.max_gbps} GB/s is no rate to keep to: give more than 0, or leave it out."
            )
        if self.max_temperature_c is not None and not 40 <= self.max_temperature_c <= 100:
            raise OptionError(
                f"{self.max_temperature_c} °C is no limit for a disk: many are as warm as 35 °C at "
                "rest, and none works at 100 °C: give 40 to 100."
            )


@dataclass(frozen=True, kw_only=True)
class KernelOptions:
    """What computes matrix products: one of KERNEL_NAMES; None takes the best for the device.

    Raises:
        OptionError: there are no kernels of that name.
    """

    kernels: str | None = None

    def __post_init__(self) -> None:
        if self.kernels is not None and self.kernels not in KERNEL_NAMES:
            raise OptionError(
                f"there are no kernels {self.kernels!r}: take one of {', '.join(KERNEL_NAMES)}."
            )


_BITS = (2, 3, 4, 5, 6, 8)
QUANTIZATIONS = {
    "affine": ((64, 32, 128), (4, *_BITS)),
    "mxfp4": ((32,), (4,)),
    "mxfp8": ((32,), (8,)),
    "nvfp4": ((16,), (4,)),
}
"""The ways to quantize that mlx-lm has: group sizes and bits of each, the usual one first."""


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """How to quantize a model; with none of them set it stays as it is.

    Raises:
        OptionError: there is no such mode, it has no such bits or group size, or there is a group
            size alone.
    """

    bits: int | None = None
    group_size: int | None = None
    mode: str | None = None

    def __post_init__(self) -> None:
        if self.mode not in (None, *QUANTIZATIONS):
            raise OptionError(
                f"there is no mode {self.mode!r}: take one of {', '.join(QUANTIZATIONS)}."
            )
        if self.group_size is not None and self.mode is None and self.bits is None:
            raise OptionError(
                "a group size alone does not say how to quantize: give --bits or --mode, too."
            )
        groups, bits = QUANTIZATIONS[self.mode or "affine"]
        for name, value, allowed in (
            ("group size", self.group_size, groups),
            ("bits", self.bits, bits),
        ):
            if value is not None and value not in allowed:
                raise OptionError(
                    f"{self.mode or 'affine'} quantization has no {name} {value}: "
                    f"take {' or '.join(map(str, sorted(set(allowed))))}."
                )

    @property
    def sizes(self) -> tuple[int, int, str] | None:
        """Group size, bits and mode with what is usual filled in; None when nothing is set."""
        if self == QuantizeOptions():
            return None
        mode = self.mode or "affine"
        groups, bits = QUANTIZATIONS[mode]
        return self.group_size or groups[0], self.bits or bits[0], mode


DEFAULT_CONTEXT_TOKENS = 2048
"""Tokens of KV cache that a plan sets memory aside for when the caller does not say."""


CHAT_CONTEXT_TOKENS = 8192
"""Tokens of KV cache that a chat plans for unless it is told, or the model holds fewer."""


def check_either(limit: MemoryLimit, cache_options: CacheOptions) -> None:
    """Raise OptionError when both a memory limit and a capacity are given: each sets the other."""
    if cache_options.capacity is not None and limit != MemoryLimit():
        raise OptionError("give a memory limit or a capacity, not both: each decides the other.")


BROWSE_ORDERS = ("speed", "size", "name", "downloads")
"""What models may be sorted by: fastest, smallest, first by name, or most downloaded first."""


@dataclass(frozen=True, kw_only=True)
class BrowseOptions:
    """Which models to list, in which order, and for which memory.

    `text` is part of a model's name. `memory_bytes` is planned for in the place of what the machine
    can spare. `misfits` lists models that do not fit, too. `local` never asks the network. `limit`
    is how many models of the Hub are listed at most, the most downloaded ones.

    Raises:
        OptionError: an unknown order, a text that no name could hold, or a limit out of bounds.
    """

    order: str = "speed"
    text: str = ""
    memory_bytes: int | None = None
    misfits: bool = False
    local: bool = False
    limit: int = 30

    def __post_init__(self) -> None:
        if self.order not in BROWSE_ORDERS:
            raise OptionError(
                f"models cannot be sorted by {self.order!r}: take one of "
                f"{', '.join(BROWSE_ORDERS)}."
            )
        if not re.fullmatch(r"[A-Za-z0-9_./-]{0,96}", self.text):
            raise OptionError(
                f"no model has {self.text[:96]!r} in its name: give letters, digits and any of "
                "- _ . / to filter by."
            )
        if not 1 <= self.limit <= 200:
            raise OptionError(f"{self.limit} models cannot be listed: give 1 to 200.")

    @staticmethod
    def memory_of(text: str | None) -> int | None:
        """Return the bytes that a text such as 48GB names; None of None.

        Raises:
            OptionError: it names no amount above 0.
        """
        return None if text is None else MemoryLimit.bytes_of(text)


@dataclass(frozen=True, kw_only=True)
class WarmupOptions:
    """What is read while the cache warms up: text of a task, of a second one, of the first again.

    `num_tokens` of each.

    Raises:
        OptionError: there is no sample text of a task, both are the same, or too few tokens.
    """

    first: str = "math"
    second: str = "coding"
    num_tokens: int = 200

    def __post_init__(self) -> None:
        for task in (self.first, self.second):
            if task not in TASKS:
                raise OptionError(
                    f"there is no sample text of {task!r}: take one of {', '.join(TASKS)}."
                )
        if self.first == self.second:
            raise OptionError(f"from {self.first} to {self.second} nothing changes: take two.")
        if self.num_tokens < 32:
            raise OptionError(
                f"{self.num_tokens} tokens of each domain show no steady state: give 32 or more."
            )

    @property
    def domains(self) -> tuple[str, str, str]:
        """The task of each of the three phases."""
        return self.first, self.second, self.first
