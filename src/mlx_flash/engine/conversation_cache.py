"""The KV cache of one conversation with the tokens that it holds: a next turn computes the rest."""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from mlx.nn.layers.base import Module

from ..streaming import adapter


class ConversationCache:
    """What a model remembers of the tokens that it was last called with.

    `entries` are mlx-lm's prompt cache, which a call of the model changes. `tokens` are those that
    they hold: whoever calls the model appends what it was given, or clears the cache when that is
    not certain.
    """

    def __init__(self, model: Module) -> None:
        """Begin empty."""
        self._model = model
        self.entries: list[Any] = adapter.new_cache(model)
        self.tokens: list[int] = []

    def begin(self, prompt: Sequence[int]) -> list[int]:
        """Keep what `prompt` begins with, and return the rest of it: one token or more.

        Where the cache cannot go back to that, it begins anew.
        """
        same = takewhile(lambda pair: pair[0] == pair[1], zip(self.tokens, prompt, strict=False))
        common = min(sum(1 for _ in same), len(prompt) - 1)
        if adapter.trim_cache(self.entries, len(self.tokens) - common):
            del self.tokens[common:]
        else:
            self.clear()
        return list(prompt[len(self.tokens) :])

    def clear(self) -> None:
        """Forget everything, and free the memory."""
        self.entries = adapter.new_cache(self._model)
        self.tokens = []

    @property
    def num_bytes(self) -> int:
        """The memory that it takes."""
        return adapter.held_bytes(self.entries)
