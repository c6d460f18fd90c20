"""Puts a model's linear layers, embeddings and attentions on the CPU kernels."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mlx.nn.layers.base import Module

from . import adapter
from .attention import KernelAttention
from .dense import DenseOnKernels, KernelEmbedding, KernelLinear

if TYPE_CHECKING:
    from ..kernels.cpu.kernels import CpuKernels


class SwappedModules:
    """What of a model runs on the CPU kernels, and what that takes."""

    def __init__(
        self, dense: Sequence[DenseOnKernels], formats: Sequence[str], attention: KernelAttention
    ) -> None:
        self._dense = tuple(dense)
        self.formats = tuple(formats)
        self._attention = attention

    @contextmanager
    def shapes_only(self) -> Iterator[None]:
        """Let every swapped module give zeros of the right shape while the block runs."""
        self._set_shapes_only(True)
        try:
            yield
        finally:
            self._set_shapes_only(False)

    def _set_shapes_only(self, shapes_only: bool) -> None:
        self._attention.shapes_only = shapes_only
        for module in self._dense:
            module.shapes_only = shapes_only

    def scratch_elements(self, num_tokens: int) -> int:
        """Return how many float32 numbers the hungriest linear layer takes beside its input."""
        return max((module.scratch_elements(num_tokens) for module in self._dense), default=0)

    def scored_heads(self, num_heads: int) -> int:
        """Return for how many of a layer's heads scores, or masks, of the context are held.

        Known after a forward pass with `shapes_only`.
        """
        if self._attention.left_to_mlx:
            return num_heads
        return 1 if self._attention.masked else 0


def swap_modules(model: Module, kernels: "CpuKernels") -> SwappedModules:
    """Put on the kernels what of a model they can compute, experts aside; reads no weight."""
    swapped, formats = [], set()
    for path, module in adapter.dense_modules(model):
        kind = KernelEmbedding if adapter.is_embedding(module) else KernelLinear
        twin = kind(module, kernels, adapter.is_head(path, module))
        name = twin.format_name()
        if name is not None:
            adapter.replace_module(model, path, twin)
            swapped.append(twin)
            formats.add(name)
    attention = KernelAttention(kernels)
    adapter.replace_attention(model, attention)
    return SwappedModules(swapped, sorted(formats), attention)
