"""Routing traces as arrays: which experts each layer asked for, token by token.

`trace_file.py` keeps them on disk.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import TraceError


@dataclass(frozen=True)
class Routing:
    """What is traced: a model by its name, the experts of each streamed layer, and top-k.

    `expert_bytes` are of one expert of each layer on disk.
    """

    model: str
    num_experts: tuple[int, ...]
    expert_bytes: tuple[int, ...]
    top_k: int

    def same_shape(self, other: "Routing") -> bool:
        """Return whether two models have as many layers and experts, and the same top-k."""
        return (self.num_experts, self.top_k) == (other.num_experts, other.top_k)


@dataclass(frozen=True)
class Trace:
    """Routing of T tokens through L layers, K experts each.

    `experts[T, L, K]` are expert numbers in the router's order, `weights[T, L, K]` what the router
    gave them, NaN where that is not known. `steps` are the tokens of each forward pass, in order:
    1 for a decoded token. `domains` are (label, tokens), in order.
    """

    routing: Routing
    experts: npt.NDArray[np.uint16]
    weights: npt.NDArray[np.float16]
    steps: npt.NDArray[np.int64]
    domains: tuple[tuple[str, int], ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of the trace."""
        return len(self.experts)

    def by_domain(self) -> dict[str, "Trace"]:
        """Return the trace of each label; what lies apart under one label is joined."""
        of_token = self._domain_of_tokens()
        labels = np.array([label for label, _ in self.domains])
        return {
            name: self._picked(labels[of_token] == name) for name in dict.fromkeys(labels.tolist())
        }

    def slice(self, start: int, end: int) -> "Trace":
        """Return the tokens from `start` to `end`."""
        tokens = np.arange(self.num_tokens)
        return self._picked((tokens >= start) & (tokens < end))

    def _domain_of_tokens(self) -> npt.NDArray[np.int64]:
        """Return for each token the number of its entry in `domains`."""
        return np.repeat(np.arange(len(self.domains)), [tokens for _, tokens in self.domains])

    def _picked(self, picked: npt.NDArray[np.bool_]) -> "Trace":
        """Return the tokens that a mask names."""
        of_step = np.repeat(np.arange(len(self.steps)), self.steps)
        steps = np.bincount(of_step[picked], minlength=len(self.steps))
        counts = np.bincount(self._domain_of_tokens()[picked], minlength=len(self.domains))
        domains = [
            (label, int(count))
            for (label, _), count in zip(self.domains, counts, strict=True)
            if count
        ]
        experts, weights = self.experts[picked], self.weights[picked]
        return Trace(self.routing, experts, weights, steps[steps > 0], tuple(domains))


def joined(traces: Sequence[Trace]) -> Trace:
    """Return traces of one model, one behind the other.

    Raises:
        TraceError: they are of models of another shape.
    """
    first = traces[0]
    for other in traces[1:]:
        if not first.routing.same_shape(other.routing):
            raise TraceError(
                f"traces of {first.routing.model} and {other.routing.model} do not go together: "
                "their models differ in layers, experts or top-k."
            )
    return Trace(
        first.routing,
        np.concatenate([trace.experts for trace in traces]),
        np.concatenate([trace.weights for trace in traces]),
        np.concatenate([trace.steps for trace in traces]),
        merged(domain for trace in traces for domain in trace.domains),
    )


def merged(domains: Iterable[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
    """Return domains with neighbours of one label made one."""
    merged: list[tuple[str, int]] = []
    for label, tokens in domains:
        if merged and merged[-1][0] == label:
            tokens += merged.pop()[1]
        merged.append((label, tokens))
    return tuple(merged)
