"""What /completion is asked for, and how that is put to the model."""

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ...messages import Generate, Grammar, Prompt, Sampling, TextPrompt, TokenPrompt
from ..backend import RequestError
from ..bounds import Int64, Name, Penalty, Probability, RepeatPenalty, StopTexts, Temperature
from .state import RANDOM_SEED

_MOST_TOKEN = 2**31 - 1
_BANNED = -100.0


class LlamaCompletionBody(BaseModel):
    """The body of /completion; `prompt` is a text or a list of tokens.

    `grammar` is in Lark's notation, not in llama.cpp's own.
    """

    model_config = ConfigDict(extra="allow")

    prompt: str | list[Any] | dict[str, Any]
    model: Name | None = None
    n_predict: Int64 | None = None
    stream: bool | None = None
    stop: StopTexts | None = None
    temperature: Temperature | None = None
    top_k: Int64 | None = None
    top_p: Probability | None = None
    min_p: Probability | None = None
    seed: Int64 | None = None
    repeat_penalty: RepeatPenalty | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[list[Any], Field(max_length=1024)] | dict[str, Any] | None = None
    json_schema: dict[str, Any] | None = None
    grammar: str | None = None
    n_probs: Annotated[int, Field(ge=0, le=20)] | None = None
    return_tokens: bool | None = None
    return_progress: bool | None = None


def wanted(body: LlamaCompletionBody) -> Generate:
    """Return the request to the worker.

    Raises:
        RequestError: a prompt, bias or grammar that cannot be.
    """
    most, top_k, seed = body.n_predict, body.top_k, body.seed
    is_random = seed is None or seed < 0 or seed == RANDOM_SEED
    return Generate(
        request=0,
        prompt=_prompt(body.prompt),
        max_tokens=most if most is not None and most >= 0 else None,
        echo=most == 0,  # permits an answer of no tokens
        stop=body.stop or [],
        sampling=Sampling(
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=None if top_k is None else max(0, top_k),
            min_p=body.min_p,
            repetition_penalty=body.repeat_penalty,
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            logit_bias=_bias(body.logit_bias),
            seed=None if is_random else seed,
        ),
        grammar=_grammar(body),
        top_logprobs=body.n_probs or (0 if body.return_tokens and most != 0 else None),
    )


def _prompt(prompt: str | list[Any] | dict[str, Any]) -> Prompt:
    if isinstance(prompt, str):
        return TextPrompt(text=prompt)
    if isinstance(prompt, dict):
        if prompt.get("multimodal_data"):
            raise RequestError("invalid", "prompt: this model reads text alone.", "prompt")
        text = prompt.get("prompt_string")
        if isinstance(text, str):
            return TextPrompt(text=text)
    elif len(prompt) == 1 and isinstance(prompt[0], str):
        return TextPrompt(text=prompt[0])
    elif prompt and all(_is_token(token) for token in prompt):
        return TokenPrompt(tokens=prompt)
    raise RequestError(
        "invalid", "prompt: send one text or one list of tokens; for more, ask again.", "prompt"
    )


def _is_token(token: Any) -> bool:
    return type(token) is int and 0 <= token <= _MOST_TOKEN


def _bias(given: list[Any] | dict[str, Any] | None) -> dict[int, float]:
    """Return the bias of each token, from pairs or from an object."""
    pairs = list(given.items()) if isinstance(given, dict) else given or []
    return dict(_one_bias(pair) for pair in pairs)


def _one_bias(pair: Any) -> tuple[int, float]:
    """Return a token and its bias, where false is as good as a ban."""
    token: Any = None
    bias: Any = None
    if isinstance(pair, (list, tuple)) and len(pair) == 2:
        token, bias = pair
    if isinstance(token, str) and token.isascii() and token.isdigit():
        token = int(token[:20])
    if bias is False:
        bias = _BANNED
    if _is_token(token) and type(bias) in (int, float) and -100 <= bias <= 100:
        return token, float(bias)
    raise RequestError(
        "invalid",
        "logit_bias: send pairs of a token's number and a bias of -100 to 100, or false.",
        "logit_bias",
    )


def _grammar(body: LlamaCompletionBody) -> Grammar | None:
    if body.json_schema is not None:
        if body.grammar:
            raise RequestError("invalid", "grammar: send it or json_schema, not both.", "grammar")
        try:
            text = json.dumps(body.json_schema, allow_nan=False)
        except (ValueError, RecursionError) as error:
            message = "json_schema: this is no JSON schema."
            raise RequestError("invalid", message, "json_schema") from error
        return Grammar(kind="schema", text=text)
    if not body.grammar:
        return None
    if "::=" in body.grammar:
        raise RequestError(
            "invalid",
            "grammar: GBNF is not read here: send json_schema, or a grammar in Lark's notation.",
            "grammar",
        )
    return Grammar(kind="lark", text=body.grammar)
