"""How fast a model will decode and how soon it answers, from its sizes, a machine, a miss curve."""

from dataclasses import dataclass

from ..errors import MemoryPlanError
from .curve import MissCurve
from .memory import gigabytes


@dataclass(frozen=True)
class MachineProfile:
    """What a machine has: sizes in bytes, rates in 10^9 bytes per second, times in seconds.

    `weights_gbps` is how fast one token's weights are read and multiplied, `layer_s` what a layer
    takes besides, `prefill_weights_gbps` the rate when many tokens share each weight, per token.
    `assumed` says in sentences what of this was not measured.
    """

    backend: str
    memory_bytes: int
    available_bytes: int
    ssd_gbps: float
    ssd_latency_s: float
    weights_gbps: float
    layer_s: float
    prefill_weights_gbps: float
    assumed: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelShape:
    """What a model is made of, from the headers of its files alone; sizes in bytes.

    `resident_bytes` are all weights but the experts', `expert_bytes` one expert of one layer,
    `num_layers` the layers that have experts. `kv_bytes_per_token` is the cache of one token in
    all layers. `reads_per_expert` are the pieces an expert is stored in.
    """

    name: str
    resident_bytes: int
    expert_bytes: int
    num_experts: int
    num_layers: int
    top_k: int
    kv_bytes_per_token: int
    reads_per_expert: int = 9

    @property
    def total_bytes(self) -> int:
        """All weights."""
        return self.resident_bytes + self.expert_bytes * self.num_experts * self.num_layers


@dataclass(frozen=True)
class PlanRow:
    """What a memory limit gives: slots per layer, and what is expected of them.

    `hit_rate` is of decode in steady state, `bytes_per_token` what it reads then; `ttft_s` is of a
    prompt of `PROMPT_TOKENS` tokens from a cold start.
    """

    memory_bytes: int
    capacity: int
    hit_rate: float
    bytes_per_token: float
    decode_tps: float
    ttft_s: float


PROMPT_TOKENS = 512
"""Tokens of the prompt that a predicted time to the first token is of."""

CONTEXT_TOKENS = 2048
"""Tokens of KV cache that a plan from sizes alone sets aside."""

HIDDEN_SHARE = 0.35
"""The share of reading that computing hides: measured, see the lab log."""

_WORKING_BYTES = 128 * 1024 * 1024  # staging and freed buffers of a model that is not at hand
_FILL = 1.0 - 2.718281828**-4  # of the experts, a prompt of many tokens asks for most


def fits(shape: ModelShape, memory_bytes: int) -> int:
    """Return the slots per layer that a memory limit holds, at most one per expert.

    Raises:
        MemoryPlanError: not even one.
    """
    fixed = shape.resident_bytes + CONTEXT_TOKENS * shape.kv_bytes_per_token + _WORKING_BYTES
    per_slot = shape.expert_bytes * shape.num_layers
    sweep = 2 * shape.expert_bytes
    capacity = (memory_bytes - fixed - sweep) // per_slot
    if capacity < 1:
        needed = fixed + sweep + per_slot
        raise MemoryPlanError(
            f"{shape.name} needs {gigabytes(needed)} at least: {gigabytes(memory_bytes)} cannot "
            "hold what every token needs and one expert per layer.",
            needed,
        )
    return min(capacity, shape.num_experts)


def predict(
    shape: ModelShape, machine: MachineProfile, memory_bytes: int, curve: MissCurve
) -> PlanRow:
    """Return what is expected of a model under a memory limit.

    Raises:
        MemoryPlanError: the limit cannot hold it.
    """
    return predict_with(shape, machine, memory_bytes, fits(shape, memory_bytes), curve)


def predict_with(
    shape: ModelShape,
    machine: MachineProfile,
    memory_bytes: int,
    capacity: int,
    curve: MissCurve,
    compute_s: float | None = None,
) -> PlanRow:
    """Return what is expected with so many slots per layer.

    `compute_s` is the time of a token with every expert in memory where that was measured.
    """
    asks = shape.top_k * shape.num_layers
    hit_rate = 1.0 if capacity >= shape.num_experts else curve.hit_rate(capacity, shape.num_experts)
    missed_bytes = asks * (1.0 - hit_rate) * shape.expert_bytes
    active_bytes = shape.resident_bytes + asks * shape.expert_bytes
    if compute_s is None:
        compute_s = active_bytes / machine.weights_gbps / 1e9 + shape.num_layers * machine.layer_s
    reading_s = missed_bytes / machine.ssd_gbps / 1e9
    token_s = max(compute_s + (1.0 - HIDDEN_SHARE) * reading_s, reading_s)
    prompt_bytes = _FILL * shape.expert_bytes * shape.num_experts * shape.num_layers
    prefill_s = max(
        PROMPT_TOKENS * active_bytes / machine.prefill_weights_gbps / 1e9,
        prompt_bytes / machine.ssd_gbps / 1e9,
    )
    return PlanRow(
        memory_bytes, capacity, hit_rate, missed_bytes, 1.0 / token_s, prefill_s + token_s
    )
