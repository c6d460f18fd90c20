"""Runs the gateway: the application, the link to the worker, and an orderly end."""

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncIterator, Callable

import uvicorn
from fastapi import FastAPI

from ...errors import OptionError, WorkerError
from ..options import AccessOptions, QueueOptions, WorkerOptions
from .app import create_app
from .link import WorkerLink


def serve(
    access: AccessOptions,
    queue: QueueOptions,
    worker: WorkerOptions,
    notice: Callable[[str], None],
) -> None:
    """Serve until Ctrl-C or SIGTERM; `notice` is told what whoever started the server should know.

    Raises:
        OptionError: the address is taken, or the model cannot be loaded as asked.
        WorkerError: the worker cannot be kept alive.
    """
    listening = _listen(access)
    with contextlib.closing(listening):
        asyncio.run(_serve(listening, access, queue, worker, notice))


def _listen(access: AccessOptions) -> socket.socket:
    """Return the socket to serve at, bound before any model is loaded."""
    family = socket.AF_INET6 if ":" in access.host else socket.AF_INET
    # asyncio turns the delay of small segments off for sockets that name their protocol
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((access.host, access.port))
    except OSError as error:
        listening.close()
        other = "--port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
        raise OptionError(
            f"cannot listen on {access.host}:{access.port}: {error.strerror or error}; "
            f"choose another {other}."
        ) from error
    return listening


async def _serve(
    listening: socket.socket,
    access: AccessOptions,
    queue: QueueOptions,
    worker: WorkerOptions,
    notice: Callable[[str], None],
) -> None:
    link = WorkerLink(worker, queue, notice)
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        link.start()
        yield

    config = uvicorn.Config(
        create_app(link, access, lifespan),
        log_level="warning",
        access_log=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
        limit_concurrency=None,
        h11_max_incomplete_event_size=64 * 1024,
    )
    server = _Server(config, link, notice)
    notice(f"listening on http://{shown}:{port}")
    ending = asyncio.create_task(_end_on_failure(link, server))
    try:
        await server.serve(sockets=[listening])
    finally:
        ending.cancel()
        await link.stop()
    if link.failure is not None:
        kind = OptionError if link.failure.users_fault else WorkerError
        raise kind(link.failure.message)


class _Server(uvicorn.Server):
    """Lets answers under way end before it closes its connections."""

    def __init__(
        self, config: uvicorn.Config, link: WorkerLink, notice: Callable[[str], None]
    ) -> None:
        super().__init__(config)
        self._link = link
        self._notice = notice

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, then close."""
        if left := self._link.under_way:
            answers = "an answer" if left == 1 else f"{left} answers"
            drain_s = f"{self._link.drain_s:.0f} s"
            self._notice(f"stopping after {answers}, or {drain_s}; Ctrl-C stops now.")
        await self._link.stop(hurried=lambda: self.force_exit)
        self.force_exit = False  # what is left ends by itself: its answers have failed
        await super().shutdown(sockets)
        self._notice("stopped.")


async def _end_on_failure(link: WorkerLink, server: uvicorn.Server) -> None:
    """End the server when its model cannot be loaded the first time: nobody can be served."""
    await link.loaded.wait()
    if link.failure is not None and link.card is None:
        server.should_exit = True
