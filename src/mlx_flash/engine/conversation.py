"""A conversation with a model: its messages, and the KV cache that carries over from turn to turn.

Knows nothing of terminals: the same conversation may be held over a network.
"""

import contextlib
from bisect import bisect_left
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import mlx.core as mx
from mlx_lm import stream_generate
from mlx_lm.generate import GenerationResponse

from ..errors import PromptError
from ..streaming.tokens import (
    REASONING,
    AnswerSplitter,
    Message,
    TokenizerWrapper,
    encode_messages,
    first_state,
    sampler,
)
from ..telemetry.counters import StreamCounters
from .conversation_cache import ConversationCache
from .generate import Generated, GenerateOptions, Progress, check_text
from .load import LoadedModel
from .turns import MemoryNow, TurnStats

_ANSWER_SHARE = 4  # one part in so many of the context is kept free for the answer
_KEPT_SHARE = 2  # and of a full one, one part is kept: the next turns need not drop any


@dataclass(frozen=True)
class Piece(Progress):
    """A part of an answer as it comes, and where the generation stands; `thought` comes before."""

    thought: bool


class _Stopped(Exception):
    """Raised between two parts of a prompt when the answer is not wanted any more."""


class Conversation:
    """A conversation with a loaded model, of at most `context_tokens` tokens in the KV cache.

    `messages` are a user's and the model's in turn, without the `system` message. Where they
    outgrow the context, the oldest turns are left out of what the model is given, the system
    message never; `num_left_out` says how many turns that are. `last` is what the last answer took,
    `session` all of them. One thread uses it; `stop` may be called from any, and from a
    signal handler.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        tokenizer: TokenizerWrapper,
        options: GenerateOptions,
        context_tokens: int,
        system: str = "",
    ) -> None:
        """Begin without messages; `options` hold for each answer, a seed for all together."""
        self.loaded = loaded
        self.context_tokens = context_tokens
        self.system = system
        self.messages: list[Message] = []
        self.num_left_out = 0
        self.last = self.session = TurnStats()
        self.finish_reason = ""
        self._tokenizer = tokenizer
        self._options = options
        self._cache = ConversationCache(loaded.model)
        self._stopped = False
        if options.seed is not None:
            mx.random.seed(options.seed)

    def say(self, text: str) -> Generator[Piece, None, None]:
        """Return the answer to a message, piece by piece; it is computed as it is taken.

        What was answered until the iterator ends, fails or is closed stays in the conversation. A
        message to which the model has not said a token does not. Afterwards `finish_reason` is
        "stop", "length" or "interrupted".

        Raises:
            PromptError: at once, when the message is empty, no text or too long; while iterating:
            ExpertReadError: an expert could not be read; the conversation can go on.
        """
        check_text(text)
        if not text.strip():
            raise PromptError("the message is empty: give some text.")
        prompt = self._fit({"role": "user", "content": text})
        self._stopped = False
        return self._answer(text, prompt)

    def stop(self) -> None:
        """End the answer after the token, or the part of the prompt, that is being computed."""
        self._stopped = True

    def clear(self) -> None:
        """Forget all messages; the system message stays."""
        self.restore(self.system, [])
        self._cache.clear()

    def restore(self, system: str, messages: Sequence[Message]) -> None:
        """Go on with other messages: a user's and the model's in turn, the model's last."""
        self.system, self.messages, self.num_left_out = system, list(messages), 0

    def memory(self) -> MemoryNow:
        """Return the memory that the model and this conversation take now."""
        return MemoryNow.of(self.loaded, self._cache.num_bytes)

    def _fit(self, message: Message) -> list[int]:
        """Return the tokens to give the model, without the oldest turns if they are too many."""
        left_out, prompt = self.num_left_out, self._encode(message, self.num_left_out)
        reserve = min(self._options.max_tokens, self.context_tokens // _ANSWER_SHARE)
        if len(prompt) + reserve > self.context_tokens:
            choices = range(left_out, len(self.messages) // 2)
            goal = self.context_tokens // _KEPT_SHARE
            left_out += bisect_left(choices, -goal, key=lambda n: -len(self._encode(message, n)))
            prompt = self._encode(message, left_out)
        if len(prompt) >= self.context_tokens:
            raise PromptError(
                f"the message takes {len(prompt)} tokens, and the context holds "
                f"{self.context_tokens}: shorten it."
            )
        self.num_left_out = left_out
        return prompt

    def _encode(self, message: Message, left_out: int) -> list[int]:
        """Return the tokens of the conversation with one more message, without its first turns."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        sent = [*first, *self.messages[2 * left_out :], message]
        return encode_messages(self._tokenizer, sent)

    def _answer(self, text: str, prompt: list[int]) -> Generator[Piece, None, None]:
        """Yield the answer to `text`, and note it and what it took at the end, however it ends."""
        stream = self.loaded.stream
        found = Generated(stream.counters if stream else StreamCounters())
        splitter = AnswerSplitter(self._tokenizer, first_state(self._tokenizer, prompt))
        parts: list[tuple[str, str]] = []
        rest = self._cache.begin(prompt)
        try:
            with contextlib.closing(self._responses(rest)) as responses:
                for response in responses:
                    found.add(response)
                    new = splitter.add(response.text)
                    new += splitter.rest() if response.finish_reason else []
                    for state, part in new:
                        if not part:
                            continue
                        parts.append((state, part))
                        thought = state == REASONING
                        yield Piece(part, len(found.tokens), found.tps, found.counted(), thought)
        finally:
            self.finish_reason = found.finish_reason
            if found.tokens:
                self._note(text, [*parts, *splitter.rest()])
                self.last = TurnStats.of(len(prompt), len(prompt) - len(rest), found)
                self.session = self.session.plus(self.last)

    def _responses(self, rest: list[int]) -> Generator[GenerationResponse, None, None]:
        """Yield the tokens after the cache's and the `rest` of a prompt; the cache then has all.

        mlx-lm has given a token to the model by the time that it yields it.
        """
        cached = len(self._cache.tokens)
        computed = 0

        def on_prompt(done: int, of: int) -> None:
            nonlocal computed
            computed = done
            if done < of and self._stopped:
                raise _Stopped

        responses = stream_generate(
            self.loaded.model,
            self._tokenizer,
            rest,
            max_tokens=min(self._options.max_tokens, self.context_tokens - cached - len(rest)),
            sampler=sampler(self._options.temperature),
            prefill_step_size=self.loaded.prefill_step,
            prompt_cache=self._cache.entries,
            prompt_progress_callback=on_prompt,
        )
        new = rest
        try:
            with contextlib.closing(responses):
                for response in responses:
                    self._cache.tokens += [*new, int(response.token)]
                    new = []
                    yield response
                    if self._stopped:
                        return
        except _Stopped:
            self._cache.tokens += rest[:computed]
        except GeneratorExit:  # nobody takes the next token: mlx-lm is between two
            raise
        except BaseException:  # a call was cut short: some layers have seen its tokens, some not
            self._cache.clear()
            raise

    def _note(self, text: str, parts: Sequence[tuple[str, str]]) -> None:
        """Add a turn to the messages."""
        answer = {"content": "", "reasoning_content": ""}
        for state, part in parts:
            answer["reasoning_content" if state == REASONING else "content"] += part
        if not answer["reasoning_content"]:
            del answer["reasoning_content"]
        self.messages.append({"role": "user", "content": text})
        self.messages.append({"role": "assistant", **answer})
