"""Questions to the worker that have one reply, unlike requests, whose answer is a stream."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from ..channel import framed
from ..messages import (
    Count,
    Counted,
    Detokenize,
    Failed,
    FromWorker,
    Render,
    Rendered,
    Tokenize,
    Tokenized,
)
from .answers import unspeakable
from .backend import RequestError

_ASK_S = 60.0

R = TypeVar("R", Counted, Tokenized, Rendered)
Question = Count | Tokenize | Detokenize | Render
Reply = Failed | Counted | Tokenized | Rendered


class Questions:
    """The questions that wait for their reply. One event loop uses it."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        """`send` sends a frame to the worker."""
        self._send = send
        self._waiting: dict[int, asyncio.Future[FromWorker]] = {}

    async def ask(self, question: Question, kind: type[R]) -> R:
        """Return the reply to a question.

        Raises:
            RequestError: it cannot be sent, or has no reply, or not in time.
        """
        future: asyncio.Future[FromWorker] = asyncio.get_running_loop().create_future()
        try:
            frame = framed(question)
        except (UnicodeEncodeError, OverflowError):
            raise unspeakable() from None
        self._waiting[question.request] = future
        self._send(frame)
        try:
            reply = await asyncio.wait_for(future, _ASK_S)
        except asyncio.TimeoutError:
            raise RequestError("timeout", "the worker took too long to answer.") from None
        finally:
            self._waiting.pop(question.request, None)
        if isinstance(reply, Failed):
            raise RequestError(reply.kind, reply.message)
        assert isinstance(reply, kind), "the reply of another question"
        return reply

    def take(self, reply: Reply) -> bool:
        """Hand a reply to who asked; return whether there was such a question."""
        future = self._waiting.get(reply.request)
        if future is None:
            return False
        if not future.done():
            future.set_result(reply)
        return True

    def fail_all(self, why: str) -> None:
        """Tell all who wait that there will be no reply."""
        for number in self._waiting:
            self.take(Failed(number, "unavailable", why))
