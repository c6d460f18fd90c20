"""What the gateway sees of requests: how long each part of them takes, and how they end."""

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from ..messages import Cancel, Failed, FailureKind, Finished, Generate, Piece, ToolCall
from .backend import Watched

# the bounds that vLLM's histograms have: boards and alerts made for them fit
_FIRST_TOKEN_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_NEXT_TOKEN_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0),
)
_REQUEST_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_TOKENS = tuple(float(step * 10**power) for power in range(6) for step in (1, 2, 5))

# how an answer ended, in vLLM's words
_ENDS = {"stop": "stop", "tools": "stop", "length": "length", "context": "length"}


class Distribution:
    """A histogram: how many values were at or below each of `bounds`, and their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.total = 0.0
        self._counts = [0] * (len(bounds) + 1)

    def add(self, value: float, times: int = 1) -> None:
        """Count a value, `times` over."""
        self._counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    @property
    def cumulative(self) -> list[int]:
        """How many values were at or below each bound, and how many there were, last."""
        return list(accumulate(self._counts))


@dataclass
class _UnderWay:
    """When a request was submitted, and when the last token of its answer came."""

    submitted_s: float
    last_token_s: float | None = None


class RequestMetrics:
    """Distributions of what requests took, and counts of how they ended. One thread.

    `ended` has vLLM's reasons: stop, length, abort (the client has gone), error; `failed` has the
    errors by kind.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.first_token_s = Distribution(_FIRST_TOKEN_S)
        self.next_token_s = Distribution(_NEXT_TOKEN_S)
        self.whole_s = Distribution(_REQUEST_S)
        self.queue_s = Distribution(_REQUEST_S)
        self.prefill_s = Distribution(_REQUEST_S)
        self.decode_s = Distribution(_REQUEST_S)
        self.prompt_tokens = Distribution(_TOKENS)
        self.generation_tokens = Distribution(_TOKENS)
        self.ended = dict.fromkeys(("stop", "length", "abort", "error"), 0)
        self.failed: dict[FailureKind, int] = dict.fromkeys(
            ("invalid", "context_length", "overloaded", "unavailable", "internal"), 0
        )
        self._clock = clock
        self._under_way: dict[int, _UnderWay] = {}

    @property
    def num_under_way(self) -> int:
        """Requests that were submitted and have not ended."""
        return len(self._under_way)

    def observe(self, wanted: Generate, event: Watched) -> None:
        """Take in what happens to a request; see `Backend.watch`."""
        if isinstance(event, Piece):
            if event.num_tokens > 0:
                self._token(wanted.request, event.num_tokens)
        elif isinstance(event, ToolCall):
            self._token(wanted.request, 0)
        elif isinstance(event, Generate):
            self._under_way[wanted.request] = _UnderWay(self._clock())
        elif isinstance(event, Finished):
            self._finish(wanted.request, event)
        elif isinstance(event, Failed):
            self._under_way.pop(wanted.request, None)
            self.failed[event.kind] += 1
            self.ended["error"] += 1
        elif isinstance(event, Cancel):
            self._under_way.pop(wanted.request, None)
            self.ended["abort"] += 1

    def _token(self, request: int, num_tokens: int) -> None:
        """Note that tokens came; those of a tool call, which nobody counts, are 0."""
        under_way = self._under_way.get(request)
        if under_way is None:
            return
        now = self._clock()
        if under_way.last_token_s is None:
            self.first_token_s.add(now - under_way.submitted_s)
        elif num_tokens:
            self.next_token_s.add((now - under_way.last_token_s) / num_tokens, num_tokens)
        under_way.last_token_s = now

    def _finish(self, request: int, end: Finished) -> None:
        under_way = self._under_way.pop(request, None)
        if under_way is not None:
            self.whole_s.add(self._clock() - under_way.submitted_s)
        self.queue_s.add(end.queue_s)
        self.prefill_s.add(end.prefill_s)
        self.decode_s.add(end.decode_s)
        self.prompt_tokens.add(end.prompt_tokens)
        self.generation_tokens.add(end.completion_tokens)
        self.ended[_ENDS[end.reason]] += 1
