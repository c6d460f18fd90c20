"""A stand-in for the Hub on the loopback interface: serves folders as repositories."""

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What a stand-in serves.

    `answers` are given in the place of its own, by path. The first repository has most downloads;
    those in `foreign` lack the mlx tag. `requests` gains a line for each request: path and query,
    the range asked for, and the bytes sent.
    """

    repositories: dict[str, Path]
    answers: dict[str, object] = field(default_factory=dict)
    foreign: frozenset[str] = frozenset()
    knows_ranges: bool = True
    requests: list[tuple[str, str, int]] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    @property
    def repositories(self) -> dict[str, Path]:
        return self.hub.repositories

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        if path in self.hub.answers:
            self._send(200, json.dumps(self.hub.answers[path]).encode())
        elif path == "/api/models":
            self._list(parse_qs(urlsplit(self.path).query))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", path):
            self._info(match[1])
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", path):
            self._tree(match[1])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/([\w.-]+)", path):
            self._file(match[1], match[2], with_body)
        else:
            self._send(404, b"{}")

    def _list(self, query: dict[str, list[str]]) -> None:
        lines = []
        for number, (repository, folder) in enumerate(self.repositories.items()):
            tags = [] if repository in self.hub.foreign else ["mlx"]
            wanted = set(query.get("filter", [])) <= set(tags)
            if wanted and query.get("search", [""])[0].lower() in repository.lower():
                config = json.loads((folder / "config.json").read_text())
                line = {"id": repository, "sha": COMMIT, "downloads": 1000 - number, "tags": tags}
                lines.append(line | {"config": {"model_type": config.get("model_type")}})
        self._send(200, json.dumps(lines).encode())

    def _info(self, repository: str) -> None:
        folder = self.repositories.get(repository)
        if folder is None:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        siblings = [
            {"rfilename": file.name, "size": file.stat().st_size}
            for file in sorted(folder.iterdir())
        ]
        body = {"id": repository, "sha": COMMIT, "siblings": siblings, "private": False}
        self._send(200, json.dumps(body).encode())

    def _tree(self, repository: str) -> None:
        files = [
            {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": COMMIT}
            for file in sorted(self.repositories[repository].iterdir())
        ]
        self._send(200, json.dumps(files).encode())

    def _file(self, repository: str, name: str, with_body: bool) -> None:
        folder = self.repositories.get(repository)
        if folder is None or not (folder / name).is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        content = (folder / name).read_bytes()
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        headers = {"ETag": etag, "X-Repo-Commit": COMMIT}
        code = 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted and self.hub.knows_ranges:
            first, last = int(wanted[1]), min(int(wanted[2]), len(content) - 1)
            code, headers["Content-Range"] = 206, f"bytes {first}-{last}/{len(content)}"
            content = content[first : last + 1]
        self._send(code, content, headers, with_body=with_body)

    def _send(
        self, code: int, body: bytes, headers: dict[str, str] | None = None, with_body: bool = True
    ) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.hub.requests.append((self.path, self.headers.get("Range", ""), len(body)))
        if with_body:
            with contextlib.suppress(ConnectionError):  # a client may have read enough
                self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Stay quiet."""


@contextmanager
def serve(hub: Hub | dict[str, Path]) -> Iterator[str]:
    """Serve folders under repository ids while the block runs; yield the address."""
    served = hub if isinstance(hub, Hub) else Hub(hub)
    handler = type("Handler", (_Handler,), {"hub": served})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
