"""A whole answer, gathered from its events."""

from dataclasses import dataclass, field

from ..messages import Finished, Piece, TokenLogprob, ToolCall
from .backend import Answer, RequestError
from .streams import KEEP_ALIVE_S


@dataclass
class Collected:
    """What an answer said; `prompt` and its log-probabilities when it was to be echoed.

    `logprobs` are of the prompt and the text, not of the reasoning.
    """

    text: str = ""
    reasoning: str = ""
    prompt: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finished: Finished | None = None

    @property
    def end(self) -> Finished:
        """How it ended."""
        if self.finished is None:
            raise RequestError("internal", "the answer has no end.")
        return self.finished


async def collect(answer: Answer) -> Collected:
    """Return an answer as a whole.

    Raises:
        RequestError: it failed.
    """
    got = Collected()
    async with answer:
        async for event in answer.events(KEEP_ALIVE_S):
            if isinstance(event, Piece):
                if event.kind == "text":
                    got.text += event.text
                elif event.kind == "reasoning":
                    got.reasoning += event.text
                else:
                    got.prompt += event.text
                if event.kind != "reasoning":
                    got.logprobs += event.logprobs
            elif isinstance(event, ToolCall):
                got.calls.append(event)
            elif isinstance(event, Finished):
                got.finished = event
    return got
