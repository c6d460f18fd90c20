"""How fast answers were, in the names of llama.cpp, which clients of other APIs read, too."""

from collections.abc import Sequence

from pydantic import BaseModel

from ..messages import Finished


class Timings(BaseModel):
    """Counts, milliseconds, and tokens per second.

    The prompt is prefill, what is predicted is decode; `cache_n` tokens were remembered.
    """

    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_token_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_token_ms: float
    predicted_per_second: float


def timings_of(ends: Sequence[Finished], num_answers: int = 1) -> Timings:
    """Return those of all answers, computed side by side; each prompt has `num_answers`."""
    prompts = ends[::num_answers]
    cached = sum(end.cached_tokens for end in prompts)
    computed = sum(end.prompt_tokens for end in prompts) - cached
    predicted = sum(end.completion_tokens for end in ends)
    prefill_s = max(end.prefill_s for end in prompts)
    decode_s = max(end.decode_s for end in ends)
    return Timings(
        cache_n=cached,
        prompt_n=computed,
        prompt_ms=1000 * prefill_s,
        prompt_per_token_ms=_ratio(1000 * prefill_s, computed),
        prompt_per_second=_ratio(computed, prefill_s),
        predicted_n=predicted,
        predicted_ms=1000 * decode_s,
        predicted_per_token_ms=_ratio(1000 * decode_s, predicted),
        predicted_per_second=_ratio(predicted, decode_s),
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
