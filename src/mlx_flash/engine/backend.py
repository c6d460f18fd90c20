"""What MLX computes on, and the memory it computes in."""

from typing import NamedTuple

import mlx.core as mx

from ..telemetry import machine


class Memory(NamedTuple):
    """Bytes a model may still take, and bytes there are in all."""

    available_bytes: int
    total_bytes: int


def computes_on_cpu() -> bool:
    """Return whether MLX's default device is the CPU, where activations are float32."""
    return bool(mx.default_device() == mx.Device(mx.cpu))


def backend_name() -> str:
    """Return the MLX back end that computes: metal, cuda or cpu."""
    if computes_on_cpu():
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def model_memory() -> Memory:
    """Return the memory that holds a model: the card's on CUDA, else RAM within its cgroups."""
    if backend_name() == "cuda":
        card = mx.device_info()
        return Memory(int(card["free_memory"]), int(card["total_memory"]))
    return Memory(machine.available_memory_bytes(), machine.total_memory_bytes())
