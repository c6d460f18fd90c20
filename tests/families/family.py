"""What one entry of the list of families says."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """One mlx-lm model family and a configuration of it small enough to run in milliseconds."""

    name: str
    """The module in `mlx_lm.models`, such as "qwen3_moe"."""
    config: dict[str, Any]
    """What config.json holds, `model_type` included."""
    num_experts: int
    """Routed experts per MoE layer."""
    moe_layers: int
    """How many layers have routed experts."""
