"""MLX-Flash: run Mixture-of-Experts models larger than memory, exactly.

The experts stream from the SSD through a cache of slots; the output is bit for bit the one the
model would give if it fitted. `load` returns a model that mlx-lm's own functions run unchanged.
"""

from typing import TYPE_CHECKING, Any

__version__ = "1.0.0.dev0"

if TYPE_CHECKING:
    from .config import ReadOptions
    from .engine.load import load
    from .engine.profiles import get_warmup_experts
    from .streaming.expert_stream import ExpertStream
    from .streaming.install import find_stream, stream_experts
    from .telemetry.trace import Trace
    from .telemetry.trace_file import read_trace

__all__ = [
    "ExpertStream",
    "ReadOptions",
    "Trace",
    "__version__",
    "find_stream",
    "get_warmup_experts",
    "load",
    "read_trace",
    "stream_experts",
]

_HOMES = {
    "ExpertStream": "streaming.expert_stream",
    "ReadOptions": "config",
    "Trace": "telemetry.trace",
    "find_stream": "streaming.install",
    "get_warmup_experts": "engine.profiles",
    "load": "engine.load",
    "read_trace": "telemetry.trace_file",
    "stream_experts": "streaming.install",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that the command line starts fast."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
