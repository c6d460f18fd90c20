"""Guesses from hidden states: maps from one layer's input of its experts to what the next asks for.

Inputs are `[T, D]` float32. They are fitted or trained here and cost a product of matrices each.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def residual_map(x: Floats, following: Floats, ridge: float = 1.0) -> Floats:
    """Return the `[D, D]` map `W` for which `x + x @ W` is nearest to the next layer's input.

    Least squares in closed form; `ridge` times the mean square of `x` keeps it small where there is
    little to learn from.
    """
    square = x.T.astype(np.float64) @ x
    square += ridge * np.trace(square) / len(square) * np.eye(len(square)) * 1e-2
    mapped = np.linalg.solve(square, x.T.astype(np.float64) @ (following - x))
    return np.asarray(mapped, np.float32)


class ShadowMLP:
    """A small network that learns online which experts the next layer asks for.

    One hidden layer of `width`, logistic loss per expert, Adam (Kingma and Ba, 2014).
    """

    _RATE, _BETA1, _BETA2 = 2e-3, 0.9, 0.99

    def __init__(self, inputs: int, num_experts: int, width: int = 64, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self._weights: list[Floats] = [
            (rng.standard_normal((inputs, width)) / np.sqrt(inputs)).astype(np.float32),
            np.zeros((1, width), np.float32),
            np.zeros((width, num_experts), np.float32),
            np.zeros((1, num_experts), np.float32),
        ]
        self._first = [np.zeros_like(weight) for weight in self._weights]
        self._second = [np.zeros_like(weight) for weight in self._weights]
        self._steps = 0

    def scores(self, x: Floats) -> Floats:
        """Return the logits of each expert `[T, E]`."""
        return self._forward(_normed(x))[1]

    def learn(self, x: Floats, experts: npt.NDArray[Any]) -> None:
        """Take one step on inputs `[T, D]` and what the next layer asked for, `[T, K]`."""
        x = _normed(x)
        hidden, logits = self._forward(x)
        target = np.zeros_like(logits)
        np.put_along_axis(target, experts.astype(np.int64), 1.0, axis=1)
        error = (1.0 / (1.0 + np.exp(-logits)) - target) / len(x)
        back = (error @ self._weights[2].T) * (hidden > 0)
        gradients = [x.T @ back, back.sum(0)[None], hidden.T @ error, error.sum(0)[None]]
        self._steps += 1
        for n, gradient in enumerate(gradients):
            self._first[n] += (1 - self._BETA1) * (gradient - self._first[n])
            self._second[n] += (1 - self._BETA2) * (gradient**2 - self._second[n])
            first = self._first[n] / (1 - self._BETA1**self._steps)
            second = self._second[n] / (1 - self._BETA2**self._steps)
            self._weights[n] -= self._RATE * first / (np.sqrt(second) + 1e-8)

    def _forward(self, x: Floats) -> tuple[Floats, Floats]:
        hidden = np.maximum(0.0, x @ self._weights[0] + self._weights[1])
        return hidden, hidden @ self._weights[2] + self._weights[3]


def _normed(x: Floats) -> Floats:
    """Return inputs of mean square 1."""
    scale = np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)
    return np.asarray(x / scale, np.float32)
