"""The modules that stand in a model where mlx-lm's switch modules stood."""

from collections.abc import Iterable

import mlx.core as mx
from mlx.nn.layers.base import Module

from ..kernels.reference import Quantization, gather_linear
from .layer_stream import LayerStream
from .slots import SlotPool


class SlotLinear(Module):
    """What `SwitchLinear` and `QuantizedSwitchLinear` compute, on slots instead of experts.

    Its weights are no parameters of the model: casting, saving or updating the model leaves the
    slots alone.
    """

    def __init__(
        self,
        pool: SlotPool,
        name: str,
        tensors: tuple[str, ...],
        quantization: Quantization | None,
    ) -> None:
        super().__init__()
        self._pool = pool
        self._names = {tensor: f"{name}.{tensor}" for tensor in tensors}
        self._quantization = quantization

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        """Return `x[..., M, D]` times the weights in slots `indices[...]`: `[..., M, F]`."""
        arrays = {tensor: self._pool.arrays[name] for tensor, name in self._names.items()}
        return gather_linear(x, arrays, indices, self._quantization, sorted_indices)


class StreamedSwitch(Module):
    """The streaming twin of a `SwitchGLU` or `SwitchMLP`: the same call, `(x, indices) -> y`.

    It computes with the module it stands for, whose projections are `SlotLinear`s. What else
    hangs on that module (its activation, a norm) hangs on the twin under the same name.
    """

    def __init__(self, switch: Module, layer_stream: LayerStream) -> None:
        super().__init__()
        _adopt(self, switch, {name for name in switch if isinstance(switch[name], SlotLinear)})
        object.__setattr__(self, "_switch", switch)  # no child: its projections have no weights
        self.layer_stream = layer_stream

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        """Return each token's `[..., K, D]` expert results, unweighted.

        Raises:
            ExpertReadError: an expert could not be read.
            UnsupportedModelError: inside a gradient.
        """
        return self.layer_stream.run(self._switch, x, indices)


class ShapeOnlySwitch(Module):
    """Stands for a switch while shapes are measured: zeros of the right shape, no experts.

    `top_k` and `width` are those of the last call.
    """

    def __init__(self, switch: Module, projections: Iterable[str]) -> None:
        """Stand for `switch`, without its `projections`."""
        super().__init__()
        _adopt(self, switch, set(projections))
        self.top_k = 0
        self.width = 0

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        """Return zeros `[..., K, D]`."""
        self.top_k, self.width = indices.shape[-1], x.shape[-1]
        return mx.zeros((*indices.shape, x.shape[-1]), x.dtype)


def _adopt(twin: Module, switch: Module, without: set[str]) -> None:
    """Hang on `twin` what hangs on `switch`, except the children named in `without`."""
    for name in switch:
        if name not in without:
            twin[name] = switch[name]
