"""One answer under way in the worker: its prompt, how it is drawn, and what it said so far."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import mlx.core as mx
import numpy as np

from ...engine.reply_text import Called, ReplyText, Said, called
from ...engine.sampling import Draw, Processor, Sampler
from ...streaming.tokens import TokenizerWrapper
from ..messages import Event, Finished, Generate, Piece, TokenLogprob, ToolCall
from .grammar import processor_of

FinishReason = Literal["stop", "length", "context", "tools"]


@dataclass
class Answering:
    """A request that was accepted. `tokens` are its prompt and what was drawn for it so far.

    `forced_call`: the answer is one call of a tool, as JSON, and no text. `counted`: its prompt was
    begun, and does not count again when the answer goes on after an interruption.
    """

    wanted: Generate
    tokens: list[int]
    prompt_tokens: int
    max_tokens: int
    reply: ReplyText
    draw: Draw
    processors: list[Processor]
    forced_call: bool
    context_tokens: int
    arrived_s: float = field(default_factory=time.monotonic)
    begun_s: float | None = None
    answered_s: float | None = None
    counted: bool = False
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    calls: int = 0
    _call_text: str = ""
    _logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def key(self) -> int:
        """The number of the request."""
        return self.wanted.request

    def interrupted(self) -> None:
        """Be ready to draw on from where `tokens` end."""
        if isinstance(self.draw, Sampler):
            self.draw.position = self.completion_tokens

    def add(
        self, token: int, logprobs: mx.array, tokenizer: TokenizerWrapper
    ) -> tuple[list[Event], FinishReason | None]:
        """Take in a token that was drawn; return what to tell, and why the answer ends, if it does.

        Once it ends the events of `end` follow.
        """
        if self.answered_s is None:
            self.answered_s = time.monotonic()
        self.tokens.append(token)
        self.completion_tokens += 1
        if token in tokenizer.eos_token_ids:
            return [], "stop"
        self.reasoning_tokens += self.reply.in_reasoning
        if self.wanted.top_logprobs is not None:
            top = self.wanted.top_logprobs
            self._logprobs.append(token_logprob(token, logprobs, top, tokenizer))
        events = list(self._events(self.reply.add(token), 1))
        return events, self._reason()

    def _reason(self) -> FinishReason | None:
        if self.reply.stop_text is not None:
            return "stop"
        if self.calls and not self.wanted.parallel_tool_calls:
            return "tools"
        grammar = processor_of(self.processors)
        if grammar is not None and grammar.complete:
            return "stop"
        if self.completion_tokens >= self.max_tokens:
            return "length"
        return "context" if len(self.tokens) >= self.context_tokens else None

    def end(self, reason: FinishReason) -> list[Event]:
        """Return the last events of the answer."""
        events = list(self._events(self.reply.end(), 0))
        if self.forced_call:
            events += self._forced()
        if self._logprobs:
            events.append(Piece(self.key, "text", "", 0, self._taken()))
        if self.calls and reason == "stop":
            reason = "tools"
        now = time.monotonic()
        begun, answered = self.begun_s or now, self.answered_s or now
        finished = Finished(
            request=self.key,
            reason=reason,
            stop_text=self.reply.stop_text,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            completion_tokens=self.completion_tokens,
            reasoning_tokens=self.reasoning_tokens,
            queue_s=begun - self.arrived_s,
            prefill_s=answered - begun,
            decode_s=now - answered,
        )
        return [*events, finished]

    def _events(self, said: Iterator[Said | Called], num_tokens: int) -> Iterator[Event]:
        for one in said:
            if isinstance(one, Called):
                if self.wanted.parallel_tool_calls or not self.calls:
                    self.calls += 1
                    yield ToolCall(self.key, one.name, one.arguments)
            elif self.forced_call and one.kind == "text":
                self._call_text += one.text
            else:
                yield Piece(self.key, one.kind, one.text, num_tokens, self._taken())

    def _forced(self) -> Iterator[Event]:
        """Yield the call that the grammar made the answer be; what was cut off is text."""
        try:
            call = called(json.loads(self._call_text))
        except (ValueError, KeyError, TypeError, AttributeError):
            yield Piece(self.key, "text", self._call_text, 0)
            return
        self.calls += 1
        yield ToolCall(self.key, call.name, call.arguments)

    def _taken(self) -> list[TokenLogprob]:
        taken, self._logprobs = self._logprobs, []
        return taken


def token_logprob(
    token: int, logprobs: mx.array | None, top: int, tokenizer: TokenizerWrapper
) -> TokenLogprob:
    """Return a token with its log-probability in `logprobs` `[V]`, and the `top` likeliest."""
    text, data = token_text(token, tokenizer)
    if logprobs is None:
        return TokenLogprob(token, text, data, None, [])
    best: list[tuple[int, str, bytes, float]] = []
    if top > 0:
        values = np.asarray(logprobs.astype(mx.float32))
        for place in np.argsort(-values, kind="stable")[:top].tolist():
            value = max(float(values[place]), _LOWEST)
            best.append((place, *token_text(place, tokenizer), value))
    return TokenLogprob(token, text, data, max(float(logprobs[token]), _LOWEST), best)


_LOWEST = -9999.0  # JSON has no minus infinity


def token_text(token: int, tokenizer: TokenizerWrapper) -> tuple[str, bytes]:
    """Return the text of a token by itself, and its bytes, which may be half a character."""
    text = str(tokenizer.decode([token]))
    if "\ufffd" not in text:
        return text, text.encode()
    piece = tokenizer.convert_ids_to_tokens(token)
    return text, _bytes_of(piece) or text.encode()


def _bytes_of(piece: Any) -> bytes | None:
    """Return the bytes that a byte-level piece stands for; None when it is no such piece."""
    if not isinstance(piece, str):
        return None
    if piece.startswith("<0x") and len(piece) == 6:
        return bytes([int(piece[3:5], 16)])
    try:
        return bytes(_BYTES[letter] for letter in piece)
    except KeyError:
        return None


def _byte_letters() -> dict[str, int]:
    """Return the byte that each letter of a byte-level vocabulary stands for (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_letters()
