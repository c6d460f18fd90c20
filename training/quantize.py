"""Affine group quantization, bit for bit as `mlx.core.quantize` does it, in PyTorch."""

import torch
from torch import Tensor

GROUP_SIZE = 64
EXPERT_BITS = 4
OTHER_BITS = 6


def bits_of(name: str, ndim: int) -> int | None:
    """Return the bits a tensor is stored in, or None for one that stays bf16."""
    if ndim == 3:
        return EXPERT_BITS
    if ndim == 2:
        return 8 if name.endswith("mlp.gate.weight") else OTHER_BITS
    return None


def quantize(weight: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return (integers, scales, biases); one scale and bias for 64 weights of a row."""
    groups = weight.unflatten(-1, (-1, GROUP_SIZE)).float()
    top = 2**bits - 1
    high, low = groups.amax(-1), groups.amin(-1)
    scale = ((high - low) / top).clamp_min(1e-7)
    lower = low.abs() > high.abs()
    scale = torch.where(lower, scale, -scale)
    edge = torch.where(lower, low, high)
    steps = torch.round(edge / scale)
    exact = steps != 0
    scale = torch.where(exact, edge / torch.where(exact, steps, 1.0), scale)
    bias = torch.where(exact, edge, 0.0)
    integers = torch.round((groups - bias.unsqueeze(-1)) / scale.unsqueeze(-1)).clamp(0, top)
    return integers.flatten(-2), scale.to(weight.dtype), bias.to(weight.dtype)


def dequantize(integers: Tensor, scales: Tensor, biases: Tensor) -> Tensor:
    """Return the weights that the integers stand for, in the scales' type."""
    groups = integers.unflatten(-1, (-1, GROUP_SIZE))
    values = groups * scales.float().unsqueeze(-1) + biases.float().unsqueeze(-1)
    return values.flatten(-2).to(scales.dtype)


def pack(integers: Tensor, bits: int) -> Tensor:
    """Return the integers packed into 32-bit words, lowest bits first, rows kept."""
    values = integers.to(torch.int64)
    places = torch.arange(bits, device=values.device)
    stream = ((values.unsqueeze(-1) >> places) & 1).flatten(-2).unflatten(-1, (-1, 32))
    words = (stream << torch.arange(32, device=values.device)).sum(-1)
    return words.to(torch.uint32)


def fake_quantize(weight: Tensor, bits: int) -> Tensor:
    """Return `weight` as it will be after quantization, in its own type."""
    return dequantize(*quantize(weight, bits))
