"""Records a model's routing while it runs: which experts each layer asks for, with what weights."""

from collections.abc import Callable
from threading import get_ident
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx.nn.layers.base import Module

from ..errors import UnsupportedModelError

if TYPE_CHECKING:
    from .switch import StreamedSwitch

OnPass = Callable[[npt.NDArray[Any], npt.NDArray[Any]], None]
"""Is handed each forward pass: experts `[T, L, K]`, and weights `[T, L, K]`, NaN if not known."""

OnInput = Callable[[int, mx.array], None]
"""Is handed what the experts of each layer are given, `[..., D]`, in the order of layers."""

_WEIGHED_TOKENS = 256  # whose weights are asked for at once: it takes K * D numbers a token


class Recorder:
    """Collects the routing of one forward pass after the other.

    Weights are the derivative of the block's result by the results of its experts: whatever routing
    the model has, its own code says how it weighs. They are not known where the block's result is
    not that weighted sum (a projection or a norm follows), or it takes other input than its
    experts. They take a second run of the block without its experts.
    """

    def __init__(
        self, num_layers: int, on_pass: OnPass, on_input: OnInput = lambda layer, x: None
    ) -> None:
        self.blocks: dict[int, Module] = {}
        self._on_input = on_input
        self._num_layers = num_layers
        self._on_pass = on_pass
        self._experts: list[npt.NDArray[Any]] = []
        self._weights: list[npt.NDArray[Any]] = []

    def record(self, switch: "StreamedSwitch", layer: int, x: mx.array, indices: mx.array) -> None:
        """Note what `switch`, which is layer number `layer`, was asked for.

        Raises:
            UnsupportedModelError: layers do not follow each other, each once a pass.
        """
        experts = np.asarray(indices).reshape(-1, indices.shape[-1])
        if layer == 0:  # a new pass: one that failed is forgotten
            self._experts.clear()
            self._weights.clear()
        if layer != len(self._experts) or (layer and experts.shape != self._experts[0].shape):
            raise UnsupportedModelError(
                "this model does not ask for as many experts of each layer, once per token: its "
                "routing cannot be recorded."
            )
        self._on_input(layer, x)
        self._experts.append(experts)
        self._weights.append(self._weights_of(switch, layer, x, experts))
        if layer == self._num_layers - 1:
            self._on_pass(np.stack(self._experts, 1), np.stack(self._weights, 1))

    def _weights_of(
        self, switch: "StreamedSwitch", layer: int, x: mx.array, experts: npt.NDArray[Any]
    ) -> npt.NDArray[Any]:
        block = self.blocks.get(layer)
        if block is None:
            return np.full(experts.shape, np.nan)
        tokens = x.reshape(1, -1, x.shape[-1])
        parts = [
            router_weights(block, switch, tokens[:, start : start + _WEIGHED_TOKENS], part)
            for start, part in (
                (start, experts[start : start + _WEIGHED_TOKENS])
                for start in range(0, len(experts), _WEIGHED_TOKENS)
            )
        ]
        return np.concatenate(parts)


def router_weights(
    block: Any, switch: "StreamedSwitch", x: mx.array, experts: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """Return by what `block` multiplies the results of `experts[T, K]` for `x[1, T, D]`.

    NaN where that cannot be told.
    """
    top_k, width = experts.shape[-1], x.shape[-1]
    unknown = np.full(experts.shape, np.nan)
    if top_k > width:
        return unknown
    picked: list[mx.array] = []

    def block_of(results: mx.array) -> mx.array:
        def answer(indices: mx.array) -> mx.array:
            picked.append(indices)
            return results.reshape(*indices.shape, width)

        switch.answer, switch.answering = answer, get_ident()
        try:
            y: mx.array = block(x)
            return y
        finally:
            switch.answering = switch.answer = None

    shape = (1, len(experts), top_k, width)
    units = mx.broadcast_to(mx.eye(top_k, width, dtype=x.dtype), shape)
    try:
        _, derivatives = mx.jvp(block_of, [mx.zeros(shape, x.dtype)], [units])
    except (ValueError, TypeError, RuntimeError):  # it takes other input, or returns no array
        return unknown
    found = np.asarray(derivatives[0].astype(mx.float32)).reshape(len(experts), width)
    same = np.array_equal(np.asarray(picked[0]).reshape(experts.shape), experts)
    return found[:, :top_k] if same and not found[:, top_k:].any() else unknown
