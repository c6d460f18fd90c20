"""The route of completions, which go on with a text as it is."""

from collections.abc import Sequence
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response

from ...messages import Finished, Piece, TokenLogprob, ToolCall
from ..backend import backend_of
from ..collected import Collected
from ..streams import begun, event_stream, unless_gone
from ..timings import timings_of
from .completion_body import CompletionBody
from .counts import Heading, usage_of
from .probabilities import TextLogprobsWriter
from .replies import PromptProgress, TextChoice, TextLogprobs, TextReply, streamed_or
from .side_by_side import collect_all, submit_all
from .streaming import stream

router = APIRouter()


@router.post("/v1/completions", response_model=None, responses=streamed_or(TextReply, TextReply))
@router.post("/completions", include_in_schema=False, response_model=None)
async def completions(request: Request, body: CompletionBody) -> Response:
    """Go on with one or more texts."""
    backend = backend_of(request)
    answers = await submit_all(backend, body.wanted())
    writer = TextWriter(body, len(answers), Heading.of("cmpl", body.model, backend))
    if body.stream:
        return event_stream(await begun(request, stream(answers, writer)))
    collected = await unless_gone(request, collect_all(answers))
    return Response(writer.reply(collected).json_text(), media_type="application/json")


class TextWriter:
    """Words the answers to prompts: as one reply, or as the chunks of a stream."""

    def __init__(self, body: CompletionBody, num_choices: int, heading: Heading) -> None:
        self._body = body
        self._num_choices = num_choices
        self._heading = heading.fields()
        self._ends: dict[int, Finished] = {}
        self._probabilities = [TextLogprobsWriter() for _ in range(num_choices)]

    def reply(self, answers: Sequence[Collected]) -> TextReply:
        """Return all answers, whole."""
        choices = [
            TextChoice(
                index=index,
                text=answer.prompt + answer.reasoning + answer.text,
                logprobs=self._logprobs(index, answer.logprobs),
                finish_reason=_reason(answer.end),
            )
            for index, answer in enumerate(answers)
        ]
        return self._reply(choices, **self._counts([answer.end for answer in answers]))

    def opening(self, index: int) -> None:
        """Return nothing: the first chunk has text."""

    def progress(self, index: int, progress: PromptProgress) -> None:
        """Return nothing: clients of this API do not know it."""

    def piece(self, index: int, piece: Piece) -> TextReply | None:
        """Return a piece of the text, or of the prompt that is echoed."""
        if not (piece.text or piece.logprobs):
            return None
        logprobs = self._logprobs(index, piece.logprobs)
        return self._chunk(
            TextChoice(index=index, text=piece.text, logprobs=logprobs, finish_reason=None)
        )

    def call(self, index: int, call: ToolCall) -> None:
        """Return nothing: a text calls no tools."""

    def finish(self, index: int, end: Finished) -> TextReply:
        """Return an answer's last chunk; the last of them has the timings."""
        self._ends[index] = end
        more: dict[str, Any] = {}
        if len(self._ends) == self._num_choices and not self._body.wants_usage:
            more["timings"] = self._counts(self._in_order())["timings"]
        choice = TextChoice(index=index, text="", logprobs=None, finish_reason=_reason(end))
        return self._chunk(choice, **more)

    def closing(self) -> TextReply | None:
        """Return the chunk of usage, which has no choices, for a client that asked for it."""
        if not self._body.wants_usage:
            return None
        return self._reply([], **self._counts(self._in_order()))

    def _logprobs(self, index: int, tokens: Sequence[TokenLogprob]) -> TextLogprobs | None:
        return None if self._body.logprobs is None else self._probabilities[index].written(tokens)

    def _in_order(self) -> list[Finished]:
        return [self._ends[index] for index in sorted(self._ends)]

    def _counts(self, ends: Sequence[Finished]) -> dict[str, Any]:
        num_answers = self._body.num_answers
        return {
            "usage": usage_of(ends, num_answers),
            "timings": timings_of(ends, num_answers),
        }

    def _chunk(self, choice: TextChoice, **more: Any) -> TextReply:
        if self._body.wants_usage:
            more["usage"] = None
        return self._reply([choice], **more)

    def _reply(self, choices: list[TextChoice], **more: Any) -> TextReply:
        return TextReply(**self._heading, object="text_completion", choices=choices, **more)


def _reason(end: Finished) -> Literal["stop", "length"]:
    return "length" if end.reason in ("length", "context") else "stop"
