"""Responses that clients can come back to, in memory: they end with the server."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..backend import RequestError
from ..streams import encode
from .items import Item


@dataclass(frozen=True)
class Stored:
    """A response with the whole conversation that it answers, so that it stands on its own."""

    response: dict[str, Any]
    input_items: list[Item]

    @property
    def items(self) -> list[Item]:
        """The conversation, the answer included."""
        return [*self.input_items, *self.response["output"]]


class Store:
    """The latest responses: at most `max_responses` of at most `max_bytes` as JSON, together."""

    def __init__(self, max_responses: int = 256, max_bytes: int = 64 * 1024 * 1024) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._stored: OrderedDict[str, tuple[Stored, int]] = OrderedDict()
        self._num_bytes = 0

    def save(self, stored: Stored) -> None:
        """Keep a response, and drop the oldest ones for it."""
        size = len(encode(stored.response)) + len(encode(stored.input_items))
        self._stored[stored.response["id"]] = (stored, size)
        self._num_bytes += size
        while len(self._stored) > self._max_responses or self._num_bytes > self._max_bytes:
            _, (_, freed) = self._stored.popitem(last=False)
            self._num_bytes -= freed

    def get(self, response_id: str, param: str | None = None) -> Stored:
        """Return a response.

        Raises:
            RequestError: there is none of this id.
        """
        if response_id not in self._stored:
            raise RequestError(
                "not_found",
                f"there is no response {response_id[:100]!r}: it was not stored, or dropped since.",
                param,
            )
        return self._stored[response_id][0]

    def delete(self, response_id: str) -> None:
        """Drop a response.

        Raises:
            RequestError: there is none of this id.
        """
        self.get(response_id)
        self._num_bytes -= self._stored.pop(response_id)[1]

    def finder(self) -> Callable[[str], Item | None]:
        """Return a function from ids to items; it looks through what is stored once, when called.

        Of items with the same id it returns that of the latest response.
        """

        @cache
        def index() -> dict[str, Item]:
            stored = (one for one, _ in self._stored.values())
            return {item["id"]: item for one in stored for item in one.items}

        return lambda item_id: index().get(item_id)
