"""What computes a layer's experts, on its slots or on the shared ones, at once or in parts."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx.nn.layers.base import Module

from ..kernels.activations import Activation
from ..kernels.reference import Quantization, gather_linear
from . import adapter

if TYPE_CHECKING:
    from ..kernels.cpu.experts import ExpertMatrices
    from ..kernels.cpu.kernels import CpuKernels, ExpertResults
    from ..kernels.cpu.matrix import Matrix

_SORTED_FROM = 64  # pairs from which mlx-lm's switches sort; GPU kernels change below it


class Parts(Protocol):
    """The result of one call of a layer, computed part by part, each pair of (token, k) in one."""

    def add(
        self, place: int, pairs: npt.NDArray[np.int64], slots: npt.NDArray[np.uint32]
    ) -> mx.array | None:
        """Compute the pairs with these numbers on slots of a place.

        Returns what must be evaluated before those slots may change; None when it is done.
        """

    def result(self) -> mx.array:
        """Return `[..., K, D]`, unweighted, when each pair has been added once."""


class Compute(Protocol):
    """Computes a layer's experts on the slots of its places."""

    def whole(self, place: int, x: mx.array, slots: mx.array) -> mx.array:
        """Return what the experts in `slots[..., K]` make of `x[..., D]`: `[..., K, D]`."""

    def in_parts(self, x: mx.array, shape: tuple[int, ...]) -> Parts:
        """Begin a call whose pairs have the shape `[..., K]`."""

    def refresh(self) -> None:
        """Look at the slots again: they lie elsewhere, or are more or fewer."""


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
        self._matrices: list[Matrix | None] = []
        self.refresh()

    def refresh(self) -> None:
        """Look at the stacks again: they lie elsewhere, or have another number of slots."""
        self._matrices = [
            self._kernels.matrix(self.tensors(place), self._quantization) if self._kernels else None
            for place in range(len(self._places))
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


def computing(switch: Module, places: Sequence[Stacks], kernels: "CpuKernels | None") -> Compute:
    """Make a switch compute on any of `places`; return the fastest way to do so.

    That is the kernels for all an expert does, or the switch itself where they do not know its
    activation or a format.
    """
    linears = {}
    for name, projection in adapter.projections(switch).items():
        tensors = tuple(adapter.parameters(projection))
        quantization = adapter.quantization_of(projection)
        linears[name] = SlotLinear(places, name, tensors, quantization, kernels)
        adapter.replace_module(switch, name, linears[name])
    if kernels is not None:
        kind = adapter.activation_of(switch)
        fused = KernelCompute(kernels, linears, kind, len(places))
        if fused.possible:
            return fused
    return ModuleCompute(switch, tuple(linears.values()))


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


class KernelCompute:
    """The CPU kernels, which do all of an expert; results are there when a call returns."""

    def __init__(
        self,
        kernels: "CpuKernels",
        linears: Mapping[str, SlotLinear],
        kind: Activation | None,
        num_places: int,
    ) -> None:
        """Compute what `linears` and an activation do in the switch they are from."""
        self._kernels = kernels
        self._linears = linears
        self._kind = kind
        self._num_places = num_places
        self._experts: list[ExpertMatrices] = []
        self.possible = False
        self._look()

    def _look(self) -> None:
        """Look where the matrices of each place lie, and whether the kernels can read them."""
        found = [
            _expert_matrices(
                {name: linear.matrix(place) for name, linear in self._linears.items()}, self._kind
            )
            for place in range(self._num_places)
        ]
        self._experts = [experts for experts in found if experts is not None]
        self.possible = len(self._experts) == self._num_places

    def refresh(self) -> None:
        """Look at the slots again: they lie elsewhere, or are more or fewer."""
        for linear in self._linears.values():
            linear.refresh()
        self._look()

    def whole(self, place: int, x: mx.array, slots: mx.array) -> mx.array:
        """Return what the experts in `slots[..., K]` make of `x[..., D]`: `[..., K, D]`."""
        return self._kernels.experts(self._experts[place], x, slots)

    def in_parts(self, x: mx.array, shape: tuple[int, ...]) -> Parts:
        """Begin a call whose pairs have the shape `[..., K]`."""
        width = self._experts[0].down.num_rows
        return _KernelParts(self._experts, self._kernels.expert_results(x, shape, width))


class _KernelParts:
    """Parts that are written where they belong in the result."""

    def __init__(self, experts: Sequence["ExpertMatrices"], results: "ExpertResults") -> None:
        self._experts = experts
        self._results = results

    def add(self, place: int, pairs: npt.NDArray[np.int64], slots: npt.NDArray[np.uint32]) -> None:
        self._results.add(self._experts[place], pairs, slots)

    def result(self) -> mx.array:
        return self._results.array()


class ModuleCompute:
    """A switch module of mlx-lm; its projections are told which place to compute on."""

    def __init__(self, switch: Module, linears: Sequence[SlotLinear]) -> None:
        self._switch = switch
        self._linears = linears

    def whole(self, place: int, x: mx.array, slots: mx.array) -> mx.array:
        """Return what the experts in `slots[..., K]` make of `x[..., D]`: `[..., K, D]`."""
        for linear in self._linears:
            linear.place = place
        return cast(mx.array, self._switch(x, slots))

    def in_parts(self, x: mx.array, shape: tuple[int, ...]) -> Parts:
        """Begin a call whose pairs have the shape `[..., K]`."""
        return _ModuleParts(self, x, shape)

    def refresh(self) -> None:
        """Look at the slots again: they lie elsewhere, or are more or fewer."""
        for linear in self._linears:
            linear.refresh()


class _ModuleParts:
    """Parts that MLX computes by itself and puts in order in the end."""

    def __init__(self, compute: ModuleCompute, x: mx.array, shape: tuple[int, ...]) -> None:
        self._compute = compute
        self._tokens = x.reshape(-1, x.shape[-1])
        self._shape = shape
        self._results: list[mx.array] = []
        self._positions: list[npt.NDArray[np.int64]] = []

    def add(
        self, place: int, pairs: npt.NDArray[np.int64], slots: npt.NDArray[np.uint32]
    ) -> mx.array:
        num_pairs = len(self._tokens) * self._shape[-1]
        which = _at_least(pairs.size, min(num_pairs, _SORTED_FROM))
        if len(self._tokens) == 1:
            y = self._compute.whole(place, self._tokens, mx.array(slots[which][None]))[0]
        else:
            picked = self._tokens[mx.array(pairs[which] // self._shape[-1])]
            y = self._compute.whole(place, picked, mx.array(slots[which][:, None]))[:, 0]
        self._results.append(y[: pairs.size])
        self._positions.append(pairs)
        return self._results[-1]

    def result(self) -> mx.array:
        order = np.argsort(np.concatenate(self._positions))
        return mx.concatenate(self._results)[mx.array(order)].reshape(*self._shape, -1)


def _at_least(size: int, num_pairs: int) -> npt.NDArray[np.int64]:
    """Return the numbers below `size`, on a GPU repeated up to `num_pairs`.

    A small part must take the kernel that its whole call takes: kernels differ in the order they
    sum in, and are chosen by the number of pairs. The CPU has one, and nothing to repeat for.
    """
    numbers = np.arange(size)
    if mx.default_device() == mx.Device(mx.cpu) or size >= num_pairs:
        return numbers
    return np.resize(numbers, num_pairs)
