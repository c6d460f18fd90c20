"""Looks at the machine: versions, back end, memory and the disk that holds a model."""

import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .. import __version__
from ..formats.checkpoint import Checkpoint
from ..kernels.dispatch import choose_kernels
from ..telemetry import machine
from ..telemetry.disk_temperature import disk_temperature_c
from .alone import weights_gbps
from .backend import backend_name, computes_on_cpu, model_memory
from .disk import measure_disk


@dataclass(frozen=True)
class DoctorReport:
    """What was found.

    `kernels` is what would compute; of the CPU kernels, `processor` is what they are compiled for
    and `kernel_gbps` how many 10^9 bytes of 4-bit weights they multiply per second on all cores.
    `model_memory_bytes` is free where a model goes, the card's memory on CUDA. `ssd_gbps` is 10^9
    bytes per second; None where nothing could be measured. `direct_io` says whether the disk was
    read past the page cache; `ssd_temperature_c` is None where the disk does not tell. `problems`
    are sentences.
    """

    versions: dict[str, str | None]
    backend: str
    cores: int
    memory_bytes: int
    memory_available_bytes: int
    model_memory_bytes: int
    model: str
    kernels: str
    processor: str | None
    kernel_gbps: float | None
    ssd_gbps: float | None
    ssd_latency_s: float | None
    ssd_read_bytes: int
    direct_io: bool
    ssd_temperature_c: float | None
    problems: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)


def examine(folder: Path) -> DoctorReport:
    """Return what this machine has, its disk measured by reading the model in `folder`.

    Raises:
        ModelNotFoundError, FormatError: the folder is no sound checkpoint.
    """
    checkpoint = Checkpoint.open(folder)
    packed = {layer.path for layer in checkpoint.packed.values()}
    shards = sorted(packed or {entry.path for entry in checkpoint.tensors.values()})
    disk = measure_disk(shards)
    available = machine.available_memory_bytes()
    versions = {
        name: _version(name) for name in ("mlx", "mlx-lm", "numpy", "numba", "huggingface-hub")
    }
    versions = {
        "mlx-flash": __version__,
        "python": ".".join(str(part) for part in sys.version_info[:3]),
        **versions,
    }
    choice = choose_kernels(None, computes_on_cpu(), machine.num_cores())
    problems = [choice.why] if choice.why else []
    if not disk.direct:
        problems.append(
            "the disk cannot be read directly: its speed may be that of the page cache."
        )
    if available < 2 * 10**9:
        problems.append("less than 2 GB of memory are free: close programs or expect small caches.")
    return DoctorReport(
        versions=versions,
        backend=backend_name(),
        cores=machine.num_cores(),
        memory_bytes=machine.total_memory_bytes(),
        memory_available_bytes=available,
        model_memory_bytes=model_memory().available_bytes,
        model=str(folder),
        kernels=choice.name,
        processor=_processor() if choice.cpu else None,
        kernel_gbps=weights_gbps() if choice.cpu else None,
        ssd_gbps=disk.gbps,
        ssd_latency_s=disk.latency_s,
        ssd_read_bytes=disk.read_bytes,
        direct_io=disk.direct,
        ssd_temperature_c=disk_temperature_c(shards[0]),
        problems=problems,
    )


def _processor() -> str:
    from ..kernels.cpu.processor import processor

    return processor()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
