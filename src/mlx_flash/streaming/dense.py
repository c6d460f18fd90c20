"""Modules that stand where a model's linear layers and embeddings stood, on the CPU kernels."""

from typing import TYPE_CHECKING

import mlx.core as mx
from mlx.nn.layers.base import Module

from ..errors import UnsupportedModelError
from ..kernels import reference
from ..kernels.addresses import address_of
from . import adapter

if TYPE_CHECKING:
    from ..kernels.cpu.kernels import CpuKernels
    from ..kernels.cpu.matrix import Matrix

TENSORS = ("weight", "scales", "biases", "bias")

LOGIT_POSITIONS = 8
"""A model's head computes at once for so many positions of each sequence.

The logits of more are left to MLX, which computes them when somebody looks: generating text takes
none of a prompt's but the last, and those of a long prompt are larger than the model.
"""


class DenseOnKernels(Module):
    """Keeps the parameters of the module it stands for, in the types they are stored in."""

    def __init__(self, module: Module, kernels: "CpuKernels", is_head: bool) -> None:
        super().__init__()
        for name in module:
            self[name] = mx.contiguous(module[name]) if name in TENSORS else module[name]
        self._names = tuple(name for name in TENSORS if self.get(name) is not None)
        self._kernels = kernels
        self._quantization = adapter.quantization_of(module)
        self._is_head = is_head
        self._matrix: Matrix | None = None
        self._addresses: list[int] = []
        self.shapes_only = False

    def tensors(self) -> dict[str, mx.array]:
        """Return the arrays of the matrix by name."""
        return {name: self[name] for name in self._names}

    def format_name(self) -> str | None:
        """Return the format that a kernel would read, None when none does."""
        return self._kernels.format_of(self.tensors(), self._quantization)

    def scratch_elements(self, num_tokens: int) -> int:
        """Return how many float32 numbers a call takes beside its input."""
        num_rows, width = map(int, self["weight"].shape)
        if self._quantization is not None:
            width = width * 32 // self._quantization.bits
        num_inputs = min(num_tokens, LOGIT_POSITIONS) if self._is_head else num_tokens
        return num_inputs * 2 * (width + num_rows)

    def multiply(self, x: mx.array) -> mx.array:
        """Return `x[..., K]` times the matrix: `[..., N]`. Evaluates `x`, but see LOGIT_POSITIONS.

        A matrix that was changed, in place or by a new array, is looked at again.

        Raises:
            UnsupportedModelError: it was changed to a format that no kernel reads.
        """
        if self.shapes_only:
            return mx.zeros((*x.shape[:-1], self["weight"].shape[0]), mx.float32)
        if self._is_head and x.ndim > 1 and x.shape[-2] > LOGIT_POSITIONS:
            return reference.linear(x, self.tensors(), self._quantization)
        addresses = [address_of(self[name]) for name in self._names]
        if self._matrix is None or addresses != self._addresses:
            self._matrix = self._kernels.matrix(self.tensors(), self._quantization)
            self._addresses = addresses
        if self._matrix is None:
            raise UnsupportedModelError(
                "the CPU kernels cannot read what the weights were changed to: "
                "load the model with kernels='reference'."
            )
        return self._kernels.linear(self._matrix, x)


class KernelLinear(DenseOnKernels):
    """What `Linear` and `QuantizedLinear` compute."""

    def __call__(self, x: mx.array) -> mx.array:
        """Return `x[..., K]` times the weight, plus the bias: `[..., N]`."""
        return self.multiply(x)


class KernelEmbedding(DenseOnKernels):
    """What `Embedding` and `QuantizedEmbedding` compute, in float32."""

    def __call__(self, tokens: mx.array) -> mx.array:
        """Return the rows of `tokens[...]`: `[..., K]`."""
        return reference.embedding_rows(self.tensors(), tokens, self._quantization)

    def as_linear(self, x: mx.array) -> mx.array:
        """Return `x[..., K]` times the table: `[..., N]`, for models whose head is tied."""
        return self.multiply(x)


def cast_all_but_swapped(model: Module, dtype: mx.Dtype) -> None:
    """Cast every floating parameter of a model, but those that the kernels read as stored."""
    for _, module in model.named_modules():
        if isinstance(module, DenseOnKernels):
            continue
        for name, value in list(module.items()):
            is_parameter = isinstance(value, mx.array) and not name.startswith("_")
            if is_parameter and mx.issubdtype(value.dtype, mx.floating):
                module[name] = value.astype(dtype)
