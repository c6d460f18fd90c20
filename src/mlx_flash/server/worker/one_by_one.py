"""Sequences computed one after the other, for models whose prompt caches cannot be joined.

Such are Llama 4's, in chunks, and DeepSeek V4.1's. What is here has the names of `batch`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ...engine.sampling import Draw, Processor
from ...streaming.adapter import new_cache
from .batch import Broken, Drawn, Left


class SoloPrefill:
    """The prompt of one sequence while it is computed, part by part. See `batch.Prefill`."""

    def __init__(
        self,
        model: Any,
        key: int,
        prompt: Sequence[int],
        left: Left | None,
        draw: Draw,
        processors: Sequence[Processor],
    ) -> None:
        """Begin after what is `left` of an earlier sequence, whose tokens begin the prompt."""
        self.key = key
        self.done = len(left.tokens) if left else 0
        self.total = len(prompt)
        assert self.done < self.total, "the last token of a prompt is computed last"
        self.prompt = list(prompt)
        self.cache = left.cache if left else new_cache(model)
        self.draw, self.processors = draw, list(processors)
        self._model = model

    @property
    def ready(self) -> bool:
        """Whether only the last token is left."""
        return self.done == self.total - 1

    def step(self, num_tokens: int) -> None:
        """Compute the next `num_tokens` of the prompt, the last one never."""
        part = self.prompt[self.done : min(self.done + num_tokens, self.total - 1)]
        self._model(mx.array([part]), cache=self.cache)
        mx.eval([entry.state for entry in self.cache])
        self.done += len(part)

    @property
    def kv_bytes(self) -> int:
        """Bytes of prompt cache."""
        return sum(int(entry.nbytes) for entry in self.cache)

    def leave(self) -> Left:
        """Return what was computed so far."""
        return Left(self.prompt[: self.done], self.cache)


@dataclass
class _Sequence:
    """A sequence: the tokens its cache holds, and the next one with its log-probabilities."""

    prefill: SoloPrefill
    tokens: list[int]
    token: int
    logprobs: mx.array


class OneByOne:
    """The sequences that are being generated, each by itself. One thread only."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._sequences: dict[int, _Sequence] = {}

    def __len__(self) -> int:
        return len(self._sequences)

    @property
    def kv_bytes(self) -> int:
        """Bytes of prompt cache of all sequences."""
        return sum(one.prefill.kv_bytes for one in self._sequences.values())

    def join(self, prefill: SoloPrefill) -> None:
        """Compute the last token of a prompt that is `ready`, and take the sequence in."""
        token, logprobs = self._next(prefill, prefill.prompt[:-1], prefill.prompt[-1])
        self._sequences[prefill.key] = _Sequence(prefill, prefill.prompt, token, logprobs)

    def step(self) -> list[Drawn | Broken]:
        """Draw a token for each sequence; a sequence that cannot go on leaves."""
        results: list[Drawn | Broken] = []
        for key, one in list(self._sequences.items()):
            drawn = Drawn(key, one.token, one.logprobs)
            try:
                token, logprobs = self._next(one.prefill, one.tokens, one.token)
            except Exception as error:  # noqa: BLE001 - reported as this sequence's end
                del self._sequences[key]
                results.append(Broken(key, error))
                continue
            one.tokens.append(one.token)
            one.token, one.logprobs = token, logprobs
            results.append(drawn)
        return results

    def leave(self, key: int) -> Left:
        """Remove a sequence and return what it leaves behind."""
        one = self._sequences.pop(key)
        return Left(one.tokens, one.prefill.cache)

    def _next(
        self, prefill: SoloPrefill, tokens: Sequence[int], token: int
    ) -> tuple[int, mx.array]:
        """Run a token through the model; return the next, drawn from `[V]`."""
        logits = self._model(mx.array([[token]]), cache=prefill.cache)[:, -1]
        if prefill.processors:
            context = mx.array([*tokens, token], mx.int32)
            for processor in prefill.processors:
                logits = processor(context, logits)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        drawn = prefill.draw(logprobs)
        mx.eval(drawn, logprobs, [entry.state for entry in prefill.cache])
        return int(np.asarray(drawn)[0]), logprobs[0]
