"""Sequences computed together: the one module of the server that knows mlx-lm.

It drives the two halves of mlx-lm's `BatchGenerator` itself. A prompt is computed alone, so that no
padding is ever routed to experts; what is being generated runs as one batch, in which a step reads
the union of its experts once. When a step fails, it is tried again sequence by sequence: only those
whose experts cannot be read are lost.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
from mlx_lm.generate import GenerationBatch, PromptProcessingBatch, StopSequences
from mlx_lm.models.cache import make_prompt_cache

from ...engine.sampling import Draw, Processor, greedy

_ENDLESS = 1 << 40  # who calls counts the tokens
_NO_STOPS = StopSequences()


@dataclass(frozen=True)
class Drawn:
    """A token that was drawn for a sequence, from `logprobs` `[V]`."""

    key: int
    token: int
    logprobs: mx.array


@dataclass(frozen=True)
class Broken:
    """A sequence that could not be computed further, and is no longer in the batch."""

    key: int
    error: Exception


@dataclass(frozen=True)
class Left:
    """What a sequence leaves behind: the tokens that its prompt cache holds, and the cache."""

    tokens: list[int]
    cache: list[Any]


class PromptBegun(Protocol):
    """A prompt that is computed part by part: `Prefill`, or what stands for it."""

    key: int
    done: int
    total: int

    @property
    def ready(self) -> bool:
        """Whether only the last token is left."""

    @property
    def kv_bytes(self) -> int:
        """Bytes of prompt cache."""

    def step(self, num_tokens: int) -> None:
        """Compute the next tokens, the last one never."""

    def leave(self) -> Left:
        """Return what was computed so far."""


class Sequences(Protocol):
    """Sequences that are being generated: `Batch`, or what stands for it."""

    def __len__(self) -> int: ...

    @property
    def kv_bytes(self) -> int:
        """Bytes of prompt cache of all sequences."""

    def join(self, prefill: Any) -> None:
        """Take in a sequence whose prompt is `ready`."""

    def step(self) -> "list[Drawn | Broken]":
        """Draw a token for each sequence."""

    def leave(self, key: int) -> Left:
        """Remove a sequence and return what it leaves behind."""


def can_batch(model: Any) -> bool:
    """Return whether the model's prompt caches can be computed together."""
    return all(hasattr(entry, "merge") for entry in make_prompt_cache(model))


class Prefill:
    """The prompt of one sequence while it is computed, part by part."""

    def __init__(
        self,
        model: Any,
        key: int,
        prompt: Sequence[int],
        left: Left | None,
        draw: Draw,
        processors: Sequence[Processor],
    ) -> None:
        """Begin after what is `left` of an earlier sequence, whose tokens begin the prompt.

        Its cache is taken over layer by layer: no more than one of them is there twice.
        """
        self.key = key
        self.done = len(left.tokens) if left else 0
        self.total = len(prompt)
        assert self.done < self.total, "the last token of a prompt is computed last"
        self._rest = list(prompt[self.done :])
        self._batch = PromptProcessingBatch(
            model,
            [key],
            [left.cache if left else make_prompt_cache(model)],
            [list(left.tokens) if left else []],
            samplers=[draw],
            fallback_sampler=greedy,
            logits_processors=[list(processors)],
            stop_sequences=[_NO_STOPS],
            max_tokens=[_ENDLESS],
        )
        if left:
            for place, entry in enumerate(self._batch.prompt_cache):
                mx.eval(entry.state)
                left.cache[place] = None

    @property
    def ready(self) -> bool:
        """Whether only the last token is left, which `Batch.join` computes."""
        return len(self._rest) == 1

    def step(self, num_tokens: int) -> None:
        """Compute the next `num_tokens` of the prompt, the last one never."""
        part = self._rest[: min(num_tokens, len(self._rest) - 1)]
        self._batch.prefill_step_size = max(1, len(part))
        self._batch.prompt([part])
        self._rest = self._rest[len(part) :]
        self.done += len(part)

    @property
    def kv_bytes(self) -> int:
        """Bytes of prompt cache."""
        return sum(int(entry.nbytes) for entry in self._batch.prompt_cache)

    def leave(self) -> Left:
        """Return what was computed so far; a cache that holds nothing cannot be taken out."""
        tokens = list(self._batch.tokens[0])
        return Left(tokens, _taken_out(self._batch, 0) if tokens else [])

    def generation(self) -> GenerationBatch:
        """Compute the last token of the prompt; return the batch of one that goes on from it."""
        generation: GenerationBatch = self._batch.generate([self._rest])
        return generation


class Batch:
    """The sequences that are being generated. One thread only."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._batch = GenerationBatch.empty(model, greedy)

    def __len__(self) -> int:
        return len(self._batch)

    @property
    def kv_bytes(self) -> int:
        """Bytes of prompt cache of all sequences."""
        return sum(int(entry.nbytes) for entry in self._batch.prompt_cache)

    def join(self, prefill: Prefill) -> None:
        """Compute the last token of a prompt that is `ready`, and take the sequence in.

        What is drawn comes with the next step.
        """
        self._batch.extend(prefill.generation())

    def step(self) -> list[Drawn | Broken]:
        """Draw a token for each sequence; a sequence that cannot go on leaves the batch."""
        if not len(self._batch):
            return []
        try:
            drawn = self._batch.next()
        except Exception:  # noqa: BLE001 - whatever it was, it may concern one sequence alone
            return self._try_one_by_one()
        return [Drawn(one.uid, one.token, one.logprobs) for one in drawn]

    def leave(self, key: int) -> Left:
        """Remove a sequence and return what it leaves behind."""
        place = self._batch.uids.index(key)
        left = Left(list(self._batch.tokens[place]), _taken_out(self._batch, place))
        self._batch.filter([n for n in range(len(self._batch)) if n != place])
        return left

    def _try_one_by_one(self) -> list[Drawn | Broken]:
        """Take the batch apart after a failed step and put together who can go on.

        What the step was to report was drawn in the one before.
        """
        failed: Any = self._batch
        self._batch = GenerationBatch.empty(self._model, greedy)
        results: list[Drawn | Broken] = []
        pending = failed._current_tokens.tolist()
        for place, key in enumerate(failed.uids):
            try:
                self._batch.extend(self._again(failed, place, pending[place]))
            except Exception as error:  # noqa: BLE001 - reported as this sequence's end
                results.append(Broken(key, error))
            else:
                results.append(Drawn(key, pending[place], failed._current_logprobs[place]))
        return results

    def _again(self, failed: Any, place: int, pending: int) -> GenerationBatch:
        """Return a batch of the one sequence at `place` of a failed one, with its step repeated.

        In some layers its cache holds the token of the failed step already. Where that cannot be
        trimmed, as in a recurrent layer, the whole sequence is computed anew.
        """
        rest = [pending]
        tokens, cache = list(failed.tokens[place]), failed.extract_cache(place)
        if all(entry.is_trimmable() for entry in cache):
            for entry in cache:
                entry.trim(entry.size() - len(tokens))
        else:
            rest, tokens, cache = [*tokens, *rest], [], make_prompt_cache(self._model)
        alone = PromptProcessingBatch(
            self._model,
            [failed.uids[place]],
            [cache],
            [tokens],
            samplers=[failed.samplers[place]],
            fallback_sampler=greedy,
            logits_processors=[failed.logits_processors[place]],
            stop_sequences=[_NO_STOPS],
            max_tokens=[_ENDLESS],
        )
        again: GenerationBatch = alone.generate([rest])
        return again


def _taken_out(batch: Any, place: int) -> list[Any]:
    """Return the prompt cache of one sequence, in memory of its own.

    Evaluated: a copy that is yet to be made keeps the caches of the whole batch.
    """
    cache: list[Any] = batch.extract_cache(place)
    mx.eval([entry.state for entry in cache])
    return cache


def prompt_logprobs(model: Any, tokens: Sequence[int], step: int) -> Iterator[mx.array]:
    """Yield the log-probabilities `[n, V]` after each part of `step` tokens, computed alone."""
    cache = make_prompt_cache(model)
    for start in range(0, len(tokens), step):
        logits = model(mx.array(list(tokens[start : start + step]))[None], cache=cache)[0]
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        mx.eval(logprobs, [entry.state for entry in cache])
        yield logprobs
