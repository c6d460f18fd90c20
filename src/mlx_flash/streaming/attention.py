"""Attention on the CPU kernels, for the modules of one model."""

from typing import TYPE_CHECKING, Any

import mlx.core as mx

from . import adapter

if TYPE_CHECKING:
    from ..kernels.cpu.kernels import CpuKernels


class KernelAttention:
    """What `scaled_dot_product_attention` of mlx-lm computes, with its arguments.

    What the kernels cannot (quantized caches, sinks, odd widths) stays with mlx-lm. `left_to_mlx`
    says whether any call did, and `masked` whether any had an array for a mask.
    """

    def __init__(self, kernels: "CpuKernels") -> None:
        self._kernels = kernels
        self.shapes_only = False
        self.left_to_mlx = False
        self.masked = False

    def __call__(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        cache: Any,
        scale: float,
        mask: mx.array | str | None,
        sinks: mx.array | None = None,
    ) -> mx.array:
        """Return what each query finds: `[B, H, L, V]`."""
        known = sinks is None and isinstance(keys, mx.array)
        if not known or not self._kernels.attends(queries, keys, values, mask):
            self.left_to_mlx = True
            return adapter.mlx_attention(queries, keys, values, cache, scale, mask, sinks)
        self.masked = self.masked or isinstance(mask, mx.array)
        if self.shapes_only:
            return mx.zeros((*queries.shape[:3], values.shape[-1]), mx.float32)
        return self._kernels.attention(queries, keys, values, scale, mask)
