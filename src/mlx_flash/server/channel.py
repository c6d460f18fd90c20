"""Messages over the socket between the two processes: length, then MessagePack.

The socket is a pair that the worker inherits: it has no name that others could open, and when
either process dies, however it dies, the system tells the other by the end of the stream.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from .messages import FromWorker, ToWorker
from .options import WorkerOptions

_LENGTH = struct.Struct("<I")

_encoder = msgspec.msgpack.Encoder()
_to_worker = msgspec.msgpack.Decoder(ToWorker)
_from_worker = msgspec.msgpack.Decoder(list[FromWorker])


def encode_options(options: WorkerOptions) -> str:
    """Return the options as text, for the worker's command line."""
    return msgspec.json.encode(options).decode()


def decode_options(text: str) -> WorkerOptions:
    """Return the options that the gateway gave."""
    return msgspec.json.decode(text, type=WorkerOptions)


def framed(message: Any) -> bytes:
    """Return a message as it goes through the socket.

    Raises:
        UnicodeEncodeError: a text in it is no Unicode text.
    """
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


class WorkerEnd:
    """The worker's end. Any thread may send; one receives."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._lock = threading.Lock()

    def send(self, messages: Sequence[FromWorker]) -> None:
        """Send messages together, in this order. Blocks while the gateway is busy.

        Raises:
            OSError: the gateway has gone.
        """
        if messages:
            frame = framed(list(messages))
            with self._lock:
                self._socket.sendall(frame)

    def received(self) -> Iterator[ToWorker]:
        """Yield what the gateway says, until it goes."""
        while (head := self._exactly(_LENGTH.size)) is not None:
            body = self._exactly(_LENGTH.unpack(head)[0])
            if body is None:
                return
            yield _to_worker.decode(body)

    def _exactly(self, length: int) -> bytes | None:
        """Return so many bytes; None when the gateway has gone, killed in mid-sentence or not.

        A process that is stopped and continued gets a part of what it waits for.
        """
        data = bytearray(length)
        rest = memoryview(data)
        try:
            while rest and (count := self._socket.recv_into(rest)):
                rest = rest[count:]
        except OSError:
            return None
        return None if rest else bytes(data)


class GatewayEnd:
    """The gateway's end, in its event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, end: socket.socket) -> "GatewayEnd":
        """Return the end of a connected socket, which it closes in the end."""
        return cls(*await asyncio.open_connection(sock=end))

    def send(self, frame: bytes) -> None:
        """Send a message that was `framed`; a worker that has gone does not hear it."""
        if not self._writer.is_closing():
            self._writer.write(frame)

    async def receive(self) -> list[FromWorker] | None:
        """Return the messages that came together; None when the worker has gone."""
        try:
            length = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))[0]
            return _from_worker.decode(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def close(self) -> None:
        """Close the socket: the worker sees the end of the stream."""
        self._writer.close()
