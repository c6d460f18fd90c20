"""Random matrices in every storage format, and MLX's own products of them."""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..kernels.reference import Quantization

CHECKED_ROWS = 1024
"""Rows of a matrix that are known in float64."""

_TILE_ROWS = 4096  # a matrix repeats so many rows: quantizing takes long


@dataclass(frozen=True)
class Case:
    """A storage format: bits are 16 or 32 where nothing is quantized."""

    label: str
    dtype: mx.Dtype
    quantization: Quantization | None = None


CASES = (
    *(Case(f"affine {b} bits, g64", mx.bfloat16, Quantization(64, b, "affine")) for b in (2, 3, 4)),
    Case("affine 4 bits, g32", mx.bfloat16, Quantization(32, 4, "affine")),
    Case("affine 4 bits, g128", mx.bfloat16, Quantization(128, 4, "affine")),
    Case("affine 4 bits, g64, f16", mx.float16, Quantization(64, 4, "affine")),
    Case("affine 4 bits, g64, f32", mx.float32, Quantization(64, 4, "affine")),
    *(Case(f"affine {b} bits, g64", mx.bfloat16, Quantization(64, b, "affine")) for b in (5, 6, 8)),
    Case("mxfp4", mx.bfloat16, Quantization(32, 4, "mxfp4")),
    Case("mxfp8", mx.bfloat16, Quantization(32, 8, "mxfp8")),
    Case("nvfp4", mx.bfloat16, Quantization(16, 4, "nvfp4")),
    Case("bf16", mx.bfloat16),
    Case("f16", mx.float16),
    Case("f32", mx.float32),
)


def random_matrix(
    case: Case, num_rows: int, width: int
) -> tuple[dict[str, mx.array], npt.NDArray[np.float64]]:
    """Return random tensors of a matrix `[num_rows, width]`, and its first rows in float64."""
    tile_rows = min(num_rows, _TILE_ROWS)
    tile = mx.random.normal((tile_rows, width))
    how = case.quantization
    if how is None:
        parts = {"weight": tile.astype(case.dtype)}
        exact = parts["weight"]
    else:
        found = mx.quantize(tile, **_packing(how))
        parts = dict(zip(("weight", "scales", "biases"), found, strict=False))
        if how.mode == "affine":
            parts |= {name: parts[name].astype(case.dtype) for name in ("scales", "biases")}
        wide = _as_mlx_reads(parts, how)
        exact = mx.dequantize(parts["weight"], *wide, **_packing(how))
    repeats = -(-num_rows // tile_rows)
    tensors = {name: mx.tile(array, (repeats, 1))[:num_rows] for name, array in parts.items()}
    mx.eval(tensors)
    first = np.asarray(exact[: min(CHECKED_ROWS, num_rows)].astype(mx.float32)).astype(np.float64)
    return tensors, first


def _packing(how: Quantization) -> dict[str, Any]:
    return {"group_size": how.group_size, "bits": how.bits, "mode": how.mode}


def mlx_gather(x: mx.array, stack: dict[str, mx.array], indices: mx.array, case: Case) -> mx.array:
    """Return `x[1, 1, K]` times the matrices `indices[K]` of a stack, with MLX's operation."""
    how = case.quantization
    if how is None:
        weight = stack["weight"][indices].astype(mx.float32)  # all that its CPU back end gathers
        return x @ weight.swapaxes(-1, -2)
    scales, biases = _as_mlx_reads(stack, how)
    return mx.gather_qmm(
        x,
        stack["weight"],
        scales,
        biases,
        rhs_indices=indices,
        transpose=True,
        **_packing(how),
    )


def _as_mlx_reads(
    tensors: dict[str, mx.array], how: Quantization
) -> tuple[mx.array, mx.array | None]:
    """Return scales and biases in float32, which is where MLX's CPU back end is fastest."""
    if how.mode != "affine":
        return tensors["scales"], None
    return tensors["scales"].astype(mx.float32), tensors["biases"].astype(mx.float32)


def nbytes_of(tensors: dict[str, mx.array]) -> int:
    """Return the bytes of all tensors of a matrix."""
    return sum(int(array.nbytes) for array in tensors.values())
