"""An answer under way: what the worker said of it, and who waits for it."""

import asyncio
from collections.abc import AsyncIterator, Callable

import msgspec

from ..channel import framed
from ..messages import Accepted, Event, Failed, Finished, Generate, Piece, Started, ToolCall
from .backend import RequestError


class LiveAnswer:
    """The answer to one request. The link puts events in; a route takes them out.

    `said` tells whether the client may have seen a part of it: then it cannot be begun anew.
    """

    def __init__(
        self, wanted: Generate, timeout_s: float, cancel: Callable[["LiveAnswer"], None]
    ) -> None:
        self.wanted = wanted
        self.frame = framed(wanted)
        self.attempts = 1
        self.said = False
        self.ended = False
        self._deadline = asyncio.get_running_loop().time() + timeout_s
        self._cancel = cancel
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def put(self, event: Event) -> None:
        """Take in what the worker said."""
        if self.ended:
            return
        if isinstance(event, Accepted):
            if self._accepted.done():
                return  # of an earlier attempt
            self._accepted.set_result(event.prompt_tokens)
        elif isinstance(event, Started) and self.attempts > 1:
            return
        self.said = self.said or isinstance(event, (Piece, ToolCall))
        self.ended = isinstance(event, (Finished, Failed))
        if isinstance(event, Failed) and not self._accepted.done():
            self._accepted.set_exception(RequestError(event.kind, event.message))
            self._accepted.exception()  # seen, even if nobody waits for it
        self._events.put_nowait(event)

    async def __aenter__(self) -> "LiveAnswer":
        return self

    async def __aexit__(self, *exc: object) -> None:
        if not self.ended:
            self.ended = True
            self._cancel(self)

    async def accepted(self, within_s: float) -> int | None:
        """Return the prompt's tokens once the request is accepted; None after `within_s`."""
        done, _ = await asyncio.wait({self._accepted}, timeout=within_s)
        return self._accepted.result() if done else None

    async def events(self, idle_s: float) -> AsyncIterator[Event | None]:
        """Yield events as they come, None after each `idle_s` seconds without one."""
        loop = asyncio.get_running_loop()
        while True:
            if self._events.empty():
                left = self._deadline - loop.time()
                if left <= 0:
                    raise RequestError("timeout", "the answer took too long and was given up.")
                try:
                    event = await asyncio.wait_for(self._events.get(), min(idle_s, left))
                except asyncio.TimeoutError:
                    yield None
                    continue
            else:
                event = self._events.get_nowait()
            if isinstance(event, Failed):
                raise RequestError(event.kind, event.message)
            yield event
            if isinstance(event, Finished):
                return


def numbered(wanted: Generate, number: int) -> Generate:
    """Return a request with a number of its own."""
    return msgspec.structs.replace(wanted, request=number)


def unspeakable() -> RequestError:
    """Return the error of a request that has no encoding for the worker."""
    return RequestError(
        "invalid",
        "the request holds half a character (a lone surrogate) or a number of more than 64 bits.",
    )
