"""The modules that stand in a model where mlx-lm's switch modules stood."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

import mlx.core as mx
from mlx.nn.layers.base import Module

from ..kernels.activations import Activation
from ..kernels.reference import Quantization, gather_linear
from . import adapter
from .layer_stream import LayerStream, Switch
from .prefetch import Guess

if TYPE_CHECKING:
    from ..kernels.cpu.experts import ExpertMatrices
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

    The slots are those of `places[place]`. Its weights are no parameters of the model: casting,
    saving or updating the model leaves the slots alone.
    """

    def __init__(
        self,
        places: Sequence[Stacks],
        name: str,
        tensors: tuple[str, ...],
        quantization: Quantization | None,
        kernels: "CpuKernels | None",
    ) -> None:
        super().__init__()
        self._places = tuple(places)
        self._names = {tensor: f"{name}.{tensor}" for tensor in tensors}
        self._quantization = quantization
        self._kernels = kernels
        self.place = 0
        self._matrices = [
            kernels.matrix(self.tensors(place), quantization) if kernels else None
            for place in range(len(places))
        ]

    def matrix(self, place: int) -> "Matrix | None":
        """Return the stack of a place as the CPU kernels read it, None when they do not."""
        return self._matrices[place]

    def tensors(self, place: int) -> dict[str, mx.array]:
        """Return the stacks of a place by their name in the projection: weight, scales ..."""
        arrays = self._places[place].arrays
        return {tensor: arrays[name] for tensor, name in self._names.items()}

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        """Return `x[..., M, D]` times the weights in slots `indices[...]`: `[..., M, F]`."""
        matrix = self._matrices[self.place]
        if self._kernels is not None and matrix is not None and x.shape[-2] == 1:
            return self._kernels.gather_linear(matrix, x, indices)
        tensors = self.tensors(self.place)
        return gather_linear(x, tensors, indices, self._quantization, sorted_indices)


def on_places(
    switch: Module, places: Sequence[Stacks], kernels: "CpuKernels | None"
) -> list[Switch]:
    """Make a switch compute on any of `places`; return the fastest way to call it on each.

    That is one call of the kernels for all an expert does, or the switch itself where they do not
    know its activation or a format.
    """
    linears = {}
    for name, projection in adapter.projections(switch).items():
        tensors = tuple(adapter.parameters(projection))
        quantization = adapter.quantization_of(projection)
        linears[name] = SlotLinear(places, name, tensors, quantization, kernels)
        adapter.replace_module(switch, name, linears[name])
    kind = adapter.activation_of(switch) if kernels else None
    found: list[Switch] = []
    for place in range(len(places)):
        matrices = {name: linear.matrix(place) for name, linear in linears.items()}
        experts = _expert_matrices(matrices, kind) if kernels else None
        if kernels and experts:
            found.append(partial(kernels.experts, experts))
        else:
            found.append(SwitchOnPlace(switch, tuple(linears.values()), place))
    return found


def _expert_matrices(
    matrices: Mapping[str, "Matrix | None"], kind: Activation | None
) -> "ExpertMatrices | None":
    """Return what the kernels compute an expert with; None where they cannot do it in one call."""
    from ..kernels.cpu.kernels import expert_matrices

    if matrices.keys() == {"fc1", "fc2"}:
        first, up, down, gated = matrices["fc1"], None, matrices["fc2"], False
    else:
        first, up = matrices.get("gate_proj"), matrices.get("up_proj")
        down, gated = matrices.get("down_proj"), True
    known = kind is not None and gated == (kind.name != "relu2")
    return expert_matrices(first, up, down, kind) if known else None


class SwitchOnPlace:
    """Calls a switch after telling its projections which place they compute on."""

    def __init__(self, switch: Module, linears: Sequence[SlotLinear], place: int) -> None:
        self._switch = switch
        self._linears = linears
        self._place = place

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        """Return what the switch returns."""
        for linear in self._linears:
            linear.place = self._place
        return cast(mx.array, self._switch(x, indices))


class ExpertTwin(Module):
    """Stands for a `SwitchGLU` or `SwitchMLP`: the same call, `(x, indices) -> y`, unweighted.

    It computes with the module it stands for, whose projections are `SlotLinear`s. What else
    hangs on that module (its activation, a norm) hangs on the twin under the same name.
    """

    def __init__(self, switch: Module, on_place: Sequence[Switch]) -> None:
        super().__init__()
        _adopt(self, switch, {name for name in switch if isinstance(switch[name], SlotLinear)})
        object.__setattr__(self, "_on_place", on_place)  # no child: it has no weights of its own

    @property
    def fused(self) -> bool:
        """Whether the kernels do all of an expert in one call."""
        return not isinstance(self._on_place[0], SwitchOnPlace)


class StreamedSwitch(ExpertTwin):
    """The twin of a switch whose experts are streamed. While `guessing` it raises `Guess`."""

    def __init__(
        self, switch: Module, on_place: Sequence[Switch], layer_stream: LayerStream
    ) -> None:
        super().__init__(switch, on_place)
        self.layer_stream = layer_stream
        self.guessing = False

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        """Return each token's `[..., K, D]` expert results, unweighted.

        Raises:
            ExpertReadError: an expert could not be read.
            UnsupportedModelError: inside a gradient.
        """
        if self.guessing:
            raise Guess(indices)
        return self.layer_stream.run(self._on_place, x, indices)


class ResidentSwitch(ExpertTwin):
    """The twin of a switch that has every expert in memory, on the CPU kernels."""

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        """Return each token's `[..., K, D]` expert results, unweighted."""
        return cast(mx.array, self._on_place[0](x, indices))


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
