"""Measures predictors of the next layer's experts, all on the same text, by what they recall."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..engine.load import LoadedModel
from ..engine.trace import WINDOW_TOKENS, routing_of
from ..errors import OptionError
from ..predict.maps import Floats, ShadowMLP, residual_map
from ..predict.tables import CoOccurrence, PreviousToken
from ..streaming.install import Router, record_routing, router_of
from ..streaming.tokens import read_tokens

Experts = npt.NDArray[Any]
_LEARNED_AT_ONCE = 16  # tokens of a step of the network


@dataclass(frozen=True)
class Routed:
    """A text's way through a model: `inputs[L][T, D]` of the experts, and `experts[T, L, K]`."""

    inputs: list[Floats]
    experts: Experts


@dataclass(frozen=True)
class PredictorRow:
    """What share of the next layer's top-k is among the best k guesses, and among the best 2k.

    Per layer that is guessed, from the second on; NaN where 2k guesses cannot be had.
    """

    predictor: str
    recall_k: float
    recall_2k: float
    by_layer: list[float]
    by_layer_2k: list[float]


@dataclass(frozen=True)
class PredictorReport:
    """All predictors, fitted on `train_tokens` and measured on `test_tokens` of other text."""

    model: str
    top_k: int
    train_tokens: int
    test_tokens: int
    rows: list[PredictorRow]

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)


def routed(loaded: LoadedModel, tokens: Sequence[int]) -> Routed:
    """Return the way of tokens through a streamed model, read in windows."""
    assert loaded.stream is not None
    inputs: list[list[Floats]] = [[] for _ in loaded.layouts]
    experts: list[Experts] = []

    def on_input(layer: int, x: mx.array) -> None:
        inputs[layer].append(np.array(x.astype(mx.float32)).reshape(-1, x.shape[-1]))

    record_routing(
        loaded.model, loaded.stream, lambda picked, weights: experts.append(picked), on_input
    )
    try:
        for start in range(0, len(tokens), WINDOW_TOKENS):
            part = tokens[start : start + WINDOW_TOKENS]
            for _ in read_tokens(loaded.model, part, loaded.prefill_step):
                pass
    finally:
        record_routing(loaded.model, loaded.stream, None)
    return Routed([np.concatenate(parts) for parts in inputs], np.concatenate(experts))


def compare_predictors(
    loaded: LoadedModel,
    train: Sequence[int],
    test: Sequence[int],
    on_row: Callable[[PredictorRow], None] = lambda row: None,
) -> PredictorReport:
    """Fit on `train`, measure on `test`: one protocol for all.

    A predictor is given what a layer is given and asks for, and names experts of the next layer.
    The true router of that layer on its true input is the control: its recall is 100%.

    Raises:
        OptionError: the model has one layer of experts, or routers that cannot be asked.
    """
    routing = routing_of(loaded)
    fitted, held_out = routed(loaded, train), routed(loaded, test)
    layers = range(1, len(routing.num_experts))
    routers = {layer: _router_pair(loaded, layer) for layer in layers}
    if not routers:
        raise OptionError("the model has one layer of experts: there is no next one to guess.")
    rows = []
    for name, guesses in _predictors(routing.num_experts, routers, fitted, held_out):
        recalls = [_recalls(guesses(layer), held_out.experts[:, layer]) for layer in layers]
        by_layer, by_layer_2k = ([float(pair[n]) for pair in recalls] for n in (0, 1))
        means = float(np.mean(by_layer)), float(np.mean(by_layer_2k))
        rows.append(PredictorRow(name, *means, by_layer, by_layer_2k))
        on_row(rows[-1])
    return PredictorReport(routing.model, routing.top_k, len(train), len(test), rows)


Guesses = tuple[Experts, Experts]
"""The best k and the best 2k experts of each token: `[T, k]`, `[T, 2k]`."""


def _predictors(
    num_experts: Sequence[int],
    routers: dict[int, tuple[Router, Router]],
    fitted: Routed,
    held_out: Routed,
) -> Iterator[tuple[str, Callable[[int], Guesses]]]:
    """Yield each predictor: its name, and its guesses for the experts of a layer."""

    def ask(layer: int, x: Floats) -> Guesses:
        narrow, wide = routers[layer]
        return narrow(mx.array(x)), wide(mx.array(x))

    def mapped(layer: int) -> Guesses:
        before = held_out.inputs[layer - 1]
        change = residual_map(fitted.inputs[layer - 1], fitted.inputs[layer])
        return ask(layer, before + before @ change)

    yield "true router (control)", lambda layer: ask(layer, held_out.inputs[layer])
    yield "next router", lambda layer: ask(layer, held_out.inputs[layer - 1])
    yield "next router on a fitted residual", mapped
    yield (
        "shadow MLP, online",
        lambda layer: _shadowed(layer, num_experts[layer], fitted, held_out),
    )
    for hops in (1, 2, 3):
        table = CoOccurrence(num_experts, hops)
        guesses = _tabled(table, fitted, held_out)
        yield f"co-occurrence, {hops} hop{'s' if hops > 1 else ''}", guesses.__getitem__
    yield "previous token", _tabled(PreviousToken(num_experts), fitted, held_out).__getitem__


def _router_pair(loaded: LoadedModel, layer: int) -> tuple[Router, Router]:
    """Return the router of a layer as it is, and one that picks twice as many."""
    narrow = router_of(loaded.model, layer)
    wide = router_of(loaded.model, layer, wide=True)
    if narrow is None or wide is None:
        raise OptionError("this model's routers are not in one block with their experts.")
    return narrow, wide


def _shadowed(layer: int, num_experts: int, fitted: Routed, held_out: Routed) -> Guesses:
    """Return the guesses of a network that has read the text to fit, and learns on."""
    network = ShadowMLP(fitted.inputs[layer - 1].shape[-1], num_experts)
    scores = []
    for text in (fitted, held_out):
        for start in range(0, len(text.experts), _LEARNED_AT_ONCE):
            part = slice(start, start + _LEARNED_AT_ONCE)
            x = text.inputs[layer - 1][part]
            if text is held_out:
                scores.append(network.scores(x))
            network.learn(x, text.experts[part, layer])
    return _best(np.concatenate(scores), fitted.experts.shape[-1])


def _tabled(
    table: PreviousToken | CoOccurrence, fitted: Routed, held_out: Routed
) -> dict[int, Guesses]:
    """Return the guesses of a table that has seen the text to fit, and learns on, per layer."""
    num_layers, top_k = held_out.experts.shape[1:]
    scores: dict[int, list[npt.NDArray[np.float64]]] = {n: [] for n in range(1, num_layers)}
    for text in (fitted, held_out):
        for token in text.experts.tolist():
            for layer, asked in enumerate(token):
                table.observe(layer, asked)
                if text is held_out and layer + 1 < num_layers:
                    scores[layer + 1].append(table.scores(layer, asked).copy())
    return {layer: _best(np.stack(of_layer), top_k) for layer, of_layer in scores.items()}


def _best(scores: npt.NDArray[Any], top_k: int) -> Guesses:
    order = np.argsort(-scores, axis=-1, kind="stable")
    return order[:, :top_k], order[:, : 2 * top_k]


def _recalls(guesses: Guesses, asked: Experts) -> tuple[float, float]:
    """Return which share of what was asked for is in the k and in the 2k guesses."""
    few, many = (
        float((asked[:, :, None] == guess[:, None, :]).any(axis=2).mean()) for guess in guesses
    )
    return few, many if guesses[1].shape[1] == 2 * asked.shape[1] else float("nan")
