"""How tokens are drawn: samplers with a seed of their own, and penalties over what was said."""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import mlx.core as mx
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p, make_repetition_penalty

Draw = Callable[[mx.array], mx.array]
"""Draws a token for each row of log-probabilities `[B, V]`: `[B]`."""

Processor = Callable[[mx.array, mx.array], mx.array]
"""Changes logits `[1, V]`, given the tokens so far, those of the prompt included."""

_GREEDY_BELOW = 1e-4  # where dividing by the temperature leaves the range of float32
_REPETITION_TOKENS = 64
_STRIDE = 0x9E3779B97F4A7C15  # odd, far from any small number: seeds 1 and 2 share no keys


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How to draw. The values given change nothing, except a `temperature`; 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None


def greedy(logprobs: mx.array) -> mx.array:
    """Draw the likeliest token. One function for all, so that rows are drawn together."""
    return mx.argmax(logprobs, axis=-1)


class Sampler:
    """Draws the tokens of one sequence: the same seed, the same tokens, whoever runs beside.

    The token at a position depends on the seed and the position alone: one that is drawn again,
    after an interruption, is the same.
    """

    def __init__(self, options: SamplingOptions, vocabulary: int) -> None:
        """Take a random seed when the options give none."""
        self._options = options
        self._vocabulary = vocabulary
        self._seed = secrets.randbits(64) if options.seed is None else options.seed
        self.position = 0

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Return a token for the only row."""
        options = self._options
        if 0 < options.top_p < 1:
            logprobs = apply_top_p(logprobs, options.top_p)
        if options.min_p > 0:
            logprobs = apply_min_p(logprobs, options.min_p)
        if 0 < options.top_k < self._vocabulary:
            logprobs = apply_top_k(logprobs, options.top_k)
        key = mx.random.key((self._seed + _STRIDE * self.position) % 2**64)
        self.position += 1
        return mx.random.categorical(logprobs * (1 / options.temperature), key=key)


def make_draw(options: SamplingOptions, vocabulary: int) -> Draw:
    """Return what draws for one sequence; all greedy ones share a function."""
    return greedy if options.temperature < _GREEDY_BELOW else Sampler(options, vocabulary)


def make_processors(
    options: SamplingOptions, prompt_tokens: int, vocabulary: int
) -> list[Processor]:
    """Return what changes the logits of one sequence; presence and frequency are of the answer."""
    processors: list[Processor] = []
    if bias := {token: value for token, value in options.logit_bias.items() if token < vocabulary}:
        processors.append(_bias(bias))
    if options.repetition_penalty != 1:
        processors.append(make_repetition_penalty(options.repetition_penalty, _REPETITION_TOKENS))
    if options.presence_penalty or options.frequency_penalty:
        processors.append(_penalties(options, prompt_tokens, vocabulary))
    return processors


def _bias(bias: Mapping[int, float]) -> Processor:
    tokens, values = mx.array(list(bias)), mx.array(list(bias.values()))

    def add(_: mx.array, logits: mx.array) -> mx.array:
        return logits.at[:, tokens].add(values.astype(logits.dtype))

    return add


def _penalties(options: SamplingOptions, prompt_tokens: int, vocabulary: int) -> Processor:
    def subtract(tokens: mx.array, logits: mx.array) -> mx.array:
        said = tokens[prompt_tokens:]
        if said.size == 0:
            return logits
        counts = mx.zeros(vocabulary, logits.dtype).at[said].add(1)
        penalty = options.frequency_penalty * counts + options.presence_penalty * (counts > 0)
        return logits - penalty[None]

    return subtract
