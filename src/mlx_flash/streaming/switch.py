"""The modules that stand in a model where mlx-lm's switch modules stood."""

from collections.abc import Callable, Iterable
from threading import get_ident

import mlx.core as mx
from mlx.nn.layers.base import Module

from .compute import Compute, KernelCompute, SlotLinear
from .layer_stream import SLOTS, LayerStream
from .prefetch import Guess


class ExpertTwin(Module):
    """Stands for a `SwitchGLU` or `SwitchMLP`: the same call, `(x, indices) -> y`, unweighted.

    It computes with the module it stands for, whose projections are `SlotLinear`s. What else
    hangs on that module (its activation, a norm) hangs on the twin under the same name.
    """

    def __init__(self, switch: Module, compute: Compute) -> None:
        super().__init__()
        _adopt(self, switch, {name for name in switch if isinstance(switch[name], SlotLinear)})
        self._compute: Compute
        object.__setattr__(self, "_compute", compute)  # no child: it has no weights of its own

    @property
    def fused(self) -> bool:
        """Whether the kernels do all of an expert in one call."""
        return isinstance(self._compute, KernelCompute)


class StreamedSwitch(ExpertTwin):
    """The twin of a switch whose experts are streamed.

    In the thread that is `guessing` it raises `Guess`; in the one that is `answering`, what
    `answer` returns stands in for the experts' results. Other threads get those.
    """

    def __init__(self, switch: Module, layer_stream: LayerStream) -> None:
        super().__init__(switch, layer_stream.compute)
        self.layer_stream = layer_stream
        self.guessing: int | None = None
        self.answering: int | None = None
        self.answer: Callable[[mx.array], mx.array] | None = None

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        """Return each token's `[..., K, D]` expert results, unweighted.

        Raises:
            ExpertReadError: an expert could not be read.
            UnsupportedModelError: inside a gradient.
        """
        if self.guessing == get_ident():
            raise Guess(indices)
        if self.answering == get_ident() and self.answer is not None:
            return self.answer(indices)
        y = self.layer_stream.run(x, indices)
        if (recorder := self.layer_stream.stream.recorder) is not None:
            recorder.record(self, self.layer_stream.layer, x, indices)
        return y


class ResidentSwitch(ExpertTwin):
    """The twin of a switch that has every expert in memory, on the CPU kernels."""

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        """Return each token's `[..., K, D]` expert results, unweighted."""
        return self._compute.whole(SLOTS, x, indices)


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
