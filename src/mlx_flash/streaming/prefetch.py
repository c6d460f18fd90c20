"""Reads experts ahead: the next layer's router is asked what it would pick now."""

import time
from collections.abc import Callable
from functools import cache
from threading import get_ident
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx.nn.layers.base import Module

from ..telemetry.counters import StreamCounters

if TYPE_CHECKING:
    from .switch import StreamedSwitch

_MAX_TOKENS = 4  # of a call: more ask for most experts anyway
_VOTES, _NEEDED_VOTES = 8, 7  # 87% of such guesses are right, of all that are made 57%
_NOISE = 0.5  # of the root mean square of the input: about as much as a layer changes it
_TRIAL, _LEAST_PRECISION = 256, 0.4  # prefetched experts after which fewer hits end it
_REVIEW_ASKS = 1024  # after so many it is looked at whether guessing pays
_HIDDEN = 0.25  # of the time of reading what is missing, that guesses hide: measured


class Guess(Exception):
    """Raised instead of computing by a switch that is asked what its router would pick."""

    def __init__(self, indices: mx.array) -> None:
        super().__init__()
        self.indices = indices


class Prefetcher:
    """Guesses what the next streamed layer will ask for, from what this layer is given.

    It runs the block that holds the next layer's experts as far as the experts: whatever routing
    the model has, its own code decides. The input is there once as it is and several times with
    noise: experts that are picked whatever the noise are those that are picked in the end. Ends
    itself when it is wrong too often, or the block does not take this layer's input; `why_off` then
    says so.
    """

    def __init__(self, counters: StreamCounters) -> None:
        self._counters = counters
        self._reviewed = counters.snapshot()
        self._guess_s = 0.0
        self.pays = True
        self.why_off = ""

    @property
    def why_idle(self) -> str:
        """Why nothing is read ahead now; empty where what is missing would be."""
        if self.why_off or self.pays:
            return self.why_off
        return "did not pay: guessing takes longer than the reading that it would hide"

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
            self._review()
            if self.pays and not self.why_off and x.size // x.shape[-1] <= _MAX_TOKENS:
                start = time.perf_counter()
                self._guess(block, switch, x)
                self._counters.guesses += 1
                self._counters.prefetch_s += time.perf_counter() - start

        return guess_next

    def _review(self) -> None:
        """Now and then, see whether guessing takes less time than it hides."""
        recent = self._counters.since(self._reviewed)
        if recent.asks < _REVIEW_ASKS:
            return
        self._reviewed = self._counters.snapshot()
        if recent.guesses:
            self._guess_s = recent.prefetch_s / recent.guesses
        self.pays = _HIDDEN * recent.busy_s > self._guess_s * recent.calls

    def _guess(self, block: Any, switch: "StreamedSwitch", x: mx.array) -> None:
        switch.guessing = get_ident()
        try:
            block(_with_noise(x))
        except Guess as guess:
            switch.layer_stream.prefetch(_elected(np.asarray(guess.indices)))
        except ValueError as error:
            self.why_off = f"the next layer's router does not take this layer's input: {error}"
        finally:
            switch.guessing = None
        tried = self._counters
        if tried.prefetched >= _TRIAL and tried.prefetch_precision < _LEAST_PRECISION:
            self.why_off = (
                f"only {tried.prefetch_precision:.0%} of the experts read ahead were used"
            )


def _with_noise(x: mx.array) -> mx.array:
    """Return each token of `x[..., D]` _VOTES times, all but once with noise: `[1, T * _VOTES, D]`.

    The noise is always the same: what is read ahead depends on the text alone. `x` is evaluated.
    """
    tokens = np.asarray(x if x.dtype == mx.float32 else x.astype(mx.float32)).reshape(
        -1, 1, x.shape[-1]
    )
    scale = _NOISE * np.sqrt(np.mean(np.square(tokens), axis=-1, keepdims=True))
    noisy = (tokens + scale * _noise(x.shape[-1])).reshape(1, -1, x.shape[-1])
    return mx.array(noisy) if x.dtype == mx.float32 else mx.array(noisy).astype(x.dtype)


@cache
def _noise(width: int) -> npt.NDArray[np.float32]:
    values = np.random.default_rng(0).standard_normal((_VOTES, width)).astype(np.float32)
    values[0] = 0
    return values


def _elected(indices: npt.NDArray[Any]) -> list[int]:
    """Return the experts that got enough votes from any token, those with the most votes first."""
    ballots = indices.reshape(-1, _VOTES * indices.shape[-1])
    most: dict[int, int] = {}
    for ballot in ballots:
        experts, votes = np.unique(ballot, return_counts=True)
        for expert, count in zip(experts.tolist(), votes.tolist(), strict=True):
            most[expert] = max(count, most.get(expert, 0))
    elected = [expert for expert, count in most.items() if count >= _NEEDED_VOTES]
    return sorted(elected, key=lambda expert: -most[expert])
