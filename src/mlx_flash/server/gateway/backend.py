"""What the routes ask of whatever answers requests: the worker's link, or a stand-in in tests."""

from collections.abc import AsyncIterator, Callable
from typing import Literal, Protocol

from fastapi import Request

from ..messages import (
    Cancel,
    ChatPrompt,
    Counted,
    Event,
    Generate,
    ModelCard,
    Prompt,
    Rendered,
    Snapshot,
    Tokenized,
)
from .reports import Reports

Watched = Generate | Event | Cancel

ErrorKind = Literal[
    "invalid",  # 400
    "context_length",  # 400
    "unauthorized",  # 401
    "forbidden",  # 403
    "not_found",  # 404
    "not_allowed",  # 405, the method
    "too_large",  # 413
    "overloaded",  # 429, the queue is full
    "internal",  # 500
    "unsupported",  # 501
    "unavailable",  # 503, loading, or the worker died
    "timeout",  # 504
]

STATUS: dict[ErrorKind, int] = {
    "invalid": 400,
    "context_length": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "not_allowed": 405,
    "too_large": 413,
    "overloaded": 429,
    "internal": 500,
    "unsupported": 501,
    "unavailable": 503,
    "timeout": 504,
}


class RequestError(Exception):
    """Raised where a request cannot be answered; each dialect words it in its own shape.

    `message` is one sentence for the user; `param` names the field of the body that is wrong.
    """

    def __init__(self, kind: ErrorKind, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.param = param

    @property
    def status(self) -> int:
        """The HTTP status."""
        return STATUS[self.kind]


class Answer(Protocol):
    """An answer on its way. Leaving the `async with` before its end cancels it.

    Its events are `Accepted`, `Started`, any `Prefilled`, `Piece` and `ToolCall`, and `Finished`.
    """

    async def __aenter__(self) -> "Answer": ...
    async def __aexit__(self, *exc: object) -> None: ...

    async def accepted(self, within_s: float) -> int | None:
        """Wait until the request is accepted; return its prompt tokens, None when it takes longer.

        Raises:
            RequestError: it is refused.
        """

    def events(self, idle_s: float) -> AsyncIterator[Event | None]:
        """Yield the events that come, and None whenever none has come for `idle_s` seconds.

        Ends after `Finished`.

        Raises:
            RequestError: the answer fails.
        """


class Backend(Protocol):
    """Answers requests.

    `watch` is called with what a request wants and what happens to it: that itself when it is
    submitted, each event of its answer, `Failed` also when it is refused, `Cancel` when nobody
    waits for it any more. After `Finished`, `Failed` and `Cancel` nothing happens to it.
    """

    watch: Callable[[Generate, Watched], None]

    @property
    def card(self) -> ModelCard | None:
        """The model, once it has been loaded; a worker that died keeps it."""

    @property
    def state(self) -> Literal["loading", "ready", "failed", "stopping"]:
        """Whether there is a worker that answers."""

    @property
    def snapshot(self) -> Snapshot | None:
        """The worker's last report."""

    @property
    def reports(self) -> Reports:
        """The worker's reports of the last two minutes."""

    @property
    def restarts(self) -> int:
        """How many workers died and were followed by another."""

    def submit(self, wanted: Generate) -> Answer:
        """Begin an answer. `wanted.request` is given a number of its own: pass 0.

        Raises:
            RequestError: the queue is full, or the server is stopping.
        """

    async def count(self, prompt: Prompt) -> Counted:
        """Return the number of tokens of a prompt.

        Raises:
            RequestError: it has none, as all questions below.
        """

    async def tokenize(self, prompt: Prompt, add_special: bool = False) -> Tokenized:
        """Return the tokens of a prompt."""

    async def detokenize(self, tokens: list[int]) -> Rendered:
        """Return the text of tokens."""

    async def render(self, prompt: ChatPrompt) -> Rendered:
        """Return a chat as the template writes it."""


def backend_of(request: Request) -> Backend:
    """Return what answers the requests of this app."""
    backend: Backend = request.app.state.backend
    return backend


def card_of(backend: Backend) -> ModelCard:
    """Return the card of the model.

    Raises:
        RequestError: it is not loaded yet.
    """
    if backend.card is None:
        raise RequestError("unavailable", "the model is not loaded: try again in a while.")
    return backend.card
