"""A chat's answers as one reply, or as the chunks of a stream."""

from collections.abc import Sequence
from typing import Any

from ...messages import Finished, Piece, ToolCall
from ..collected import Collected
from ..timings import timings_of
from .chat_body import ChatBody
from .counts import Heading, usage_of
from .probabilities import chat_logprobs
from .replies import (
    CallReply,
    ChatChoice,
    ChatChunk,
    ChatReply,
    ChunkChoice,
    FinishReason,
    PromptProgress,
    ReplyMessage,
)
from .tools import Tools


class ChatWriter:
    """Words the answers to a chat."""

    def __init__(self, body: ChatBody, tools: Tools, heading: Heading) -> None:
        self._body = body
        self._tools = tools
        self._heading = heading.fields()
        self._num_answers = body.num_answers
        self._num_calls = [0] * self._num_answers
        self._ends: dict[int, Finished] = {}

    def reply(self, answers: Sequence[Collected]) -> ChatReply:
        """Return all answers, whole."""
        ends = [answer.end for answer in answers]
        return ChatReply(
            **self._heading,
            object="chat.completion",
            choices=[self._choice(*numbered) for numbered in enumerate(answers)],
            usage=usage_of(ends, self._num_answers),
            timings=timings_of(ends, self._num_answers),
        )

    def opening(self, index: int) -> ChatChunk:
        """Return the chunk that names the role, which comes once."""
        return self._chunk(index, ReplyMessage(role="assistant", content=""))

    def progress(self, index: int, progress: PromptProgress) -> ChatChunk | None:
        """Return how far the prompt is computed, for a client that asked for it."""
        if not self._body.return_progress:
            return None
        return self._chunk(index, ReplyMessage(), prompt_progress=progress)

    def piece(self, index: int, piece: Piece) -> ChatChunk | None:
        """Return a piece of text, or of reasoning under both names that clients know."""
        if piece.kind == "reasoning" and piece.text:
            return self._chunk(index, _reasoning(piece.text))
        if piece.kind != "text" or not (piece.text or piece.logprobs):
            return None
        return self._chunk(index, ReplyMessage(content=piece.text), piece=piece)

    def call(self, index: int, call: ToolCall) -> ChatChunk | None:
        """Return a call of a tool, whole: its arguments are known when it is complete."""
        number = self._num_calls[index]
        self._num_calls[index] += 1
        if not self._tools.legacy:
            calls = [self._tools.call(call, number)]
            return self._chunk(index, ReplyMessage(tool_calls=calls))
        if number:
            return None
        return self._chunk(index, ReplyMessage(function_call=self._tools.function_call(call)))

    def finish(self, index: int, end: Finished) -> ChatChunk:
        """Return an answer's last chunk; the last of them has the timings."""
        self._ends[index] = end
        more: dict[str, Any] = {}
        if len(self._ends) == self._num_answers and not self._body.wants_usage:
            more["timings"] = timings_of(self._in_order(), self._num_answers)
        reason = self._reason(end, self._num_calls[index])
        return self._chunk(index, ReplyMessage(), reason, **more)

    def closing(self) -> ChatChunk | None:
        """Return the chunk of usage, which has no choices, for a client that asked for it."""
        if not self._body.wants_usage:
            return None
        ends = self._in_order()
        return ChatChunk(
            **self._heading,
            object="chat.completion.chunk",
            choices=[],
            usage=usage_of(ends, self._num_answers),
            timings=timings_of(ends, self._num_answers),
        )

    def _in_order(self) -> list[Finished]:
        return [self._ends[index] for index in sorted(self._ends)]

    def _chunk(
        self,
        index: int,
        delta: ReplyMessage,
        reason: FinishReason | None = None,
        piece: Piece | None = None,
        **more: Any,
    ) -> ChatChunk:
        wanted = piece is not None and self._body.logprobs
        logprobs = chat_logprobs(piece.logprobs) if piece is not None and wanted else None
        choice = ChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=reason)
        if self._body.wants_usage:
            more["usage"] = None
        return ChatChunk(**self._heading, object="chat.completion.chunk", choices=[choice], **more)

    def _choice(self, index: int, answer: Collected) -> ChatChoice:
        fields: dict[str, Any] = {}
        if answer.reasoning:
            fields = _reasoning(answer.reasoning).model_dump(exclude_unset=True)
        if answer.calls and self._tools.legacy:
            fields["function_call"] = self._tools.function_call(answer.calls[0])
        elif answer.calls:
            fields["tool_calls"] = self._calls(answer)
        content = None if answer.calls and not answer.text else answer.text
        return ChatChoice(
            index=index,
            message=ReplyMessage(role="assistant", content=content, refusal=None, **fields),
            logprobs=chat_logprobs(answer.logprobs) if self._body.logprobs else None,
            finish_reason=self._reason(answer.end, len(answer.calls)),
        )

    def _calls(self, answer: Collected) -> list[CallReply]:
        return [self._tools.call(call) for call in answer.calls]

    def _reason(self, end: Finished, num_calls: int) -> FinishReason:
        if end.reason in ("length", "context"):
            return "length"
        if not num_calls:
            return "stop"
        return "function_call" if self._tools.legacy else "tool_calls"


def _reasoning(text: str) -> ReplyMessage:
    return ReplyMessage(reasoning_content=text, reasoning=text)
