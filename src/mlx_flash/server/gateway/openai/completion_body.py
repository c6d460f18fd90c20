"""The body of a completion request, as clients send it."""

from typing import Annotated, Any

from pydantic import Field, StrictBool, WithJsonSchema

from ...messages import Generate, TextPrompt, TokenPrompt
from ..backend import RequestError
from ..bounds import Integral
from .fields import MAX_ANSWERS, AnswerFields

DEFAULT_MAX_TOKENS = 16
_MAX_TOKEN = 2**31

_TOKENS = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "exclusiveMaximum": _MAX_TOKEN},
    "minItems": 1,
}
_PROMPT = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
        _TOKENS,
        {"type": "array", "items": _TOKENS, "minItems": 1},
    ]
}


class CompletionBody(AnswerFields):
    """Text to go on with: one or more prompts, each text or tokens."""

    prompt: Annotated[Any, WithJsonSchema(_PROMPT)]
    suffix: str | None = None
    echo: StrictBool | None = None
    max_tokens: Annotated[int, Field(strict=True, ge=-1, lt=2**63), Integral] | None = None
    logprobs: Annotated[int, Field(strict=True, ge=0, le=20), Integral] | None = None
    best_of: Annotated[int, Field(strict=True, ge=1, le=16), Integral] | None = None

    def wanted(self) -> list[Generate]:
        """Return what the worker is asked: for each prompt, as many answers as are wanted.

        Raises:
            RequestError: a prompt is none, or fields contradict each other.
        """
        prompts = _prompts(self.prompt, self.suffix or "")
        if len(prompts) * self.num_answers > MAX_ANSWERS:
            raise RequestError(
                "invalid",
                f"prompt: {len(prompts)} prompts and n {self.num_answers} make more than "
                f"{MAX_ANSWERS} answers: send fewer at once.",
                "prompt",
            )
        if self.best_of is not None and self.best_of != self.num_answers:
            raise RequestError(
                "invalid", "best_of: answers are not ranked, give the same as n.", "best_of"
            )
        limit = DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens
        if limit == 0 and not self.echo:
            raise RequestError("invalid", "max_tokens: 0 needs echo to be true.", "max_tokens")
        return [
            Generate(
                request=0,
                prompt=prompt,
                max_tokens=None if limit < 0 else limit,
                stop=self.stop_texts,
                sampling=self.sampling(nth),
                top_logprobs=self.logprobs,
                echo=bool(self.echo),
            )
            for prompt in prompts
            for nth in range(self.num_answers)
        ]


def _prompts(given: Any, suffix: str) -> list[TextPrompt | TokenPrompt]:
    """Return the prompts: of text, a list of texts, tokens, or a list of lists of tokens."""
    if isinstance(given, str):
        return [TextPrompt(text=given, suffix=suffix)]
    if isinstance(given, list) and given:
        if all(isinstance(one, str) for one in given):
            return [TextPrompt(text=one, suffix=suffix) for one in given]
        lists = [given] if _are_tokens(given) else given
        if all(_are_tokens(one) for one in lists):
            if suffix:
                raise RequestError("invalid", "suffix: it needs a prompt of text.", "suffix")
            return [TokenPrompt(tokens=one) for one in lists]
    raise RequestError(
        "invalid", "prompt: give a text, tokens, or a list of texts or of tokens.", "prompt"
    )


def _are_tokens(given: Any) -> bool:
    return (
        isinstance(given, list)
        and bool(given)
        and all(type(one) is int and 0 <= one < _MAX_TOKEN for one in given)
    )
