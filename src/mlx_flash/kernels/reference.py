"""Matrix products made of MLX operations: the definition of what is correct.

Those of experts do to a slot buffer what mlx-lm's `SwitchLinear` and `QuantizedSwitchLinear` do to
a stack of all experts, operation for operation, so that the results agree bit for bit.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

_CAST_BYTES = 64 * 1024 * 1024  # float32 copies made at a time for types the CPU cannot multiply


@dataclass(frozen=True)
class Quantization:
    """How a weight is packed: `mode` is affine, mxfp4, mxfp8 or nvfp4."""

    group_size: int
    bits: int
    mode: str


def gather_linear(
    x: mx.array,
    tensors: Mapping[str, mx.array],
    slots: mx.array,
    quantization: Quantization | None,
    sorted_indices: bool,
) -> mx.array:
    """Return `x[..., M, D]` times the weight in slot `slots[...]`, transposed: `[..., M, F]`.

    `tensors` holds stacks over slots: `weight`, and what there is of `scales`, `biases` (of the
    quantization), `global_scale` and `bias` (of the layer). `sorted_indices` promises that
    `slots` is flat and ascending.
    """
    if quantization is None:
        y = _gather_dense(x, tensors["weight"], slots, sorted_indices)
    else:
        y = mx.gather_qmm(
            x,
            tensors["weight"],
            tensors["scales"],
            tensors.get("biases"),
            rhs_indices=slots,
            transpose=True,
            group_size=quantization.group_size,
            bits=quantization.bits,
            mode=quantization.mode,
            global_scale=tensors.get("global_scale"),
            sorted_indices=sorted_indices,
        )
    if "bias" in tensors:
        y = y + mx.expand_dims(tensors["bias"][slots], -2)
    return y


def _gather_dense(x: mx.array, weight: mx.array, slots: mx.array, sorted_indices: bool) -> mx.array:
    both_float32 = x.dtype == mx.float32 and weight.dtype == mx.float32
    if mx.default_device() != mx.Device(mx.cpu) or both_float32:
        return mx.gather_mm(
            x, weight.swapaxes(-1, -2), rhs_indices=slots, sorted_indices=sorted_indices
        )
    return _gather_dense_in_float32(x, weight, slots)


def _gather_dense_in_float32(x: mx.array, weight: mx.array, slots: mx.array) -> mx.array:
    """Multiply in float32, which is all that MLX's CPU back end can gather.

    Only the slots in use are cast, a few at a time, so that the copies stay small.
    """
    used, position = np.unique(np.asarray(slots), return_inverse=True)
    position = position.reshape(slots.shape)
    per_step = max(1, _CAST_BYTES // (weight[0].size * 4))
    wide = x.astype(mx.float32)
    y = None
    for start in range(0, len(used), per_step):
        part = weight[mx.array(used[start : start + per_step])].astype(mx.float32)
        inside = (position >= start) & (position < start + per_step)
        local = mx.array(np.where(inside, position - start, 0).astype(np.uint32))
        product = mx.gather_mm(wide, part.swapaxes(-1, -2), rhs_indices=local)
        y = product if y is None else mx.where(mx.array(inside)[..., None, None], product, y)
        mx.eval(y)
    assert y is not None, "a call without tokens reached the kernel"
    return y.astype(mx.result_type(x, weight))


def linear(
    x: mx.array, tensors: Mapping[str, mx.array], quantization: Quantization | None
) -> mx.array:
    """Return `x[..., K]` times a matrix, transposed, plus what there is of `bias`: `[..., N]`.

    Computes in float32, where MLX's CPU back end is fastest, and lazily.
    """
    if quantization is None:
        y = x @ tensors["weight"].astype(mx.float32).T
    else:
        how = dataclasses.asdict(quantization)
        y = mx.quantized_matmul(
            x, tensors["weight"], *_float32_scales(tensors, quantization), transpose=True, **how
        )
    return y + tensors["bias"].astype(mx.float32) if "bias" in tensors else y


def embedding_rows(
    tensors: Mapping[str, mx.array], tokens: mx.array, quantization: Quantization | None
) -> mx.array:
    """Return the rows `tokens[...]` of a table in float32: `[..., K]`."""
    picked = {name: array[tokens] for name, array in tensors.items()}
    if quantization is None:
        return picked["weight"].astype(mx.float32)
    how = dataclasses.asdict(quantization)
    rows = mx.dequantize(picked["weight"], *_float32_scales(picked, quantization), **how)
    return rows.astype(mx.float32)


def _float32_scales(
    tensors: Mapping[str, mx.array], quantization: Quantization
) -> tuple[mx.array, mx.array | None]:
    if quantization.mode != "affine":
        return tensors["scales"], None
    return tensors["scales"].astype(mx.float32), tensors["biases"].astype(mx.float32)
