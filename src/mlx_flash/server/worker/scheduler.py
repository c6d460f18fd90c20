"""Decides, step by step, whose prompt is computed and who generates, within the memory for it."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ...engine.prompt_store import PromptStore
from ...errors import MLXFlashError
from ...streaming.tokens import TokenizerWrapper
from ..messages import Event, Failed, FailureKind, Prefilled, Started
from .batch import (
    Batch,
    Broken,
    Drawn,
    Left,
    Prefill,
    PromptBegun,
    Sequences,
    can_batch,
)
from .limits import Limits
from .one_by_one import OneByOne, SoloPrefill
from .scoring import scored
from .sequence import Answering

_log = logging.getLogger(__name__)

_SAVE_AFTER_S = 60.0


class Scheduler:
    """The answers that wait and those under way. One thread only, but for `counts`."""

    def __init__(
        self,
        model: Any,
        tokenizer: TokenizerWrapper,
        limits: Limits,
        store: PromptStore,
        send: Callable[[Sequence[Event]], None],
    ) -> None:
        """`send` is handed what there is to tell after each step."""
        self._model = model
        self._tokenizer = tokenizer
        self._limits = limits
        self._store = store
        self._send = send
        self._waiting: deque[Answering] = deque()
        self._running: dict[int, Answering] = {}
        self._prefill: tuple[Answering, PromptBegun] | None = None
        self._scoring: tuple[Answering, Iterator[list[Event]]] | None = None
        together = can_batch(model)
        self._begin_prompt: Callable[..., PromptBegun] = Prefill if together else SoloPrefill
        self._batch: Sequences = Batch(model) if together else OneByOne(model)
        self._unsaved_since: float | None = None
        self.prompt_tokens = 0
        self.prefilled_tokens = 0
        self.cached_tokens = 0
        self.generation_tokens = 0

    @property
    def idle(self) -> bool:
        """Whether there is nothing to compute."""
        return not (self._waiting or self._running or self._prefill or self._scoring)

    @property
    def counts(self) -> tuple[int, int]:
        """How many answers are under way, and how many wait."""
        under_way = len(self._running) + bool(self._prefill) + bool(self._scoring)
        return under_way, len(self._waiting)

    @property
    def kv_bytes(self) -> int:
        """Bytes of prompt cache of the answers under way."""
        prefill = self._prefill
        return self._batch.kv_bytes + (prefill[1].kv_bytes if prefill else 0)

    @property
    def remembered_bytes(self) -> int:
        """Bytes of the prompts that are kept for later."""
        return self._store.num_bytes

    def add(self, answering: Answering) -> None:
        """Let an answer wait its turn."""
        self._waiting.append(answering)

    def cancel(self, request: int) -> None:
        """Forget an answer; what was computed of it is kept for one that begins the same."""
        self._waiting = deque(one for one in self._waiting if one.key != request)
        if self._scoring and self._scoring[0].key == request:
            self._scoring = None
        if self._prefill and self._prefill[0].key == request:
            _, prefill = self._prefill
            self._prefill = None
            self._keep(prefill.leave())
        if self._running.pop(request, None) is not None:
            self._keep(self._batch.leave(request))

    def step(self) -> None:
        """Draw a token for each answer under way, then compute a part of the next prompt.

        A prompt of one part joins in the same step: it waits for one step of others, not three.
        """
        events: list[Event] = []
        self._make_room()
        for one in self._batch.step():
            events += self._take(one)
        self._send(events)
        if self._prefill is None and self._scoring is None:
            self._send(self._surviving(self._begin))
        self._send(self._surviving(self._advance))

    def rest(self) -> None:
        """Do, while there is nothing to compute, what takes time: keep prompts on disk."""
        since = self._unsaved_since
        if since is not None and time.monotonic() - since > _SAVE_AFTER_S:
            self.save()

    def save(self) -> None:
        """Keep on disk what was computed."""
        self._store.save()
        self._unsaved_since = None

    def _take(self, one: Drawn | Broken) -> list[Event]:
        """Return what there is to tell of a step for one sequence."""
        answering = self._running[one.key]
        if isinstance(one, Broken):
            del self._running[one.key]
            return [_failed(one.key, one.error)]
        self.generation_tokens += 1
        try:
            events, reason = answering.add(one.token, one.logprobs, self._tokenizer)
            if reason is None:
                return events
            events += answering.end(reason)
        except Exception as error:  # noqa: BLE001 - what one answer says is no trouble of others
            events = [_failed(one.key, error)]
        del self._running[one.key]
        self._keep(self._batch.leave(one.key))
        return events

    def _keep(self, left: Left) -> None:
        self._store.put(left.tokens, left.cache)
        self._store.shrink(max(0, self._limits.kv_bytes - max(self._needed(), self.kv_bytes)))
        self._unsaved_since = time.monotonic()

    def _needed(self, *more: Answering) -> int:
        """Return the bytes of all that is under way at its next step, with `more` beside it."""
        under_way = [*self._running.values(), *more]
        under_way += [begun[0] for begun in (self._prefill, self._scoring) if begun]
        longest = max((len(one.tokens) for one in under_way), default=0)
        return self._limits.needed_bytes(len(under_way), longest)

    def _make_room(self) -> None:
        """Interrupt the latest answers until the next step of the others fits."""
        while (needed := self._needed()) > self._limits.kv_bytes and self.counts[0] > 1:
            if self._prefill is not None:
                latest, prefill = self._prefill
                self._prefill = None
                self._keep(prefill.leave())
            else:
                latest = max(self._running.values(), key=lambda one: one.begun_s or 0.0)
                del self._running[latest.key]
                self._keep(self._batch.leave(latest.key))
            latest.interrupted()
            self._waiting.appendleft(latest)
        self._store.shrink(max(0, self._limits.kv_bytes - needed))

    def _surviving(self, action: Callable[[], list[Event]]) -> list[Event]:
        """Return what an action has to tell, or that the request it was about failed."""
        try:
            return action()
        except Exception as error:  # noqa: BLE001 - one prompt's trouble is not the others'
            begun = self._prefill or self._scoring
            self._scoring = self._prefill = None
            answering = begun[0] if begun else self._waiting.popleft()
            self._running.pop(answering.key, None)
            return [_failed(answering.key, error)]

    def _advance(self) -> list[Event]:
        """Compute a part of the prompt that was begun; return what there is to tell."""
        if self._scoring is not None:
            return self._score(*self._scoring)
        if self._prefill is not None:
            return self._compute(*self._prefill)
        return []

    def _begin(self) -> list[Event]:
        """Begin the answer that waits longest, if it fits."""
        if not self._waiting or len(self._running) >= self._limits.max_batch:
            return []
        answering = self._waiting[0]
        needed = self._needed(answering)
        if self._running and needed > self._limits.kv_bytes:
            return []
        if answering.wanted.echo and answering.begun_s is None:
            answering.begun_s = time.monotonic()
            self._store.shrink(max(0, self._limits.kv_bytes - needed))
            self._waiting.popleft()
            self._scoring = (answering, scored(self._model, self._tokenizer, answering))
            return [Started(answering.key, 0)]
        found = self._store.find(answering.tokens)
        self._store.shrink(max(0, self._limits.kv_bytes - needed))  # it may be what was found
        prefill = self._begin_prompt(
            self._model,
            answering.key,
            answering.tokens,
            Left(*found) if found else None,
            answering.draw,
            answering.processors,
        )
        self._waiting.popleft()
        self._prefill = (answering, prefill)
        if answering.counted:
            return []
        answering.counted = True
        answering.begun_s = answering.begun_s or time.monotonic()
        answering.cached_tokens = prefill.done
        self.prompt_tokens += prefill.total
        self.cached_tokens += prefill.done
        return [] if answering.wanted.echo else [Started(answering.key, prefill.done)]

    def _compute(self, answering: Answering, prefill: PromptBegun) -> list[Event]:
        """Compute the next part of a prompt; after the last, the answer is under way."""
        events: list[Event] = []
        if not prefill.ready:
            limits, done = self._limits, prefill.done
            prefill.step(limits.shared_step if self._running else limits.prefill_step)
            self.prefilled_tokens += prefill.done - done
            events.append(Prefilled(answering.key, prefill.done, prefill.total))
            if prefill.ready and not self._store.trims(prefill.total + answering.max_tokens):
                self._keep(prefill.leave())
        if prefill.ready:
            self._batch.join(prefill)
            self._prefill = None
            self._running[answering.key] = answering
        return events

    def _score(self, answering: Answering, scoring: Iterator[list[Event]]) -> list[Event]:
        """Go on with the log-probabilities of a prompt that is echoed; then begin its answer."""
        events = next(scoring, None)
        if events is not None:
            return events
        events = answering.end("length") if answering.max_tokens == 0 else []
        self._scoring = None
        if answering.max_tokens > 0:
            self._waiting.appendleft(answering)
        return events


def _failed(request: int, error: Exception) -> Failed:
    """Return what a client is told of an error; one that is not ours is logged with its trace."""
    kind: FailureKind = "internal"
    if isinstance(error, MLXFlashError):
        _log.warning("request %d failed: %s", request, error)
        return Failed(request, kind, str(error))
    _log.error("request %d failed", request, exc_info=error)
    return Failed(request, kind, "the answer could not be computed; the server's log says more.")
