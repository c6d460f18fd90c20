"""Options that a user may set, validated where they are made. Each default lives here, once."""

import re
from dataclasses import dataclass

from .errors import MemoryPlanError

_UNITS = {"": 1, "B": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {f"{unit}B": factor for unit, factor in _UNITS.items() if unit not in ("", "B")}
_UNITS |= {f"{unit}IB": 1024**power for power, unit in enumerate("KMGT", start=1)}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)")


@dataclass(frozen=True)
class MemoryLimit:
    """How much memory the whole model may take: bytes, a share of its need, or all of it.

    Exactly one field is set; all unset means "what the machine can spare". The share is of what
    the model would need to run resident.
    """

    num_bytes: int | None = None
    share: float | None = None
    everything: bool = False

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
            limit = cls(share=float(number) / 100)
            positive = 0 < float(number) <= 100
        elif (match := _SIZE.fullmatch(cleaned)) and match[2].upper() in _UNITS:
            limit = cls(num_bytes=int(float(match[1]) * _UNITS[match[2].upper()]))
            positive = limit.num_bytes != 0
        else:
            raise MemoryPlanError(
                f"{cleaned!r} is not an amount of memory: give bytes (6GB, 512MiB), "
                "a share of the model (40%) or all."
            )
        if not positive:
            raise MemoryPlanError(
                f"a memory limit of {cleaned} cannot hold anything: "
                "give more than 0, and at most 100%."
            )
        return limit


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """How experts are kept: the policy that picks victims, and slots per layer when fixed.

    `capacity` overrides the memory plan; None lets the plan decide.
    """

    policy: str = "lru"
    capacity: int | None = None

    def __post_init__(self) -> None:
        if self.capacity is not None and self.capacity < 1:
            raise MemoryPlanError(
                f"a capacity of {self.capacity} slots per layer cannot hold an expert: "
                "give 1 or more."
            )


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How expert bytes are read.

    `num_threads` reads are in flight together. A read is split above `split_bytes`. A failed
    read is tried `num_retries` more times.
    """

    num_threads: int = 8
    split_bytes: int = 4 * 1024 * 1024
    num_retries: int = 2


DEFAULT_CONTEXT_TOKENS = 2048
"""Tokens of KV cache that a plan sets memory aside for when the caller does not say."""
