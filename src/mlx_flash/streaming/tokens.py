"""The seam to mlx-lm's tokens: text made into tokens, and tokens run through a model or drawn.

It touches names of mlx-lm beyond its public API, as `adapter.py` does.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx_lm.generate import TextStateMachine, generate_step, make_text_state_machine
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import make_sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper as TokenizerWrapper
from mlx_lm.utils import load_config, load_tokenizer

from ..errors import UnsupportedModelError
from .adapter import ANYTHING, one_line

Message = Mapping[str, str]
"""A message of a conversation: its `role` (system, user or assistant) and its `content`."""

NORMAL, REASONING, TOOL = "normal", "reasoning", "tool"
"""States of mlx-lm's text machine: between no marks, those of thoughts, those of a tool call."""

_GREEDY_BELOW = 1e-4


def open_tokenizer(folder: Path) -> TokenizerWrapper:
    """Return the tokenizer in `folder`, told which tokens end a text.

    Raises:
        UnsupportedModelError: there is none, or transformers cannot load it.
    """
    try:
        eos_tokens = load_config(folder).get("eos_token_id")
        tokenizer: TokenizerWrapper = load_tokenizer(
            folder, {"trust_remote_code": False}, eos_token_ids=eos_tokens
        )
    except ANYTHING as error:
        raise UnsupportedModelError(
            f"cannot load a tokenizer from {folder}: {one_line(error)}"
        ) from error
    return tokenizer


def encode_prompt(tokenizer: TokenizerWrapper, text: str, chat_template: bool) -> list[int]:
    """Return the tokens of a prompt, as a user's turn of a chat when the model has a template.

    Raises:
        UnsupportedModelError: the template cannot be used.
    """
    if chat_template and tokenizer.has_chat_template:
        return encode_messages(tokenizer, [{"role": "user", "content": text}])
    return list(tokenizer.encode(text))


def encode_messages(tokenizer: TokenizerWrapper, messages: Sequence[Message]) -> list[int]:
    """Return the tokens of a conversation up to where the next answer begins.

    A model without a chat template reads a line for each message.

    Raises:
        UnsupportedModelError: the template cannot be used.
    """
    if not tokenizer.has_chat_template:
        lines = [f"{message['role']}: {message['content']}\n" for message in messages]
        return list(tokenizer.encode("".join([*lines, "assistant:"])))
    try:
        rendered = tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
        )
    except ANYTHING as error:
        raise UnsupportedModelError(
            f"the model's chat template refuses the conversation: {one_line(error)}"
        ) from error
    return list(tokenizer.encode(rendered, add_special_tokens=False))


def first_state(tokenizer: TokenizerWrapper, prompt: Sequence[int]) -> str:
    """Return the state in which an answer begins: some templates open the thinking themselves."""
    tokens, state = list(prompt), NORMAL
    if tokenizer.has_thinking and (
        tokenizer.rfind_think_start(tokens) > tokenizer.rfind_think_end(tokens)
    ):
        state = REASONING
    return tokenizer.response_initial_state or state


class AnswerSplitter:
    """Splits an answer at the marks between its states, and leaves the marks out."""

    def __init__(self, tokenizer: TokenizerWrapper, first: str, plain: bool = False) -> None:
        """Begin in the state `first`; `plain` takes marks for text like any other."""
        machine = TextStateMachine() if plain else make_text_state_machine(tokenizer)
        self._state = machine.make_state(first)

    def add(self, text: str) -> list[tuple[str, str]]:
        """Return the states that the answer passes with some more text, and what is said in each.

        The last is where it is now; what is said may be empty. What may be the beginning of a mark
        is kept back. After a mark that ends the answer nothing is said.
        """
        if self._state[0] is None:
            return []
        self._state, segments = TextStateMachine.split(self._state, text)
        return [(state or NORMAL, part) for state, part in segments]

    def rest(self) -> list[tuple[str, str]]:
        """Return what was kept back: no more text comes."""
        self._state, text, state = TextStateMachine.flush(self._state)
        return [(state, text)] if text and state is not None else []


def sampler(temperature: float) -> Callable[[mx.array], mx.array]:
    """Return a function that draws tokens from log-probabilities; 0 takes the likeliest."""
    greedy = temperature < _GREEDY_BELOW  # where dividing by it leaves the range of float32
    drawn: Callable[[mx.array], mx.array] = make_sampler(temp=0.0 if greedy else temperature)
    return drawn


def tokens_after(
    model: Module,
    prompt: Sequence[int],
    num_tokens: int,
    temperature: float,
    prefill_step: int,
    following: Sequence[int] | None = None,
) -> Iterator[int]:
    """Yield `num_tokens` tokens after a prompt, whatever they are: none of them ends the text.

    They are drawn, or those that are given as `following`.
    """
    given = itertools.chain(following or (), itertools.repeat(0))  # mlx-lm runs ahead of the end

    def next_given(log_probabilities: mx.array) -> mx.array:
        return mx.array([next(given)])

    steps = generate_step(
        mx.array(list(prompt)),
        model,
        max_tokens=num_tokens,
        sampler=next_given if following else sampler(temperature),
        prefill_step_size=prefill_step,
    )
    for token, _ in steps:
        yield int(token)


def read_tokens(model: Any, tokens: Sequence[int], step: int) -> Iterator[int]:
    """Run tokens through a model, `step` at once, from an empty cache; yield how many that was.

    Computes no logits.
    """
    cache = make_prompt_cache(model)
    for start in range(0, len(tokens), step):
        part = list(tokens[start : start + step])
        model(mx.array(part)[None], cache=cache)
        mx.eval([entry.state for entry in cache])
        yield len(part)


def follow_tokens(model: Any, tokens: Sequence[int]) -> Iterator[mx.array]:
    """Run tokens through a model one by one, from an empty cache, as if it had generated them.

    Yields the logits `[V]` after each, evaluated.
    """
    cache = make_prompt_cache(model)
    for token in tokens:
        logits = model(mx.array([[token]]), cache=cache)[0, -1]
        mx.eval(logits, [entry.state for entry in cache])
        yield logits
