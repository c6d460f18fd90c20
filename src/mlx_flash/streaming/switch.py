"""The modules that stand in a model where mlx-lm's switch modules stood."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

import mlx.core as mx
from mlx.nn.layers.base import Module

from ..kernels.reference import Quantization, gather_linear
from . import adapter
from .layer_stream import LayerStream, Switch

if TYPE_CHECKING:
    from ..kernels.cpu.kernels import CpuKernels
    from ..kernels.cpu.matrix import Matrix


class Stacks(Protocol):
    """Where the stacks `[S, ...]` of a layer's expert tensors are: slots, or all its experts."""

    @property
    def arrays(self) -> Mapping[str, mx.array]:
        """The stacks by name, such as `gate_proj.scales`."""


class ResidentStacks:
    """The stacks of a layer that has every expert in memory, in the types they are stored in."""

    def __init__(self, arrays: Mapping[str, mx.array]) -> None:
        """Read the arrays, one at a time."""
        for array in arrays.values():
            mx.eval(array)
        self.arrays = arrays

    def __deepcopy__(self, memo: dict[int, Any]) -> "ResidentStacks":
        """Return itself: a copied model shares its experts, whose addresses the kernels hold."""
        return self


class SlotLinear(Module):
    """What `SwitchLinear` and `QuantizedSwitchLinear` compute, on slots instead of experts.

    Its weights are no parameters of the model: casting, saving or updating the model leaves the
    slots alone.
    """

    def __init__(
        self,
        stacks: Stacks,
        name: str,
        tensors: tuple[str, ...],
        quantization: Quantization | None,
        kernels: "CpuKernels | None",
    ) -> None:
        super().__init__()
        self._stacks = stacks
        self._names = {tensor: f"{name}.{tensor}" for tensor in tensors}
        self._quantization = quantization
        self._kernels = kernels
        self._matrix = kernels.matrix(self.tensors(), quantization) if kernels else None

    @property
    def matrix(self) -> "Matrix | None":
        """The stack as the CPU kernels read it, None when they do not."""
        return self._matrix

    def tensors(self) -> dict[str, mx.array]:
        """Return the stacks by their name in the projection: weight, scales ..."""
        return {tensor: self._stacks.arrays[name] for tensor, name in self._names.items()}

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        """Return `x[..., M, D]` times the weights in slots `indices[...]`: `[..., M, F]`."""
        if self._kernels is not None and self._matrix is not None and x.shape[-2] == 1:
            return self._kernels.gather_linear(self._matrix, x, indices)
        return gather_linear(x, self.tensors(), indices, self._quantization, sorted_indices)


def on_stacks(switch: Module, stacks: Stacks, kernels: "CpuKernels | None") -> Switch:
    """Make a switch compute on `stacks`; return the fastest way to call it.

    That is one call of the kernels for all an expert does, or the switch itself where they do not
    know its activation or a format.
    """
    matrices = {}
    for name, projection in adapter.projections(switch).items():
        tensors = tuple(adapter.parameters(projection))
        quantization = adapter.quantization_of(projection)
        linear = SlotLinear(stacks, name, tensors, quantization, kernels)
        adapter.replace_module(switch, name, linear)
        matrices[name] = linear.matrix
    if kernels is None:
        return cast(Switch, switch)
    from ..kernels.cpu.kernels import expert_matrices

    kind = adapter.activation_of(switch)
    first, up = matrices.get("gate_proj"), matrices.get("up_proj")
    down, gated = matrices.get("down_proj"), True
    if matrices.keys() == {"fc1", "fc2"}:
        first, up, down, gated = matrices["fc1"], None, matrices["fc2"], False
    known = kind is not None and gated == (kind.name != "relu2")
    found = expert_matrices(first, up, down, kind) if known else None
    return cast(Switch, switch if found is None else partial(kernels.experts, found))


class ExpertTwin(Module):
    """Stands for a `SwitchGLU` or `SwitchMLP`: the same call, `(x, indices) -> y`, unweighted.

    It computes with the module it stands for, whose projections are `SlotLinear`s. What else
    hangs on that module (its activation, a norm) hangs on the twin under the same name.
    """

    def __init__(self, switch: Module, compute: Switch) -> None:
        super().__init__()
        _adopt(self, switch, {name for name in switch if isinstance(switch[name], SlotLinear)})
        object.__setattr__(self, "_compute", compute)  # no child: it has no weights of its own

    @property
    def fused(self) -> bool:
        """Whether the kernels do all of an expert in one call."""
        return not isinstance(self._compute, Module)


class StreamedSwitch(ExpertTwin):
    """The twin of a switch whose experts are streamed."""

    def __init__(self, switch: Module, compute: Switch, layer_stream: LayerStream) -> None:
        super().__init__(switch, compute)
        self.layer_stream = layer_stream

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        """Return each token's `[..., K, D]` expert results, unweighted.

        Raises:
            ExpertReadError: an expert could not be read.
            UnsupportedModelError: inside a gradient.
        """
        return self.layer_stream.run(self._compute, x, indices)


class ResidentSwitch(ExpertTwin):
    """The twin of a switch that has every expert in memory, on the CPU kernels."""

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        """Return each token's `[..., K, D]` expert results, unweighted."""
        return cast(mx.array, self._compute(x, indices))


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
