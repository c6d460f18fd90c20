"""The stream of one or more answers as server-sent events, whatever their chunks look like."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from typing import Protocol

from ...messages import Finished, Piece, Prefilled, Started, ToolCall
from ..backend import Answer, RequestError
from ..errors import openai_error
from ..streams import ACCEPT_S, KEEP_ALIVE_S, comment, sse
from .replies import PromptProgress, Reply
from .side_by_side import all_accepted, entered, merged


class Writer(Protocol):
    """Words the events of the answers with these indices as chunks."""

    def opening(self, index: int) -> Reply | None:
        """Return the first chunk of an answer, before its prompt is computed."""

    def progress(self, index: int, progress: PromptProgress) -> Reply | None:
        """Return how far the prompt is computed, for a client that asked for it."""

    def piece(self, index: int, piece: Piece) -> Reply | None:
        """Return a piece of the answer."""

    def call(self, index: int, call: ToolCall) -> Reply | None:
        """Return a call of a tool."""

    def finish(self, index: int, end: Finished) -> Reply:
        """Return the last chunk of an answer."""

    def closing(self) -> Reply | None:
        """Return what comes after the last chunk of the last answer."""


async def stream(answers: Sequence[Answer], writer: Writer) -> AsyncGenerator[bytes, None]:
    """Yield nothing when all answers are accepted, then their events, interleaved as they come.

    Raises:
        RequestError: one is refused, before the first chunk; what fails later is an event.
    """
    async with entered(answers):
        await all_accepted(answers, ACCEPT_S)
        yield b""
        opening = _sent(writer.opening(index) for index in range(len(answers)))
        for chunk in list(opening) or [comment("accepted")]:
            yield chunk
        try:
            async with aclosing(_written(answers, writer)) as chunks:  # type: ignore[type-var]
                async for chunk in chunks:
                    yield chunk
        except RequestError as error:
            yield sse(openai_error(error))
            return
    for chunk in _sent([writer.closing()]):
        yield chunk
    yield sse("[DONE]")


async def _written(answers: Sequence[Answer], writer: Writer) -> AsyncIterator[bytes]:
    started: dict[int, tuple[float, int]] = {}
    async with aclosing(merged(answers, KEEP_ALIVE_S)) as events:  # type: ignore[type-var]
        async for index, event in events:
            if event is None:
                yield comment("keep-alive")
            elif isinstance(event, Started):
                started[index] = (time.monotonic(), event.cached_tokens)
            elif isinstance(event, Prefilled):
                since, cached = started.get(index, (time.monotonic(), 0))
                shown = writer.progress(
                    index,
                    PromptProgress(
                        total=event.total,
                        cache=cached,
                        processed=event.done,
                        time_ms=round(1000 * (time.monotonic() - since)),
                    ),
                )
                yield sse(shown.json_text()) if shown else comment("keep-alive")
            elif isinstance(event, Piece):
                for chunk in _sent([writer.piece(index, event)]):
                    yield chunk
            elif isinstance(event, ToolCall):
                for chunk in _sent([writer.call(index, event)]):
                    yield chunk
            elif isinstance(event, Finished):
                yield sse(writer.finish(index, event).json_text())


def _sent(chunks: Iterable[Reply | None]) -> Iterable[bytes]:
    return (sse(chunk.json_text()) for chunk in chunks if chunk is not None)
