"""How much the scheduler may compute at once."""

from dataclasses import dataclass

KV_STEP = 256
"""Tokens by which mlx-lm's prompt caches grow."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much may run at once.

    The prompt caches of all answers, and of prompts kept for later, stay below `kv_bytes`;
    a token takes `token_bytes`. A prompt is computed `prefill_step` tokens at a time, or
    `shared_step` while others generate, so that they do not wait long.
    """

    max_batch: int
    kv_bytes: int
    token_bytes: int
    prefill_step: int
    shared_step: int = 512

    def needed_bytes(self, rows: int, longest: int) -> int:
        """Return the most that a batch takes, in which every row is as long as the longest.

        A cache that began with a remembered prompt grows by `KV_STEP` from there.
        """
        return rows * (longest + KV_STEP) * self.token_bytes
