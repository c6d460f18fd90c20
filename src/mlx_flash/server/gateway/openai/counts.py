"""How an answer ended, in the words of the API: tokens, and what each reply begins with."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .... import __version__
from ...messages import Finished
from ..backend import Backend
from .replies import CachedTokens, ReasoningTokens, Usage


@dataclass(frozen=True)
class Heading:
    """What all chunks of one answer share."""

    id: str
    created: int
    model: str
    system_fingerprint: str = f"mlx-flash-{__version__}"

    @staticmethod
    def of(prefix: str, asked_model: str | None, backend: Backend) -> "Heading":
        """Return that of a new answer, which goes by the name that the client gave the model."""
        served = backend.card.name if backend.card else ""
        return Heading(f"{prefix}-{uuid.uuid4().hex}", int(time.time()), asked_model or served)

    def fields(self) -> dict[str, Any]:
        """Return the fields of a reply."""
        return asdict(self)


def usage_of(ends: Sequence[Finished], num_answers: int) -> Usage:
    """Return the tokens of all answers; a prompt counts once for its `num_answers` answers."""
    prompts = ends[::num_answers]
    prompt_tokens = sum(end.prompt_tokens for end in prompts)
    completion_tokens = sum(end.completion_tokens for end in ends)
    reasoning_tokens = sum(end.reasoning_tokens for end in ends)
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        prompt_tokens_details=CachedTokens(cached_tokens=sum(e.cached_tokens for e in prompts)),
        completion_tokens_details=ReasoningTokens(reasoning_tokens=reasoning_tokens),
    )
