"""Packed twins of checkpoints, for tests."""

from pathlib import Path

from mlx_flash.engine.pack import pack
from mlx_flash.kernels.reference import Quantization


def packed(folder: Path, quantization: Quantization | None = None) -> Path:
    """Return the folder of a packed twin of the checkpoint in `folder`, beside it."""
    target = folder.with_name(folder.name + "-packed")
    pack(folder, target, quantization, lambda done, total: None)
    return target
