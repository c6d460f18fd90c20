"""The application in front of a stand-in, on a free port, for clients that want a socket."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn
from serving import FakeBackend, app_of


class _Server(uvicorn.Server):
    """A server that says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = threading.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets=sockets)
        self.listens.set()


@contextlib.contextmanager
def listening(backend: FakeBackend, **access: Any) -> Iterator[str]:
    """Yield the URL of a server that answers with `backend`."""
    config = uvicorn.Config(
        app_of(backend, **access), port=0, log_level="warning", lifespan="off", ws="none"
    )
    server = _Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert server.listens.wait(20), "the server does not come up"
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
