"""The worker as a process: how it is started, and how it ends."""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Sequence

from ..channel import GatewayEnd, encode_options
from ..options import WorkerOptions

WORKER = (sys.executable, "-m", "mlx_flash.server.worker")
"""The command that starts a worker; its socket and its options follow."""

_END_S = 5.0


class WorkerProcess:
    """A worker that was started, and the channel to it."""

    def __init__(self, process: asyncio.subprocess.Process, channel: GatewayEnd) -> None:
        self._process = process
        self.channel = channel

    @classmethod
    async def start(
        cls, options: WorkerOptions, command: Sequence[str] = WORKER
    ) -> "WorkerProcess":
        """Start a worker. It ends when its end of the channel is closed, so it is no orphan.

        Raises:
            OSError: the system starts no process now.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    str(theirs.fileno()),
                    encode_options(options),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env={**os.environ, "TRANSFORMERS_VERBOSITY": "error"},
                    start_new_session=True,  # Ctrl-C is for the gateway, which lets answers end
                )
        except BaseException:
            ours.close()
            raise
        return cls(process, await GatewayEnd.open(ours))

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    async def end(self) -> str:
        """Close the channel, wait for the process, kill it if need be; return how it ended."""
        self.channel.close()
        try:
            await asyncio.wait_for(self._process.wait(), _END_S)
        except asyncio.TimeoutError:
            self.kill()
            await self._process.wait()
        code = self._process.returncode or 0
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def kill(self) -> None:
        """Kill the process at once."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
