"""The activations between an expert's projections that have a compiled step."""

from dataclasses import dataclass

ACTIVATIONS = ("swiglu", "clamped_swiglu", "clamped_silu", "swiglu_oai", "geglu", "relu2")
"""Their names.

swiglu          silu(gate) * up
clamped_swiglu  silu(min(gate, limit)) * clip(up, -limit, limit)
clamped_silu    min(silu(gate), limit) * clip(up, -limit, limit)
swiglu_oai      (clip(up, -limit, limit) + 1) * g * sigmoid(alpha * g), with g = min(gate, limit)
geglu           gelu(gate) * up, gelu by its tanh approximation
relu2           max(x, 0)^2 of the only projection there is
"""


@dataclass(frozen=True)
class Activation:
    """What stands between the projections: one of ACTIVATIONS, and its parameters."""

    name: str
    alpha: float = 0.0
    limit: float = 0.0
