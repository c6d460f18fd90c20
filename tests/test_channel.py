"""What the two processes say to each other arrives whole, and the end of one ends the talk."""

import asyncio
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from mlx_flash.server.channel import GatewayEnd, WorkerEnd, decode_options, encode_options, framed
from mlx_flash.server.messages import (
    Cancel,
    Counted,
    Failed,
    Generate,
    Grammar,
    Sampling,
    TextPrompt,
)
from mlx_flash.server.options import WorkerOptions

WANTED = Generate(
    request=7,
    prompt=TextPrompt(text="héllo 🙂"),
    stop=["\n"],
    sampling=Sampling(seed=2**63, logit_bias={5: -1.5}),
    grammar=Grammar(kind="json"),
)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, WorkerEnd]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, WorkerEnd(theirs)


Ends = tuple[socket.socket, WorkerEnd]


def test_what_the_gateway_says_is_what_the_worker_hears(ends: Ends) -> None:
    ours, worker = ends
    ours.sendall(framed(WANTED) + framed(Cancel(7)))
    ours.close()
    assert list(worker.received()) == [WANTED, Cancel(7)]


def test_a_long_message_arrives_whole(ends: Ends) -> None:
    async def heard() -> object:
        ours, worker = ends
        gateway = await GatewayEnd.open(ours)
        wanted = Generate(request=1, prompt=TextPrompt(text="x" * 5_000_000))
        gateway.send(framed(wanted))
        received = await asyncio.to_thread(next, worker.received())
        gateway.close()
        return received == wanted

    assert asyncio.run(heard())


def test_what_the_worker_says_together_arrives_together(ends: Ends) -> None:
    async def heard() -> object:
        ours, worker = ends
        gateway = await GatewayEnd.open(ours)
        worker.send([Counted(1, 2), Failed(3, "invalid", "no")])
        worker.send([])
        messages = await gateway.receive()
        gateway.close()
        return messages

    assert asyncio.run(heard()) == [Counted(1, 2), Failed(3, "invalid", "no")]


def test_a_message_arrives_though_it_comes_in_parts() -> None:
    class InParts(socket.socket):
        """As when a process is stopped and continued while it waits."""

        def recv(self, size: int, flags: int = 0) -> bytes:
            return super().recv(min(size, 3), flags)

        def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
            return super().recv_into(buffer[:3], nbytes, flags)

    ours, theirs = socket.socketpair()
    with ours, InParts(fileno=theirs.detach()) as parts:
        ours.sendall(framed(WANTED) + framed(Cancel(7)))
        ours.close()
        assert list(WorkerEnd(parts).received()) == [WANTED, Cancel(7)]


@pytest.mark.parametrize("cut", [1, 3, 4, 10])
def test_half_a_message_is_the_end(ends: Ends, cut: int) -> None:
    ours, worker = ends
    ours.sendall(framed(Cancel(1)) + framed(WANTED)[:cut])
    ours.close()
    assert list(worker.received()) == [Cancel(1)]


def test_a_gateway_that_was_killed_with_messages_unread_is_gone(ends: Ends) -> None:
    ours, worker = ends
    worker.send([Counted(1, 2)])  # unread: the system resets the connection
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    ours.close()
    assert list(worker.received()) == []
    with pytest.raises(OSError, match="pipe"):
        worker.send([Counted(1, 2)])


def test_a_worker_that_has_gone_is_heard_no_more() -> None:
    async def heard() -> object:
        ours, theirs = socket.socketpair()
        gateway = await GatewayEnd.open(ours)
        theirs.sendall(b"\x10\x00")
        theirs.close()
        first = await gateway.receive()
        gateway.send(framed(Cancel(1)))  # nobody hears it, and nothing is raised
        gateway.close()
        return first

    assert asyncio.run(heard()) is None


def test_options_come_through_a_command_line() -> None:
    options = WorkerOptions(model="a b/c", max_context=1024, temperature=0.5, kv_bits=8)
    assert decode_options(encode_options(options)) == options
