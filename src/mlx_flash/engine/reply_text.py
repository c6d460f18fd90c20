"""From tokens to what an answer says: text, reasoning and tool calls, as mlx-lm tells them apart.

A model marks them by texts such as `<think>` and `<tool_call>`; those of its tokenizer are known
to mlx-lm, which also parses the calls.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..streaming.tokens import NORMAL, REASONING, TOOL, AnswerSplitter, TokenizerWrapper


@dataclass(frozen=True)
class Said:
    """Some text of an answer."""

    kind: Literal["text", "reasoning"]
    text: str


@dataclass(frozen=True)
class Called:
    """A tool that the answer calls; `arguments` is a JSON object as text."""

    name: str
    arguments: str


class StopTexts:
    """Finds the first of some texts in a stream, holding back what may become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.found: str | None = None

    def pass_on(self, text: str) -> str:
        """Return what of the text so far is surely before any stop; nothing once one was found."""
        if not self._stops or self.found is not None:
            return text if self.found is None else ""
        self._held += text
        places = [(place, stop) for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            place, self.found = min(places, key=lambda found: found[0])
            said, self._held = self._held[:place], ""
            return said
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        said, self._held = self._held[: len(self._held) - keep], self._held[-keep:] if keep else ""
        return said

    def rest(self) -> str:
        """Return what was held back: no stop follows any more."""
        said, self._held = self._held, ""
        return said


def _overlap(text: str, stop: str) -> int:
    """Return how many letters at the end of a text are the beginning of a stop."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def opens_reasoning(tokenizer: TokenizerWrapper, rendered: str) -> bool:
    """Return whether a rendered prompt ends inside a thought that the answer goes on with."""
    if not tokenizer.has_thinking:
        return False
    return rendered.rfind(tokenizer.think_start) > rendered.rfind(tokenizer.think_end)


class ReplyText:
    """Turns the tokens of one answer into what it says."""

    def __init__(
        self,
        tokenizer: TokenizerWrapper,
        stops: Sequence[str] = (),
        tools: Sequence[dict[str, Any]] = (),
        plain: bool = False,
        reasoning_first: bool = False,
        after: int | None = None,
    ) -> None:
        """`tools` are those that may be called; `plain` takes marks for text like any other.

        The text goes on from the token `after`, whose spaces are then kept; else it begins anew.
        """
        self._tokenizer = tokenizer
        self._detokenizer = _continued(tokenizer, after)
        self._stops = StopTexts(stops)
        self._tools = list(tools)
        self._call = ""
        first = REASONING if reasoning_first else tokenizer.response_initial_state or NORMAL
        self._state: str = NORMAL if plain else first
        self._splitter = AnswerSplitter(tokenizer, self._state, plain)

    @property
    def stop_text(self) -> str | None:
        """The stop text at which the answer ended, if it did."""
        return self._stops.found

    @property
    def in_reasoning(self) -> bool:
        """Whether the last token was part of a thought."""
        return self._state == REASONING

    def add(self, token: int) -> Iterator[Said | Called]:
        """Yield what is said by the answer with one token more, where that is certain."""
        self._detokenizer.add_token(token)
        yield from self._pass_on(self._detokenizer.last_segment)

    def end(self) -> Iterator[Said | Called]:
        """Yield the rest, at the end of the answer."""
        self._detokenizer.finalize()
        yield from self._pass_on(self._detokenizer.last_segment)
        for state, text in self._splitter.rest():
            yield from self._say(state, text)
        if self._state == TOOL:
            yield from self._end_call()
        if self._stops.found is None and (rest := self._stops.rest()):
            yield Said("text", rest)

    def _pass_on(self, text: str) -> Iterator[Said | Called]:
        if not text:
            return
        for state, segment in self._splitter.add(text):
            if state != self._state and self._state == TOOL:
                yield from self._end_call()
            self._state = state
            yield from self._say(state, segment)

    def _say(self, state: str, text: str) -> Iterator[Said | Called]:
        if state == TOOL:
            self._call += text
        elif state == REASONING:
            if text:
                yield Said("reasoning", text)
        elif said := self._stops.pass_on(text):
            yield Said("text", said)

    def _end_call(self) -> Iterator[Said | Called]:
        """Yield the calls in what a tool state said; what cannot be parsed is text after all."""
        text, self._call = self._call, ""
        if not text.strip():
            return
        calls = _parsed(self._tokenizer, text, self._tools)
        if calls is None:
            mark, end = self._tokenizer.tool_call_start or "", self._tokenizer.tool_call_end or ""
            yield Said("text", f"{mark}{text}{end}")
            return
        yield from calls


def _continued(tokenizer: TokenizerWrapper, after: int | None) -> Any:
    """Return a detokenizer that has passed a token on already.

    One that holds the token back, as it does half a character, begins anew.
    """
    detokenizer = tokenizer.detokenizer
    if after is None:
        return detokenizer
    detokenizer.add_token(after)
    return detokenizer if detokenizer.last_segment else tokenizer.detokenizer


def _parsed(
    tokenizer: TokenizerWrapper, text: str, tools: list[dict[str, Any]]
) -> list[Called] | None:
    """Return the calls that a model wrote; None when it wrote something else."""
    try:
        found = tokenizer.tool_parser(text, tools)
        return [called(call) for call in (found if isinstance(found, list) else [found])]
    except Exception:  # noqa: BLE001 - a parser meets whatever a model wrote, and raises anything
        return None


def called(call: Any) -> Called:
    """Return a call that a parser found.

    Raises:
        ValueError: it names no tool.
    """
    name, arguments = call["name"], call.get("arguments", {})
    if not isinstance(name, str) or not name:
        raise ValueError("a call without the name of a tool")
    if isinstance(arguments, str):
        arguments = json.loads(arguments or "{}")
    return Called(name, json.dumps(arguments, ensure_ascii=False))
