"""A real server in a process of its own, for tests of what happens between processes."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import psutil

COMMAND = (sys.executable, "-c", "from mlx_flash.cli.main import run; run()")


class RunningServer:
    """A server that was started; `port` is where it listens."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.lines: list[str] = []
        self._seen = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()
        self.port = int(self.wait_for(r"listening on http://[^ ]+:(\d+)")[1])

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._seen:
                self.lines.append(line)
                self._seen.notify_all()
        with self._seen:
            self.lines.append("(ended)")
            self._seen.notify_all()

    def wait_for(self, pattern: str, count: int = 1, timeout_s: float = 120) -> "re.Match[str]":
        """Return the match of the `count`-th line with a pattern."""
        deadline = time.monotonic() + timeout_s
        with self._seen:
            while True:
                found = [match for line in self.lines if (match := re.search(pattern, line))]
                if len(found) >= count:
                    return found[count - 1]
                left = deadline - time.monotonic()
                assert left > 0, "".join(self.lines)
                assert "(ended)" not in self.lines, "".join(self.lines)
                self._seen.wait(left)

    @property
    def worker(self) -> psutil.Process:
        """The worker's process."""
        (worker,) = psutil.Process(self.process.pid).children()
        return worker

    def post(self, path: str, body: Any, timeout_s: float = 120) -> Any:
        """Return the JSON that a request is answered with, also when that is an error."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode()
        )
        return self._open(request, timeout_s)

    def get(self, path: str, timeout_s: float = 30) -> Any:
        return self._open(urllib.request.Request(f"http://127.0.0.1:{self.port}{path}"), timeout_s)

    def _open(self, request: urllib.request.Request, timeout_s: float) -> Any:
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            return json.load(error)

    def chat(self, text: str, **options: Any) -> str:
        """Return the answer to a question."""
        body = {"messages": [{"role": "user", "content": text}], **options}
        answer = self.post("/v1/chat/completions", body)
        return str(answer["choices"][0]["message"]["content"])

    @contextlib.contextmanager
    def connected(self, body: Any, path: str = "/v1/chat/completions") -> Iterator[socket.socket]:
        """Yield a socket on which a request was sent and nothing was read."""
        content = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
            f"Content-Length: {len(content)}\r\n\r\n"
        ).encode()
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(head + content)
            yield connection

    def until(self, holds: Callable[[], bool], timeout_s: float = 30) -> float:
        """Wait until something holds; return the seconds that took."""
        start = time.monotonic()
        while not holds():
            assert time.monotonic() - start < timeout_s, "".join(self.lines)
            time.sleep(0.02)
        return time.monotonic() - start


@contextlib.contextmanager
def running(*options: str) -> Iterator[RunningServer]:
    """Start a server at a free port, wait until it is ready, and end it."""
    command = [*COMMAND, "serve", "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        server = RunningServer(process)
        try:
            server.wait_for(r"ready after")
            yield server
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def stream_lines(connection: socket.socket) -> Iterator[str]:
    """Yield the lines that come through a socket, until its end."""
    with connection.makefile("rb") as stream:
        for line in stream:
            yield line.decode().rstrip("\r\n")
