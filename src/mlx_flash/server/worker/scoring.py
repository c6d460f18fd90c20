"""Prompts that are echoed, with the log-probabilities of their tokens."""

from collections.abc import Iterator
from typing import Any

import mlx.core as mx

from ...streaming.tokens import TokenizerWrapper
from ..messages import Event, Piece, TokenLogprob
from .batch import prompt_logprobs
from .sequence import Answering, token_logprob

_STEP = 32


def scored(model: Any, tokenizer: TokenizerWrapper, answering: Answering) -> Iterator[list[Event]]:
    """Yield the pieces of a prompt, with log-probabilities where they are wanted."""
    tokens, top = answering.tokens, answering.wanted.top_logprobs
    if top is None:
        text = str(tokenizer.decode(tokens))
        yield [Piece(answering.key, "prompt", text, 0)]
        return
    before: mx.array | None = None
    done = 0
    for logprobs in prompt_logprobs(model, tokens, _STEP):
        part = tokens[done : done + len(logprobs)]
        of_part: list[TokenLogprob] = []
        for place, token in enumerate(part):
            of_part.append(token_logprob(token, before, top, tokenizer))
            before = logprobs[place]
        done += len(part)
        text = "".join(one.text for one in of_part)
        yield [Piece(answering.key, "prompt", text, 0, of_part)]
