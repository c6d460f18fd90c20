"""Who may ask a server: keys, names, pages of others, and bodies of any kind."""

import asyncio
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from serving import FakeBackend, client_of

from mlx_flash.cli.serve import _keys
from mlx_flash.errors import OptionError
from mlx_flash.server.options import AccessOptions, QueueOptions, WorkerOptions

KEY, OTHER = "first-key-123", "second-key-456"
CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def ask(method: str, path: str, access: dict[str, Any] | None = None, **request: Any) -> Any:
    """Return the response to one request."""

    async def asked() -> Any:
        async with client_of(FakeBackend(), **(access or {})) as client:
            return await client.request(method, path, **request)

    return asyncio.run(asked())


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer {OTHER}"},
        {"x-api-key": KEY},
    ],
)
def test_any_of_the_keys_opens(headers: dict[str, str]) -> None:
    keys = {"api_keys": (KEY, OTHER)}
    assert ask("GET", "/v1/models", keys, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "path"),
    [
        ({}, "/v1/models"),
        ({"Authorization": "Bearer wrong-key-123"}, "/v1/chat/completions"),
        ({"Authorization": f"Basic {KEY}"}, "/api/tags"),
        ({"x-api-key": KEY[:-1]}, "/props"),
        ({"x-api-key": "\u00e9"}, "/v1/messages"),
        ({}, "/dashboard/events"),
        ({}, "/metrics"),
        ({}, "/openapi.json"),
    ],
)
def test_without_a_key_nothing_opens(headers: dict[str, str], path: str) -> None:
    encoded = {name: value.encode() for name, value in headers.items()}
    response = ask("GET", path, {"api_keys": (KEY,)}, headers=encoded)
    assert response.status_code == 401
    assert "key" in json.dumps(response.json())
    assert KEY not in response.text


@pytest.mark.parametrize("path", ["/health", "/v1/health"])
def test_health_needs_no_key(path: str) -> None:
    assert ask("GET", path, {"api_keys": (KEY,)}).status_code == 200


@pytest.mark.parametrize("host", ["localhost:8080", "127.0.0.1", "[::1]:8080", "nas.local:1"])
def test_names_of_this_machine_and_those_allowed_are_answered(host: str) -> None:
    response = ask("GET", "/health", {"hosts": ("nas.local",)}, headers={"Host": host})
    assert response.status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[", "a@b:c:d"])
def test_a_name_that_was_made_to_point_here_is_refused(host: str) -> None:
    response = ask("POST", "/v1/chat/completions", headers={"Host": host}, json=CHAT)
    assert response.status_code == 403
    assert "--allow-host" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "origin", ["http://localhost:3000", "http://127.0.0.1", "https://ok.example"]
)
def test_pages_of_this_machine_and_those_allowed_may_ask(origin: str) -> None:
    access = {"origins": ("https://ok.example",)}
    response = ask("POST", "/v1/chat/completions", access, headers={"Origin": origin}, json=CHAT)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == origin
    preflight = {"Origin": origin, "Access-Control-Request-Headers": "authorization"}
    allowed = ask("OPTIONS", "/v1/chat/completions", access, headers=preflight)
    assert allowed.status_code == 204
    assert allowed.headers["access-control-allow-headers"] == "authorization"


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost.evil.example"]
)
def test_pages_of_others_may_not_ask(origin: str) -> None:
    response = ask("POST", "/api/chat", headers={"Origin": origin}, json=CHAT)
    assert response.status_code == 403
    assert "--allow-origin" in response.json()["error"]
    assert "access-control-allow-origin" not in response.headers


def test_a_body_may_come_under_any_name_packed_or_not() -> None:
    body = json.dumps(CHAT).encode()
    for headers, content in (
        ({"Content-Type": "application/x-www-form-urlencoded"}, body),
        ({"Content-Type": "text/plain"}, body),
        ({}, body),
        ({"Content-Encoding": "gzip"}, gzip.compress(body)),
    ):
        response = ask("POST", "/v1/chat/completions", headers=headers, content=content)
        assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("headers", "content", "status"),
    [
        ({}, b"x" * 3000, 413),
        ({"Content-Encoding": "gzip"}, gzip.compress(b" " * 10**7), 413),
        ({"Content-Encoding": "gzip"}, b"no gzip", 400),
        ({"Content-Encoding": "zstd"}, b"{}", 400),
        ({}, b"{", 400),
        ({}, b"\xff\xfe", 400),
        ({}, b"[" * 2000, 400),
        ({}, b"null", 400),
        ({}, b"", 400),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/api/chat", "/tokenize"])
def test_a_body_that_cannot_be_read_is_refused_in_the_words_of_its_api(
    path: str, headers: dict[str, str], content: bytes, status: int
) -> None:
    response = ask("POST", path, {"max_body_bytes": 2048}, headers=headers, content=content)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    message = error if isinstance(error, str) else error["message"]
    assert message.endswith((".", "!"))
    assert "detail" not in response.json()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"host": "0.0.0.0"}, "--api-key"),
        ({"host": "192.168.1.5"}, "--api-key"),
        ({"host": "::"}, "--api-key"),
        ({"host": "example.com"}, "--api-key"),
        ({"port": 70000}, "port"),
        ({"api_keys": ("short",)}, "8 or more"),
        ({"api_keys": ("w\u00f6rd-w\u00f6rd",)}, "ASCII"),
        ({"max_body_bytes": 10}, "1024"),
        ({"origins": ("chat.example",)}, "no origin"),
        ({"origins": ("https://chat.example/page",)}, "no origin"),
        ({"hosts": ("http://nas.local",)}, "no name"),
    ],
)
def test_access_that_makes_no_sense_or_is_open_without_a_key_is_refused(
    options: dict[str, Any], why: str
) -> None:
    with pytest.raises(OptionError, match=why):
        AccessOptions(**options)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_this_machine_needs_no_key(host: str) -> None:
    assert AccessOptions(host=host).is_loopback


def test_keys_are_not_shown_where_options_are() -> None:
    assert KEY not in repr(AccessOptions(api_keys=(KEY,)))


@pytest.mark.parametrize(
    "options",
    [{"max_context": 3}, {"max_batch": 0}, {"kv_bits": 5}, {"prompt_cache_bytes": -1}],
)
def test_options_of_the_worker_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        WorkerOptions(**options)


@pytest.mark.parametrize("options", [{"max_waiting": 0}, {"timeout_s": 0.0}, {"drain_s": -1.0}])
def test_options_of_the_queue_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        QueueOptions(**options)


def test_keys_come_from_options_the_environment_and_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_FLASH_API_KEY", "of-the-environment")
    file = tmp_path / "keys"
    file.write_text("one-of-file\ntwo-of-file\n")
    assert _keys(["given-one"], file) == (
        "given-one",
        "of-the-environment",
        "one-of-file",
        "two-of-file",
    )
    file.write_text("\n")
    with pytest.raises(OptionError, match="holds no key"):
        _keys(None, file)
    with pytest.raises(OptionError, match="cannot read"):
        _keys(None, tmp_path / "none")
