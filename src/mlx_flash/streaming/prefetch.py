"""Reads experts ahead: the next layer's router is asked what it would pick now."""

import time
from collections.abc import Callable, Sequence
from functools import cache
from threading import get_ident
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx.nn.layers.base import Module

from ..predict.tables import CoOccurrence, PreviousToken
from ..telemetry.counters import StreamCounters

if TYPE_CHECKING:
    from .switch import StreamedSwitch

GuessNext = Callable[[mx.array, Sequence[int]], None]
"""Is handed a layer's input `[..., D]` and the experts it asks for."""

_MAX_TOKENS = 4  # of a call: more ask for most experts anyway
_VOTES, _NEEDED_VOTES = 8, 7  # 87% of such guesses are right, of all that are made 57%
_SURE = 0.5  # of a table, to read an expert ahead
_NOISE = 0.5  # of the root mean square of the input: about as much as a layer changes it
_TRIAL, _LEAST_PRECISION = 256, 0.4  # prefetched experts after which fewer hits end it
_REVIEW_ASKS = 1024  # after so many it is looked at whether guessing pays
_HIDDEN = 0.25  # of the time of reading what is missing, that guesses hide: measured


class Guess(Exception):
    """Raised instead of computing by a switch that is asked what its router would pick."""

    def __init__(self, indices: mx.array) -> None:
        super().__init__()
        self.indices = indices


def picks(block: Any, switch: "StreamedSwitch", x: mx.array) -> npt.NDArray[Any]:
    """Return the experts `[..., K]` that `block` would ask `switch`, in it, for given `x[..., D]`.

    The block runs as far as its experts: whatever routing the model has, its own code decides.

    Raises:
        ValueError: the block does not take such input.
    """
    switch.guessing = get_ident()
    try:
        block(x)
    except Guess as guess:
        return np.asarray(guess.indices)
    finally:
        switch.guessing = None
    raise ValueError("it does not ask its experts")


class Prefetcher:
    """Guesses what the next streamed layer will ask for, while this layer waits or computes.

    By default the next layer's router is asked, about this layer's input as it is and several times
    with noise: experts that are picked whatever the noise are those that are picked in the end.
    Tables guess from expert numbers alone. Ends itself when it is wrong too often, or the
    next router does not take this layer's input; `why_off` then says so.
    """

    def __init__(
        self, counters: StreamCounters, predictor: str, num_experts: Sequence[int]
    ) -> None:
        self._counters = counters
        self._reviewed = counters.snapshot()
        self._guess_s = 0.0
        self._votes, self._needed = (_VOTES, _NEEDED_VOTES) if predictor == "votes" else (1, 1)
        self._table: PreviousToken | CoOccurrence | None = None
        if predictor == "previous":
            self._table = PreviousToken(num_experts)
        elif predictor == "co-occurrence":
            self._table = CoOccurrence(num_experts)
        self.pays = True
        self.why_off = ""

    @property
    def why_idle(self) -> str:
        """Why nothing is read ahead now; empty where what is missing would be."""
        if self.why_off or self.pays:
            return self.why_off
        return "did not pay: guessing takes longer than the reading that it would hide"

    def between(
        self, layer: int, block: Module | None, following: "StreamedSwitch | None"
    ) -> GuessNext | None:
        """Return what `layer` calls so that `following`, whose router is in `block`, reads ahead.

        None where there is nothing to guess, or no such block.
        """
        if self._table is None and following is not None and block is None:
            self.why_off = "this model's routers are not in one block with their experts"
        if following is None and self._table is None:
            return None

        def guess_next(x: mx.array, asked: Sequence[int]) -> None:
            if x.size // x.shape[-1] > _MAX_TOKENS:
                return
            self._review()
            start = time.perf_counter()
            if self._table is not None:
                self._table.observe(layer, asked)
            if following is not None and self.pays and not self.why_off:
                following.layer_stream.prefetch(self._guess(layer, block, following, x, asked))
                self._look_back()
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

    def _guess(
        self,
        layer: int,
        block: Any,
        following: "StreamedSwitch",
        x: mx.array,
        asked: Sequence[int],
    ) -> list[int]:
        """Return the experts that the next layer will ask for, the surest first."""
        if self._table is not None:
            scores = self._table.scores(layer, asked)
            sure = np.flatnonzero(scores >= _SURE)
            return [int(expert) for expert in sure[np.argsort(-scores[sure])][: len(asked)]]
        try:
            ballots = picks(block, following, _with_noise(x, self._votes))
        except ValueError as error:
            self.why_off = f"the next layer's router does not take this layer's input: {error}"
            return []
        return _elected(ballots, self._votes, self._needed)

    def _look_back(self) -> None:
        """End guessing that is wrong too often."""
        tried = self._counters
        if tried.prefetched >= _TRIAL and tried.prefetch_precision < _LEAST_PRECISION:
            self.why_off = (
                f"only {tried.prefetch_precision:.0%} of the experts read ahead were used"
            )


def _with_noise(x: mx.array, votes: int) -> mx.array:
    """Return each token of `x[..., D]` `votes` times, all but once with noise: `[1, T * votes, D]`.

    The noise is always the same: what is read ahead depends on the text alone. `x` is evaluated.
    """
    tokens = np.asarray(x if x.dtype == mx.float32 else x.astype(mx.float32)).reshape(
        -1, 1, x.shape[-1]
    )
    scale = _NOISE * np.sqrt(np.mean(np.square(tokens), axis=-1, keepdims=True))
    noisy = (tokens + scale * _noise(x.shape[-1])[:votes]).reshape(1, -1, x.shape[-1])
    return mx.array(noisy) if x.dtype == mx.float32 else mx.array(noisy).astype(x.dtype)


@cache
def _noise(width: int) -> npt.NDArray[np.float32]:
    values = np.random.default_rng(0).standard_normal((_VOTES, width)).astype(np.float32)
    values[0] = 0
    return values


def _elected(indices: npt.NDArray[Any], votes: int, needed: int) -> list[int]:
    """Return the experts that got enough votes from any token, those with the most votes first."""
    ballots = indices.reshape(-1, votes * indices.shape[-1])
    most: dict[int, int] = {}
    for ballot in ballots:
        experts, counts = np.unique(ballot, return_counts=True)
        for expert, count in zip(experts.tolist(), counts.tolist(), strict=True):
            most[expert] = max(count, most.get(expert, 0))
    elected = [expert for expert, count in most.items() if count >= needed]
    return sorted(elected, key=lambda expert: -most[expert])
