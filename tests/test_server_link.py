"""The gateway's link to workers that cannot be started, or are late: what requests are told."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from serving import CARD

from mlx_flash.server.gateway import link as link_module
from mlx_flash.server.gateway.backend import RequestError
from mlx_flash.server.gateway.link import WorkerLink
from mlx_flash.server.messages import Generate, TextPrompt
from mlx_flash.server.options import QueueOptions, WorkerOptions

WANTED = Generate(request=0, prompt=TextPrompt(text="import os"))
LATE = """
import socket, sys
from mlx_flash.server.channel import WorkerEnd
from mlx_flash.server.messages import ModelCard, Ready, Stop
import msgspec

end = WorkerEnd(socket.socket(fileno=int(sys.argv[2])))
for message in end.received():
    if isinstance(message, Stop):
        end.send([Ready(msgspec.json.decode(sys.argv[1], type=ModelCard), [])])
        break
"""


def test_a_worker_that_the_system_does_not_start_is_tried_again_and_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(link_module, "_BACK_OFF_S", (0.0,))
    missing = str(tmp_path / "missing")

    async def failure() -> str:
        link = WorkerLink(WorkerOptions(), QueueOptions(), command=(missing,))
        link.start()
        await asyncio.wait_for(link.loaded.wait(), 10)
        await link.stop()
        assert link.failure is not None
        return link.failure.message

    assert "cannot be started: No such file" in asyncio.run(failure())


def test_a_worker_that_is_ready_too_late_does_not_open_a_server_that_stops() -> None:
    card = msgspec.json.encode(CARD).decode()

    async def states() -> list[Any]:
        command = (sys.executable, "-c", LATE, card)
        link = WorkerLink(WorkerOptions(), QueueOptions(), command=command)
        link.start()
        while link.worker_pid is None:
            await asyncio.sleep(0.01)
        stopping = asyncio.create_task(link.stop())
        await asyncio.wait_for(link.loaded.wait(), 20)
        state = link.state
        with pytest.raises(RequestError) as refused:
            link.submit(WANTED)
        await stopping
        return [state, refused.value.kind]

    assert asyncio.run(states()) == ["stopping", "unavailable"]
