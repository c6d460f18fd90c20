"""The CPU kernels as the model meets them: MLX arrays in, MLX arrays out, float32 in between."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ...errors import UnsupportedModelError
from ..activations import Activation
from ..reference import Quantization
from .attention import attend, run_attention
from .experts import ExpertMatrices, OneInput, OneToken, run_experts, run_gathered, run_linear
from .matrix import Matrix, format_name
from .phases import activation, prepare, product
from .pool import Pool, Program


class CpuKernels:
    """Products of stored matrices, on up to `num_threads` threads. Any thread may call.

    Results are computed when a call returns, and do not depend on the number of threads, on the
    other rows of the call, or on where a matrix lies.
    """

    name = "cpu"

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads
        self._pool = Pool(num_threads)
        self._one_input: WeakKeyDictionary[Matrix, OneInput] = WeakKeyDictionary()
        self._one_token: WeakKeyDictionary[ExpertMatrices, dict[int, OneToken]] = (
            WeakKeyDictionary()
        )

    def __deepcopy__(self, memo: dict[int, object]) -> "CpuKernels":
        """Return itself: copies of a model share the threads."""
        return self

    def format_of(
        self, tensors: Mapping[str, mx.array], quantization: Quantization | None
    ) -> str | None:
        """Return the name of the format that a kernel would read, None when none does."""
        return format_name(tensors, quantization)

    def compile(
        self,
        formats: Iterable[str],
        activations: Iterable[str],
        on_step: Callable[[int, int], None],
    ) -> None:
        """Compile what these formats and activations need, or load it from the cache on disk.

        `on_step(number, of)` is called before each step.
        """
        steps: list[Callable[[], object]] = [partial(self._pool.run, Program([])), prepare, attend]
        steps += [partial(product, name) for name in sorted(set(formats))]
        steps += [partial(activation, name) for name in sorted(set(activations))]
        for number, step in enumerate(steps):
            on_step(number + 1, len(steps))
            step()

    def matrix(
        self, tensors: Mapping[str, mx.array], quantization: Quantization | None
    ) -> Matrix | None:
        """Return a matrix, or stack `[S, N, K]`, of evaluated arrays; None if unsupported."""
        if format_name(tensors, quantization) is None:
            return None
        return Matrix(tensors, quantization)

    def linear(self, matrix: Matrix, x: mx.array) -> mx.array:
        """Return `x[..., K]` times the matrix, plus its bias: `[..., N]`."""
        if x.size == 0:
            return mx.zeros((*x.shape[:-1], matrix.num_rows), x.dtype)
        rows = as_rows(x)
        if len(rows) == 1:
            one = self._one_input.get(matrix)
            if one is None:
                one = self._one_input[matrix] = OneInput(matrix)
            y = one.run(self._pool, rows)
        else:
            y = run_linear(self._pool, matrix, rows)
        return _like(x, y.reshape(*x.shape[:-1], matrix.num_rows))

    def gather_linear(self, matrix: Matrix, x: mx.array, slots: mx.array) -> mx.array:
        """Return `x[..., 1, K]` times the matrix in slot `slots[...]`: `[..., 1, N]`."""
        picked = np.asarray(slots)
        if picked.size == 0:
            return mx.zeros((*picked.shape, 1, matrix.num_rows), x.dtype)
        inputs = np.arange(x.size // x.shape[-1]).reshape(x.shape[:-2])
        rows = np.broadcast_to(inputs, picked.shape).reshape(-1)
        y = run_gathered(self._pool, matrix, as_rows(x), rows, picked.reshape(-1))
        return _like(x, y.reshape(*picked.shape, 1, matrix.num_rows))

    def experts(self, matrices: ExpertMatrices, x: mx.array, slots: mx.array) -> mx.array:
        """Return what the experts in `slots[..., K]` make of `x[..., D]`: `[..., K, D]`."""
        picked = np.asarray(slots)
        if picked.size == 0:
            return mx.zeros((*picked.shape, matrices.down.num_rows), x.dtype)
        results = self.expert_results(x, picked.shape, matrices.down.num_rows)
        results.add(matrices, np.arange(picked.size), picked.reshape(-1))
        return results.array()

    def expert_results(self, x: mx.array, shape: tuple[int, ...], width: int) -> "ExpertResults":
        """Return room for the results `[..., K, width]` of a call of shape `[..., K]`, to fill."""
        return ExpertResults(self, x, shape, width)

    def run_experts(
        self,
        matrices: ExpertMatrices,
        x: npt.NDArray[np.float32],
        pairs: npt.NDArray[np.int64],
        slots: npt.NDArray[np.uint32],
        y: npt.NDArray[np.float32],
    ) -> None:
        """Write what the expert in `slots[i]` makes of its token to row `pairs[i]` of `y`."""
        if len(x) > 1:
            run_experts(self._pool, matrices, x, pairs, slots, y)
            return
        programs = self._one_token.setdefault(matrices, {})
        if pairs.size not in programs:
            programs[pairs.size] = OneToken(matrices, pairs.size)
        programs[pairs.size].run(self._pool, x, pairs, slots, y)

    def attends(
        self, queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array | str | None
    ) -> bool:
        """Return whether `attention` can compute this; looks at shapes and types only."""
        arrays = (queries, keys, values)
        if any(array.ndim != 4 or array.dtype != mx.float32 for array in arrays):
            return False
        batch, heads, length, width = queries.shape
        kv_batch, kv_heads, num_keys, key_width = keys.shape
        fitting = (kv_batch, key_width) == (batch, width) and values.shape[:3] == keys.shape[:3]
        causal = isinstance(mask, str)
        enough = num_keys >= (length if causal else 1)
        widths = width % 16 == 0 and values.shape[-1] % 64 == 0
        shared = heads % max(1, kv_heads) == 0
        return (
            fitting
            and enough
            and widths
            and shared
            and queries.size > 0
            and (not causal or mask == "causal")
        )

    def attention(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        scale: float,
        mask: mx.array | str | None,
    ) -> mx.array:
        """Return `[B, H, L, V]`, what the queries `[B, H, L, D]` find, where `attends` says so.

        `keys` are `[B, G, N, D]`, `values` `[B, G, N, V]`; `mask` is "causal", or booleans or
        numbers to add that broadcast to `[B, H, L, N]`.
        """
        q, k, v = evaluate(queries, keys, values)
        added = None
        if isinstance(mask, mx.array):
            if mask.dtype == mx.bool_:
                mask = mx.where(mask, mx.array(0.0), mx.finfo(mx.float32).min)
            added = np.asarray(mask.astype(mx.float32))
        causal = isinstance(mask, str)
        return mx.array(run_attention(self._pool, q, in_rows(k), in_rows(v), scale, causal, added))


class ExpertResults:
    """The results of one call of a layer's experts, each written when its expert is there."""

    def __init__(
        self, kernels: CpuKernels, x: mx.array, shape: tuple[int, ...], width: int
    ) -> None:
        """Evaluate `x[..., D]`."""
        self._kernels = kernels
        self._x = x
        self._rows = as_rows(x)
        self._shape = (*shape, width)
        self._y = np.empty((math.prod(shape), width), np.float32)

    def add(
        self,
        matrices: ExpertMatrices,
        pairs: npt.NDArray[np.int64],
        slots: npt.NDArray[np.uint32],
    ) -> None:
        """Compute the (token, k) pairs with the numbers `pairs` on the experts in their `slots`."""
        self._kernels.run_experts(matrices, self._rows, pairs, slots, self._y)

    def array(self) -> mx.array:
        """Return the results `[..., K, width]` in the type of `x`."""
        return _like(self._x, self._y.reshape(self._shape))


def expert_matrices(
    first: Matrix | None, up: Matrix | None, down: Matrix | None, kind: Activation | None
) -> ExpertMatrices | None:
    """Return the matrices of an expert for `CpuKernels.experts`; None when it cannot run them."""
    if first is None or down is None or kind is None:
        return None
    if up is not None and (up.format, up.width) != (first.format, first.width):
        return None
    widths = {first.num_rows, down.width} | ({up.num_rows} if up is not None else set())
    if len(widths) > 1:
        return None
    return ExpertMatrices(first, up, down, kind)


def evaluate(*arrays: mx.array) -> list[npt.NDArray[Any]]:
    """Return MLX arrays as numpy sees them, in place.

    Raises:
        UnsupportedModelError: inside a gradient or another transformation of MLX.
    """
    try:
        mx.async_eval(*arrays)  # unlike a plain look at the values, refused where it must be
    except ValueError as error:
        raise UnsupportedModelError(
            "the CPU kernels compute forward only: load the model with kernels='reference'."
        ) from error
    return [np.asarray(array) for array in arrays]


def in_rows(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array whose last axis is contiguous: itself, or a copy."""
    return array if array.strides[-1] == array.itemsize else np.ascontiguousarray(array)


def as_rows(x: mx.array) -> npt.NDArray[np.float32]:
    """Return an array as contiguous float32 rows `[n, D]`."""
    (values,) = evaluate(x if x.dtype == mx.float32 else x.astype(mx.float32))
    return np.ascontiguousarray(values).reshape(-1, x.shape[-1])


def _like(x: mx.array, y: npt.NDArray[np.float32]) -> mx.array:
    """Return a result in the type of `x`, which it answers."""
    return mx.array(y) if x.dtype == mx.float32 else mx.array(y).astype(x.dtype)
