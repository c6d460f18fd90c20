"""Events of a streamed message: its beginning, the blocks of its content, its end."""

from typing import Any, Literal

from ...messages import Finished, Piece, ToolCall
from ..streams import encode, sse
from ..turns import arguments_of
from .replies import MessageReply, ToolUse, stop_of, usage_of
from .signatures import signature_of


def event(kind: str, **fields: Any) -> bytes:
    """Return one event."""
    return sse({"type": kind, **fields}, event=kind)


PING = event("ping")


def beginning(reply: MessageReply) -> bytes:
    """Return the events before any content: the message without it, and a sign of life."""
    return event("message_start", message=reply.model_dump()) + PING


class Blocks:
    """Writes the events of content blocks: one ends where the next kind of content begins.

    Thoughts that are not to be shown leave an empty block, whose signature holds them. White space
    alone makes no block of text.
    """

    def __init__(self, show_thinking: bool) -> None:
        self.has_calls = False
        self._show_thinking = show_thinking
        self._index = 0
        self._open: Literal["text", "thinking"] | None = None
        self._space = ""
        self._thoughts: list[str] = []

    def add(self, piece: Piece) -> bytes:
        """Return the events of a piece; none, for example, when it is empty."""
        if piece.kind == "reasoning":
            return self._think(piece.text)
        return self._say(piece.text) if piece.kind == "text" else b""

    def call(self, call: ToolCall) -> bytes:
        """Return the events of a call."""
        self.has_calls = True
        data = self.close() + self._start(ToolUse(name=call.name).model_dump())
        arguments = encode(arguments_of(call.arguments)).decode()
        data += self._delta(type="input_json_delta", partial_json=arguments)
        return data + self._stop()

    def close(self) -> bytes:
        """Return the events that end the block which is open, if one is."""
        self._space = ""
        if self._open is None:
            return b""
        data = b""
        if self._open == "thinking":
            signature = signature_of("".join(self._thoughts), self._show_thinking)
            data = self._delta(type="signature_delta", signature=signature)
            self._thoughts = []
        self._open = None
        return data + self._stop()

    def _think(self, text: str) -> bytes:
        if not text:
            return b""
        data = b""
        if self._open != "thinking":
            data = self.close() + self._start({"type": "thinking", "thinking": "", "signature": ""})
            self._open = "thinking"
        self._thoughts.append(text)
        if self._show_thinking:
            data += self._delta(type="thinking_delta", thinking=text)
        return data

    def _say(self, text: str) -> bytes:
        data = b""
        if self._open != "text":
            text = self._space + text
            if not text.strip():
                self._space = text
                return b""
            data = self.close() + self._start({"type": "text", "text": "", "citations": None})
            self._open = "text"
        return data + self._delta(type="text_delta", text=text) if text else data

    def _start(self, block: dict[str, Any]) -> bytes:
        return event("content_block_start", index=self._index, content_block=block)

    def _delta(self, **delta: str) -> bytes:
        return event("content_block_delta", index=self._index, delta=delta)

    def _stop(self) -> bytes:
        self._index += 1
        return event("content_block_stop", index=self._index - 1)

    def end(self, end: Finished) -> bytes:
        """Return the events that end the message."""
        reason, sequence = stop_of(end, self.has_calls)
        delta = {
            "stop_reason": reason,
            "stop_sequence": sequence,
            "stop_details": None,
            "container": None,
        }
        keys = {
            "input_tokens",
            "cache_creation_input_tokens",
            "cache_read_input_tokens",
            "output_tokens",
            "output_tokens_details",
            "server_tool_use",
        }
        usage = usage_of(end).model_dump(include=keys)
        ending = event("message_delta", delta=delta, usage=usage) + event("message_stop")
        return self.close() + ending
