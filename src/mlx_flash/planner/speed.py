"""How fast a model will decode and how soon it answers, from its sizes, a machine, a miss curve."""

from dataclasses import dataclass
from math import comb

from ..errors import MemoryPlanError
from .curve import MissCurve
from .memory import gigabytes


@dataclass(frozen=True)
class MachineProfile:
    """What a machine has: sizes in bytes, rates in 10^9 bytes per second, times in seconds.

    `weights_gbps` is how fast one token's weights are read and multiplied, `layer_s` what a layer
    takes besides, `prefill_weights_gbps` the rate when many tokens share each weight, per token;
    `read_cpu_s` is the computing time that reading a byte costs. `assumed` says in sentences what
    of this was not measured.
    """

    backend: str
    memory_bytes: int
    available_bytes: int
    ssd_gbps: float
    ssd_latency_s: float
    weights_gbps: float
    layer_s: float
    prefill_weights_gbps: float
    read_cpu_s: float = 0.0
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
    prompt of `PROMPT_TOKENS` tokens from a cold start. `layer_slots` are slots for each layer,
    `capacity` on the mean, that do better by the trace of the curve (`--split-by`); empty where an
    even split does as well.
    """

    memory_bytes: int
    capacity: int
    hit_rate: float
    bytes_per_token: float
    decode_tps: float
    ttft_s: float
    layer_slots: tuple[int, ...] = ()


@dataclass(frozen=True)
class ModelSpeed:
    """How fast a model computes with every expert in memory: seconds of a token.

    `decode_s` is of a decoded token, `prefill_s` of one of a long prompt.
    """

    decode_s: float
    prefill_s: float


PROMPT_TOKENS = 512
"""Tokens of the prompt that a predicted time to the first token is of."""

CONTEXT_TOKENS = 2048
"""Tokens of KV cache that a plan from sizes alone sets aside."""

_WORKING_BYTES = 128 * 1024 * 1024  # staging and freed buffers of a model that is not at hand
_PREFETCHED = 0.3  # of missing bytes, read before their layer asks: measured, see the lab log


def bytes_with(shape: ModelShape, capacity: int) -> int:
    """Return the memory that a model takes with so many slots per layer."""
    fixed = shape.resident_bytes + CONTEXT_TOKENS * shape.kv_bytes_per_token + _WORKING_BYTES
    return fixed + shape.expert_bytes * (2 + capacity * shape.num_layers)  # 2 of the sweep buffer


def fits(shape: ModelShape, memory_bytes: int) -> int:
    """Return the slots per layer that a memory limit holds, at most one per expert.

    Raises:
        MemoryPlanError: not even one.
    """
    capacity = (memory_bytes - bytes_with(shape, 0)) // (shape.expert_bytes * shape.num_layers)
    if capacity < 1:
        needed = bytes_with(shape, 1)
        raise MemoryPlanError(
            f"{shape.name} needs {gigabytes(needed)} at least: {gigabytes(memory_bytes)} cannot "
            "hold what every token needs and one expert per layer.",
            needed,
        )
    return min(capacity, shape.num_experts)


def speed_of(shape: ModelShape, machine: MachineProfile) -> ModelSpeed:
    """Return how fast a model would compute, from the bytes that a token needs."""
    active_bytes = shape.resident_bytes + shape.top_k * shape.num_layers * shape.expert_bytes
    decode_s = active_bytes / machine.weights_gbps / 1e9 + shape.num_layers * machine.layer_s
    return ModelSpeed(decode_s, active_bytes / machine.prefill_weights_gbps / 1e9)


def predict(
    shape: ModelShape, machine: MachineProfile, memory_bytes: int, curve: MissCurve
) -> PlanRow:
    """Return what is expected of a model under a memory limit, from sizes alone.

    Raises:
        MemoryPlanError: the limit cannot hold it.
    """
    capacity = fits(shape, memory_bytes)
    return predict_with(shape, machine, memory_bytes, capacity, curve, speed_of(shape, machine))


def predict_with(
    shape: ModelShape,
    machine: MachineProfile,
    memory_bytes: int,
    capacity: int,
    curve: MissCurve,
    speed: ModelSpeed,
) -> PlanRow:
    """Return what is expected with so many slots per layer of a model that computes so fast."""
    full = capacity >= shape.num_experts
    hit_rate = 1.0 if full else curve.hit_rate(capacity, shape.num_experts)
    asks = shape.top_k * shape.num_layers
    missed_bytes = asks * (1.0 - hit_rate) * shape.expert_bytes
    token_s = speed.decode_s + shape.num_layers * _stall_s(shape, machine, hit_rate, speed)
    token_s += missed_bytes * machine.read_cpu_s
    token_s = max(token_s, missed_bytes / machine.ssd_gbps / 1e9)
    prompt_s = PROMPT_TOKENS * speed.prefill_s
    asked_share = 1.0 - (1.0 - shape.top_k / shape.num_experts) ** PROMPT_TOKENS
    prompt_bytes = asked_share * shape.expert_bytes * shape.num_experts * shape.num_layers
    ttft_s = max(prompt_s, prompt_bytes / machine.ssd_gbps / 1e9)
    return PlanRow(memory_bytes, capacity, hit_rate, missed_bytes, 1.0 / token_s, ttft_s + token_s)


def _stall_s(
    shape: ModelShape, machine: MachineProfile, hit_rate: float, speed: ModelSpeed
) -> float:
    """Return the mean time that a layer of a decoded token waits for its experts.

    What it has in memory is computed while the rest is read. How many of the top-k are missing is
    taken for binomial.
    """
    experts_bytes = shape.top_k * shape.num_layers * shape.expert_bytes
    share = experts_bytes / (experts_bytes + shape.resident_bytes)
    compute_s = share * max(0.0, speed.decode_s - shape.num_layers * machine.layer_s)
    one_s = compute_s / (shape.top_k * shape.num_layers)
    read_s = shape.expert_bytes / machine.ssd_gbps / 1e9
    prefetched = _PREFETCHED if machine.backend == "cpu" else 0.0
    waiting = 0.0
    for missing in range(1, shape.top_k + 1):
        chance = (
            comb(shape.top_k, missing)
            * (1.0 - hit_rate) ** missing
            * hit_rate ** (shape.top_k - missing)
        )
        reading = machine.ssd_latency_s + missing * (1.0 - prefetched) * read_s
        waiting += chance * max(0.0, reading - (shape.top_k - missing) * one_s)
    return waiting
