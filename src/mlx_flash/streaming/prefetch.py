"""Reads experts ahead: the next layer's router is asked what it would pick now."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module

from ..telemetry.counters import StreamCounters

if TYPE_CHECKING:
    from .switch import StreamedSwitch

_MAX_TOKENS = 4  # of a call: more ask for most experts anyway
_TRIAL, _LEAST_PRECISION = 256, 0.4  # prefetched experts after which fewer hits end it


class Guess(Exception):
    """Raised instead of computing by a switch that is asked what its router would pick."""

    def __init__(self, indices: mx.array) -> None:
        super().__init__()
        self.indices = indices


class Prefetcher:
    """Guesses what the next streamed layer will ask for, from what this layer is given.

    It runs the block that holds the next layer's experts as far as the experts: whatever routing
    the model has, its own code decides. Ends itself when it is wrong too often, or the block does
    not take this layer's input; `why_off` then says so.
    """

    def __init__(self, counters: StreamCounters) -> None:
        self._counters = counters
        self.why_off = ""

    def between(
        self, block: Module | None, switch: "StreamedSwitch"
    ) -> Callable[[mx.array], None] | None:
        """Return what to call with a layer's input so that `switch`, in `block`, reads ahead.

        None where there is no such block.
        """
        if block is None:
            self.why_off = "this model's routers are not in one block with their experts"
            return None

        def guess_next(x: mx.array) -> None:
            if not self.why_off and x.size // x.shape[-1] <= _MAX_TOKENS:
                start = time.perf_counter()
                self._guess(block, switch, x)
                self._counters.prefetch_s += time.perf_counter() - start

        return guess_next

    def _guess(self, block: Any, switch: "StreamedSwitch", x: mx.array) -> None:
        switch.guessing = True
        try:
            block(x if x.ndim == 3 else x.reshape(1, -1, x.shape[-1]))
        except Guess as guess:
            switch.layer_stream.prefetch(np.unique(np.asarray(guess.indices)).tolist())
        except ValueError as error:
            self.why_off = f"the next layer's router does not take this layer's input: {error}"
        finally:
            switch.guessing = False
        tried = self._counters
        if tried.prefetched >= _TRIAL and tried.prefetch_precision < _LEAST_PRECISION:
            self.why_off = (
                f"only {tried.prefetch_precision:.0%} of the experts read ahead were used"
            )
