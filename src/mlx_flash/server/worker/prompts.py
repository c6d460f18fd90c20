"""From a prompt as clients send it to tokens, within the context."""

import json
from collections.abc import Sequence
from typing import Any

from ...errors import PromptError
from ...streaming.tokens import TokenizerWrapper
from ..messages import ChatPrompt, Generate, Prompt, TextPrompt

_SAMPLE_LETTERS = 256 * 1024  # of a longer text that cannot fit, as many are tokenized

_FILL_IN = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),
    ("[PREFIX]", "[SUFFIX]", "[MIDDLE]"),
)
"""How families mark what comes before, after, and is to be filled in."""


_OURS = frozenset(
    (
        *("chat_template", "conversation", "messages", "tools", "documents", "tokenize"),
        *("add_generation_prompt", "continue_final_message", "return_dict", "return_tensors"),
        *("return_assistant_tokens_mask", "padding", "truncation", "max_length"),
        *("tokenizer_kwargs", "processor_kwargs"),
    )
)
"""What a request may not tell a template: another template would be code from outside."""


class ContextError(PromptError):
    """Raised when a prompt leaves no room for an answer in the context."""


class Prompts:
    """Renders and tokenizes for one model. Any thread."""

    def __init__(self, tokenizer: TokenizerWrapper, vocabulary: int, context_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._longest = max(map(len, map(str.encode, tokenizer.get_vocab())), default=1)
        self.context_tokens = context_tokens

    def rendered(self, prompt: ChatPrompt) -> str:
        """Return a chat as the model's template writes it.

        Raises:
            PromptError: the template refuses it.
        """
        if ours := _OURS.intersection(prompt.template_options):
            raise PromptError(f"{min(ours)} is no option of a template: leave it out.")
        if not self._tokenizer.has_chat_template:
            return _without_template(prompt)
        try:
            rendered = self._tokenizer.apply_chat_template(
                prompt.messages,
                tools=prompt.tools or None,
                tokenize=False,
                add_generation_prompt=not prompt.continue_last,
                continue_final_message=prompt.continue_last,
                **prompt.template_options,
            )
        except Exception as error:
            why = " ".join(str(error).split())[:300].rstrip(".")
            raise PromptError(f"the model's chat template refuses this: {why}.") from error
        return str(rendered)

    def tokens(
        self, prompt: Prompt, add_special: bool = True, must_fit: bool = False
    ) -> tuple[list[int], str]:
        """Return the tokens of a prompt, and its text as far as it was rendered here.

        A long one that `must_fit` the context is not tokenized when its length alone says that it
        cannot: that takes seconds for megabytes.

        Raises:
            ContextError: it cannot fit.
            PromptError: it is empty, has tokens that the model has not, or the template refuses it.
        """
        if isinstance(prompt, ChatPrompt):
            text = self.rendered(prompt)
        elif isinstance(prompt, TextPrompt):
            text = self._text(prompt)
        else:
            return self._known(prompt.tokens), ""
        cannot_fit = len(text) // self._longest >= self.context_tokens
        if must_fit and cannot_fit and len(text) > _SAMPLE_LETTERS:
            sample = len(self.encoded(text[:_SAMPLE_LETTERS], False))
            raise self._too_long(sample * len(text) // _SAMPLE_LETTERS, ", by an estimate")
        if isinstance(prompt, ChatPrompt):
            return self.encoded(text, False), text
        return self.encoded(text, add_special), ""

    def checked(self, wanted: Generate) -> tuple[list[int], str]:
        """Return the tokens of a prompt that is to be answered, and its rendered text.

        Raises:
            ContextError: it leaves no room in the context.
            PromptError: as `tokens`, or it is empty.
        """
        tokens, text = self.tokens(wanted.prompt, must_fit=True)
        if not tokens:
            start = self._tokenizer.bos_token_id
            start = next(iter(sorted(self._tokenizer.eos_token_ids)), 0) if start is None else start
            tokens = [start]
        if len(tokens) >= self.context_tokens:
            raise self._too_long(len(tokens))
        return tokens, text

    def _too_long(self, num_tokens: int, how: str = "") -> ContextError:
        return ContextError(
            f"prompt is too long: {num_tokens} tokens > {self.context_tokens - 1} maximum{how}; "
            "shorten it, or start the server with a larger --max-context."
        )

    def encoded(self, text: str, add_special: bool) -> list[int]:
        """Return the tokens of a text."""
        valid = text.encode("utf-8", "replace").decode()
        return list(self._tokenizer.encode(valid, add_special_tokens=add_special))

    def decoded(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens.

        Raises:
            PromptError: the model has no such token.
        """
        return str(self._tokenizer.decode(self._known(tokens)))

    def _known(self, tokens: Sequence[int]) -> list[int]:
        """Return tokens of which the model has every one."""
        for token in tokens:
            if not 0 <= token < self._vocabulary:
                raise PromptError(f"the model has no token {token}: it has {self._vocabulary}.")
        return list(tokens)

    def _text(self, prompt: TextPrompt) -> str:
        if not prompt.suffix:
            return prompt.text
        vocabulary = self._tokenizer.get_vocab()
        for before, after, middle in _FILL_IN:
            if before in vocabulary and after in vocabulary and middle in vocabulary:
                return f"{before}{prompt.text}{after}{prompt.suffix}{middle}"
        raise PromptError("this model cannot fill in before a suffix: leave the suffix out.")


def _without_template(prompt: ChatPrompt) -> str:
    """Return a chat as plain text, for a model that has no template."""
    turns = [f"{message['role']}: {message.get('content') or ''}" for message in prompt.messages]
    return "\n\n".join(turns if prompt.continue_last else [*turns, "assistant:"])


def forced_call_schema(tools: Sequence[dict[str, Any]], choice: str) -> str:
    """Return the JSON schema of a call of one of `tools`; of the one that `choice` names, `=name`.

    It has no arguments but those that a tool names, even where the tool would allow others.

    Raises:
        PromptError: there is no such tool.
    """
    functions = [tool["function"] for tool in tools]
    if choice.startswith("="):
        functions = [one for one in functions if one["name"] == choice[1:]]
    if not functions:
        raise PromptError(f"there is no tool {choice.removeprefix('=')!r} to call: send it.")
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": one["name"]},
                "arguments": _closed(one.get("parameters") or {"type": "object"}),
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for one in functions
    ]
    return json.dumps(calls[0] if len(calls) == 1 else {"anyOf": calls})


_OPENS = frozenset(
    {
        *("$ref", "allOf", "anyOf", "oneOf", "if", "not", "dependentSchemas"),
        *("additionalProperties", "patternProperties", "unevaluatedProperties", "minProperties"),
    }
)
"""Words of a schema beside which an object may need more properties than `properties` names."""


def _closed(schema: Any) -> Any:
    """Return a schema whose objects have no properties but those that they name.

    Left open is what other parts may add to: the parts of `allOf`, and definitions.
    """
    if not isinstance(schema, dict):
        return schema
    closed = dict(schema)
    properties, required = schema.get("properties"), schema.get("required")
    if isinstance(properties, dict):
        closed["properties"] = {name: _closed(value) for name, value in properties.items()}
        needed = map(str, required) if isinstance(required, list) else ()
        if not _OPENS & schema.keys() and properties.keys() >= set(needed):
            closed["additionalProperties"] = False
    for word in ("anyOf", "oneOf"):
        if isinstance(schema.get(word), list) and "properties" not in schema:
            closed[word] = [_closed(value) for value in schema[word]]
    if "items" in schema:
        closed["items"] = _closed(schema["items"])
    return closed
