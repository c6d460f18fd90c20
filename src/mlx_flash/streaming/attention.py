"""Attention on the CPU kernels, for the modules of one model."""

from functools import partial
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from . import adapter

if TYPE_CHECKING:
    from ..kernels.cpu.kernels import CpuKernels


def swap_attention(model: Module, kernels: "CpuKernels") -> int:
    """Put the attentions of a model on the kernels; return how many modules that are.

    What the kernels cannot (quantized caches, sinks, odd widths) stays with mlx-lm.
    """
    return adapter.replace_attention(model, partial(_attention, kernels))


def _attention(
    kernels: "CpuKernels",
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    cache: Any,
    scale: float,
    mask: mx.array | str | None,
    sinks: mx.array | None = None,
) -> mx.array:
    """Return what `scaled_dot_product_attention` of mlx-lm returns, with its arguments."""
    if sinks is None and isinstance(keys, mx.array):
        found = kernels.attention(queries, keys, values, scale, mask)
        if found is not None:
            return found
    return adapter.mlx_attention(queries, keys, values, cache, scale, mask, sinks)
