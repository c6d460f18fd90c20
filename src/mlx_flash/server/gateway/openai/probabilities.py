"""Log-probabilities of tokens, in the two forms that the API has for them."""

from codecs import getincrementaldecoder
from collections.abc import Sequence

from ...messages import TokenLogprob
from .replies import ChatLogprob, ChatLogprobs, TextLogprobs, TopLogprob

_LEAST = -9999.0
"""What stands for a token that cannot be: JSON has no infinity."""


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> ChatLogprobs:
    """Return those of a message."""
    content = [
        ChatLogprob(
            token=token.text,
            logprob=_finite(token.logprob),
            bytes=list(token.data),
            top_logprobs=[
                TopLogprob(token=text, logprob=_finite(logprob), bytes=list(data))
                for _, text, data, logprob in token.top
            ],
        )
        for token in tokens
    ]
    return ChatLogprobs(content=content, refusal=None)


class TextLogprobsWriter:
    """Words those of one completion, piece by piece; it counts the letters before each token."""

    def __init__(self) -> None:
        self._letters = 0
        self._decoder = getincrementaldecoder("utf-8")("replace")

    def written(self, tokens: Sequence[TokenLogprob]) -> TextLogprobs:
        """Return those of the next tokens; the first token of a prompt has no probability."""
        return TextLogprobs(
            tokens=[_label(token.text, token.data) for token in tokens],
            token_logprobs=[
                None if token.logprob is None else _finite(token.logprob) for token in tokens
            ],
            top_logprobs=[_top(token) for token in tokens],
            text_offset=[self._offset(token.data) for token in tokens],
        )

    def _offset(self, data: bytes) -> int:
        """Return where a token begins, and go on behind it. Half a character has no length yet."""
        offset = self._letters
        self._letters += len(self._decoder.decode(data))
        return offset


def _top(token: TokenLogprob) -> dict[str, float] | None:
    """Return the likeliest tokens, and the token itself, each by its text."""
    if token.logprob is None:
        return None
    top: dict[str, float] = {}
    own = (token.token, token.text, token.data, token.logprob)
    for _, text, data, logprob in [*token.top, own]:
        label = _label(text, data)
        top[label] = max(_finite(logprob), top.get(label, _LEAST))
    return top


def _label(text: str, data: bytes) -> str:
    """Return the text of a token, or its bytes where they are no whole characters."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
    return text


def _finite(logprob: float | None) -> float:
    return logprob if logprob is not None and logprob > _LEAST else _LEAST
