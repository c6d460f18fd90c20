"""How many slots fit: the arithmetic between a model's need and a memory limit."""

from dataclasses import dataclass

from ..config import MemoryLimit
from ..errors import MemoryPlanError
from ..formats.layout import ExpertLayout, sweep_bytes

_HEADROOM_SHARE = 0.1  # of what is free, left to the rest of the machine
_HEADROOM_BYTES = 128 * 1024 * 1024


@dataclass(frozen=True)
class ModelNeed:
    """What a model takes in memory, in bytes.

    `resident_bytes` every weight but the experts; `expert_bytes` all experts when held in memory
    as the resident model holds them; `working_bytes` KV cache, which takes `kv_bytes` of them, and
    staging. `top_k` experts of a layer compute a token.
    """

    resident_bytes: int
    expert_bytes: int
    working_bytes: int
    layouts: tuple[ExpertLayout, ...]
    top_k: int = 0
    kv_bytes: int = 0

    @property
    def full_bytes(self) -> int:
        """The need of the model with every expert resident."""
        return self.resident_bytes + self.expert_bytes + self.working_bytes

    @property
    def num_experts(self) -> int:
        """Experts of the layer that has most."""
        return max((layout.num_experts for layout in self.layouts), default=0)

    def slot_bytes(self, capacity: int) -> int:
        """Return the memory of `capacity` slots in each layer, at most one per expert.

        That includes the sweep buffer, which the layers share.
        """
        own = sum(layout.slab_bytes(min(capacity, layout.num_experts)) for layout in self.layouts)
        return own + sweep_bytes(self.layouts)

    def streamed_bytes(self, capacity: int) -> int:
        """Return the need of the model with `capacity` slots per layer."""
        return self.resident_bytes + self.slot_bytes(capacity) + self.working_bytes


@dataclass(frozen=True)
class MemoryPlan:
    """A decision: how many slots per layer, and what that takes of which limit, in bytes.

    `capacity` is None when the model runs resident, for the reason that `why_resident` gives.
    Of the `working_bytes`, `kv_bytes` are for KV cache.
    """

    limit_bytes: int
    resident_bytes: int
    slot_bytes: int
    working_bytes: int
    capacity: int | None
    why_resident: str = ""
    kv_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """The planned footprint."""
        return self.resident_bytes + self.slot_bytes + self.working_bytes


def spare_bytes(available_bytes: int) -> int:
    """Return what a model may take of the available memory when the user does not say."""
    headroom = max(int(available_bytes * _HEADROOM_SHARE), _HEADROOM_BYTES)
    return max(0, available_bytes - headroom)


def limit_in_bytes(limit: MemoryLimit, need: ModelNeed, available: int, total: int) -> int:
    """Return the limit as bytes; `available` and `total` are the machine's memory.

    Raises:
        MemoryPlanError: more than the machine has.
    """
    if limit.everything:
        wanted = need.full_bytes
    elif limit.share is not None:
        wanted = int(limit.share * need.full_bytes)
    elif limit.num_bytes is not None:
        wanted = limit.num_bytes
    else:
        return spare_bytes(available)
    if limit.everything and wanted > total:
        raise MemoryPlanError(
            f"the whole model takes {gigabytes(wanted)} and this machine has {gigabytes(total)}: "
            "leave the memory limit out to stream its experts."
        )
    if wanted > total:
        raise MemoryPlanError(
            f"a memory limit of {gigabytes(wanted)} is more than the {gigabytes(total)} that this "
            "machine has: give less, or leave it out."
        )
    return wanted


def plan_memory(need: ModelNeed, limit_bytes: int) -> MemoryPlan:
    """Return the plan that uses most of the limit.

    Raises:
        MemoryPlanError: the limit cannot hold the model with one slot per layer.
    """
    if not need.layouts:
        return _resident_plan(need, limit_bytes, "the model has no experts to stream")
    if need.full_bytes <= limit_bytes:
        return _resident_plan(need, limit_bytes, "the whole model fits")
    return _streamed_plan(need, limit_bytes, _largest_capacity(need, limit_bytes))


def plan_capacity(need: ModelNeed, capacity: int, total: int) -> MemoryPlan:
    """Return the plan with a fixed number of slots per layer; its limit is what that takes.

    Raises:
        MemoryPlanError: it takes more than the `total` memory of the machine.
    """
    if not need.layouts:
        return _resident_plan(need, need.full_bytes, "the model has no experts to stream")
    needed = need.streamed_bytes(capacity)
    if needed > total:
        raise MemoryPlanError(
            f"{capacity} slots per layer take {gigabytes(needed)} and this machine has "
            f"{gigabytes(total)}: give fewer.",
            needed,
        )
    return _streamed_plan(need, needed, capacity)


def _streamed_plan(need: ModelNeed, limit_bytes: int, capacity: int) -> MemoryPlan:
    return MemoryPlan(
        limit_bytes,
        need.resident_bytes,
        need.slot_bytes(capacity),
        need.working_bytes,
        min(capacity, need.num_experts),
        kv_bytes=need.kv_bytes,
    )


def _resident_plan(need: ModelNeed, limit_bytes: int, why: str) -> MemoryPlan:
    if need.full_bytes > limit_bytes:
        raise MemoryPlanError(
            f"{why}, and it takes {gigabytes(need.full_bytes)} where {gigabytes(limit_bytes)} are "
            "allowed.",
            need.full_bytes,
        )
    weights = need.resident_bytes + need.expert_bytes
    return MemoryPlan(limit_bytes, weights, 0, need.working_bytes, None, why, need.kv_bytes)


def _largest_capacity(need: ModelNeed, limit_bytes: int) -> int:
    smallest = need.streamed_bytes(1)
    if smallest > limit_bytes:
        raise MemoryPlanError(
            f"{gigabytes(limit_bytes)} of memory cannot hold this model: the smallest limit that "
            f"works is {smallest} bytes ({gigabytes(smallest)}): "
            f"{gigabytes(need.resident_bytes)} of weights that every token needs, "
            f"{gigabytes(need.slot_bytes(1))} for one slot per layer and "
            f"{gigabytes(need.working_bytes)} to work with.",
            smallest,
        )
    low, high = 1, need.num_experts
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (
            (middle, high) if need.streamed_bytes(middle) <= limit_bytes else (low, middle - 1)
        )
    return low


def staging_bytes(num_tokens: int, context_tokens: int, elements: int, num_heads: int) -> int:
    """Return the memory that computing `num_tokens` at once in float32 takes beside the rest.

    `elements` counts the numbers of the intermediate results that are held together; `num_heads`
    attention heads whose scores are held for the whole context, 0 where attention is fused.
    """
    return 4 * (elements + 2 * num_heads * num_tokens * context_tokens)


def gigabytes(num_bytes: int) -> str:
    """Return a size for people: GB, or MB when below one GB, or bytes when below 0.1 MB."""
    if num_bytes >= 10**9:
        return f"{num_bytes / 10**9:.2f} GB"
    return f"{num_bytes / 10**6:.1f} MB" if num_bytes >= 10**5 else f"{num_bytes} bytes"
