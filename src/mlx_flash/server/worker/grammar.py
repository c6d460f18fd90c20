"""Answers that follow a grammar: which tokens may come next, by llguidance."""

import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import llguidance.hf
import llguidance.numpy
import mlx.core as mx
import numpy as np
from llguidance import LLMatcher, LLTokenizer

from ...engine.sampling import Processor
from ...errors import PromptError
from ...streaming.tokens import TokenizerWrapper
from ..messages import Grammar

_SOME_SPACE: Any = {"whitespace_pattern": r"[ \n\r\t]{0,32}"}  # some never end it
_NO_SPACE: Any = {"whitespace_flexible": False}
_ANY_OBJECT = '{"type": "object"}'
_MAX_LETTERS = 256 * 1024
_STACK_BYTES = 256 * 1024 * 1024  # rules that lead to rules take 6 KB each, of 8 letters or more


class Grammars:
    """The grammars for one tokenizer, which is prepared when the first is asked for."""

    def __init__(self, tokenizer: TokenizerWrapper, vocabulary: int) -> None:
        """`vocabulary` is the number of logits, which may be more than there are tokens."""
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._prepared: LLTokenizer | None = None

    def processor(
        self, grammar: Grammar, prompt_tokens: int, after: Sequence[int] = ()
    ) -> "GrammarProcessor":
        """Return what keeps one answer to a grammar; from the tokens `after` on, if there are any.

        Raises:
            PromptError: it is no grammar, or one that cannot be followed.
        """
        if len(grammar.text) > _MAX_LETTERS:
            raise PromptError(f"the schema is longer than {_MAX_LETTERS} letters: shorten it.")
        text = _text_of(grammar)
        if self._prepared is None:
            try:
                self._prepared = llguidance.hf.from_tokenizer(
                    self._tokenizer._tokenizer, eos_token=sorted(self._tokenizer.eos_token_ids)
                )
            except ValueError as error:
                raise PromptError("this model's tokenizer cannot follow a grammar.") from error
        matcher = _compiled(self._prepared, text)
        if matcher.is_error():
            raise PromptError(f"the schema cannot be followed: {_line(matcher.get_error())}.")
        return GrammarProcessor(
            matcher, self._prepared.vocab_size, self._vocabulary, prompt_tokens, after
        )


def _compiled(tokenizer: LLTokenizer, text: str) -> LLMatcher:
    """Return what follows a grammar, which is compiled where the stack is deep enough for it."""
    before = threading.stack_size(_STACK_BYTES)
    with ThreadPoolExecutor(1) as deep:
        try:
            compiling = deep.submit(LLMatcher, tokenizer, text)
        finally:
            threading.stack_size(before)
        return compiling.result()


def _text_of(grammar: Grammar) -> str:
    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.text)
    if grammar.kind == "lark":
        return LLMatcher.grammar_from_lark(grammar.text)
    schema = _ANY_OBJECT if grammar.kind == "json" else grammar.text
    try:
        json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise PromptError("the schema is not valid JSON: send a JSON schema.") from error
    return LLMatcher.grammar_from_json_schema(schema, _NO_SPACE if grammar.compact else _SOME_SPACE)


def _line(text: str) -> str:
    """Return an error without the state of the parser that follows it."""
    return " ".join(text.split("<state>")[0].split())[:300].rstrip(".")


class GrammarProcessor:
    """Forbids the tokens that the grammar has no place for. A `Processor`."""

    def __init__(
        self,
        matcher: Any,
        known: int,
        vocabulary: int,
        prompt_tokens: int,
        after: Sequence[int],
    ) -> None:
        self._matcher = matcher
        self._known = known
        self._vocabulary = vocabulary
        self._seen = prompt_tokens
        self._after = list(after)
        self._tail: list[int] = []

    @property
    def complete(self) -> bool:
        """Whether nothing can follow any more, as the grammar has it."""
        return bool(self._matcher.is_stopped() and not self._matcher.is_error())

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """Return the logits `[1, V]` with what is forbidden at minus infinity.

        Raises:
            PromptError: the grammar cannot be followed any further.
        """
        self._consume(np.asarray(tokens[self._seen :]).tolist())
        self._seen = int(tokens.size)
        if self._after:
            return logits
        if self._matcher.is_error():
            why = _line(self._matcher.get_error())
            raise PromptError(f"the schema cannot be followed any further: {why}.")
        mask = llguidance.numpy.allocate_token_bitmask(1, self._known)
        llguidance.numpy.fill_next_token_bitmask(self._matcher, mask, 0)
        bits = np.unpackbits(mask.view(np.uint8)[0], bitorder="little")[: self._known]
        allowed = np.zeros(self._vocabulary, np.bool_)
        allowed[: min(self._known, self._vocabulary)] = bits[: self._vocabulary]
        lowest = mx.array(-float("inf"), logits.dtype)
        return mx.where(mx.array(allowed)[None], logits, lowest)

    def _consume(self, tokens: list[int]) -> None:
        for token in tokens:
            if self._after:
                self._tail = [*self._tail, token][-len(self._after) :]
                if self._tail == self._after:
                    self._after = []
            elif not self._matcher.is_stopped():
                self._matcher.consume_token(token)


def processor_of(processors: Sequence[Processor]) -> GrammarProcessor | None:
    """Return the grammar among a sequence's processors, if there is one."""
    return next((one for one in processors if isinstance(one, GrammarProcessor)), None)
