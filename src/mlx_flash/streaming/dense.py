"""Modules that stand where a model's linear layers and embeddings stood, on the CPU kernels."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import mlx.core as mx
from mlx.nn.layers.base import Module

from ..kernels.reference import Quantization
from . import adapter

if TYPE_CHECKING:
    from ..kernels.cpu.kernels import CpuKernels
    from ..kernels.cpu.matrix import Matrix

TENSORS = ("weight", "scales", "biases", "bias")


class _OnKernels(Module):
    """Keeps the parameters of the module it stands for, in the types they are stored in."""

    def __init__(self, module: Module, kernels: "CpuKernels") -> None:
        super().__init__()
        for name in module:
            self[name] = module[name]
        self._kernels = kernels
        self._quantization = adapter.quantization_of(module)
        self._matrix: Matrix | None = None
        self.shapes_only = False

    def tensors(self) -> dict[str, mx.array]:
        """Return the arrays of the matrix by name."""
        return {name: self[name] for name in TENSORS if self.get(name) is not None}

    def format_name(self) -> str | None:
        """Return the format that a kernel would read, None when none does."""
        return self._kernels.format_of(self.tensors(), self._quantization)

    def multiply(self, x: mx.array) -> mx.array:
        """Return `x[..., K]` times the matrix: `[..., N]`. Evaluates `x`."""
        if self.shapes_only:
            return mx.zeros((*x.shape[:-1], self["weight"].shape[0]), mx.float32)
        tensors = self.tensors()
        if self._matrix is None or any(
            self._matrix.arrays[name] is not array for name, array in tensors.items()
        ):
            mx.eval(tensors)
            self._matrix = self._kernels.matrix(tensors, self._quantization)
            assert self._matrix is not None, "the module was swapped without a kernel for it"
        return self._kernels.linear(self._matrix, x)


class KernelLinear(_OnKernels):
    """What `Linear` and `QuantizedLinear` compute."""

    def __call__(self, x: mx.array) -> mx.array:
        """Return `x[..., K]` times the weight, plus the bias: `[..., N]`."""
        return self.multiply(x)


class KernelEmbedding(_OnKernels):
    """What `Embedding` and `QuantizedEmbedding` compute, in float32."""

    def __call__(self, tokens: mx.array) -> mx.array:
        """Return the rows of `tokens[...]`: `[..., K]`."""
        return embedding_rows(self.tensors(), tokens, self._quantization)

    def as_linear(self, x: mx.array) -> mx.array:
        """Return `x[..., K]` times the table: `[..., N]`, for models whose head is tied."""
        return self.multiply(x)


def embedding_rows(
    tensors: dict[str, mx.array], tokens: mx.array, quantization: Quantization | None
) -> mx.array:
    """Return rows of a table as float32."""
    picked = {name: array[tokens] for name, array in tensors.items()}
    if quantization is None:
        return picked["weight"].astype(mx.float32)
    affine = quantization.mode == "affine"
    scales = picked["scales"].astype(mx.float32) if affine else picked["scales"]
    biases = picked["biases"].astype(mx.float32) if affine else None
    rows = mx.dequantize(
        picked["weight"],
        scales,
        biases,
        group_size=quantization.group_size,
        bits=quantization.bits,
        mode=quantization.mode,
    )
    return rows.astype(mx.float32)


def swap_dense(model: Module, kernels: "CpuKernels") -> list[str]:
    """Put every linear layer and embedding that a kernel reads on the kernels; reads no weight.

    Returns the names of the formats they are stored in.
    """
    formats = set()
    for path, module in adapter.dense_modules(model):
        kind = KernelEmbedding if adapter.is_embedding(module) else KernelLinear
        twin = kind(module, kernels)
        name = twin.format_name()
        if name is not None:
            adapter.replace_module(model, path, twin)
            formats.add(name)
    return sorted(formats)


@contextmanager
def shapes_only(model: Module) -> Iterator[None]:
    """Let every swapped module give zeros of the right shape while the block runs."""
    swapped = [module for _, module in model.named_modules() if isinstance(module, _OnKernels)]
    for module in swapped:
        module.shapes_only = True
    try:
        yield
    finally:
        for module in swapped:
            module.shapes_only = False


def cast_all_but_swapped(model: Module, dtype: mx.Dtype) -> None:
    """Cast every floating parameter of a model, but those that the kernels read as stored."""
    for _, module in model.named_modules():
        if isinstance(module, _OnKernels):
            continue
        for name, value in list(module.items()):
            is_parameter = isinstance(value, mx.array) and not name.startswith("_")
            if is_parameter and mx.issubdtype(value.dtype, mx.floating):
                module[name] = value.astype(dtype)
