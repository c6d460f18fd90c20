"""`mlx-flash connect`: what other programs are told, and how their files are changed."""

import contextlib
import io
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import tomlkit

from mlx_flash.cli.clients.discovery import discover
from mlx_flash.cli.clients.registry import CLIENTS
from mlx_flash.cli.main import run
from mlx_flash.errors import OptionError

KEY = "sk-very-secret-key"
NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody listens
FILES = {
    "claude": ".claude/settings.json",
    "codex": ".codex/config.toml",
    "opencode": ".config/opencode/opencode.json",
    "qwen-code": ".qwen/settings.json",
    "aider": ".aider.conf.yml",
    "pi": ".pi/agent/models.json",
    "crush": ".config/crush/crush.json",
    "zed": ".config/zed/settings.json",
    "continue": ".continue/config.yaml",
}


@dataclass(frozen=True)
class Result:
    returncode: int
    stdout: str
    stderr: str


def connect(home: Path, *arguments: str, **variables: str) -> Result:
    """Run the command with `home` as the user's home, at an address without a server."""
    given = ("--url", NOWHERE) if arguments and "--url" not in arguments else ()
    environment = {"HOME": str(home), "COLUMNS": "120"} | variables
    code: Any = None
    with (
        mock.patch.dict(os.environ, environment, clear=True),
        mock.patch.object(sys, "argv", ["mlx-flash", "connect", *arguments, *given]),
        contextlib.redirect_stdout(io.StringIO()) as stdout,
        contextlib.redirect_stderr(io.StringIO()) as stderr,
    ):
        try:
            run()
        except SystemExit as stop:
            code = stop.code
    return Result(code or 0, stdout.getvalue(), stderr.getvalue())


def done(home: Path, *arguments: str, **variables: str) -> Result:
    result = connect(home, *arguments, **variables)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    return result


def refused(home: Path, *arguments: str) -> str:
    """Run what must be refused; return its sentence, the last line after any notes."""
    result = connect(home, *arguments)
    assert result.returncode == 2, result
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    line = result.stderr.splitlines()[-1]
    assert line.startswith("mlx-flash: ")
    assert sum(text.startswith("mlx-flash: ") for text in result.stderr.splitlines()) == 1
    return line


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


class Models(BaseHTTPRequestHandler):
    """A server's list of models. What it answers and what it was asked hang on its server."""

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Authorization")))  # type: ignore[attr-defined]
        status, headers, body = self.server.answer  # type: ignore[attr-defined]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Running:
    def __init__(self) -> None:
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Models)
        self.asked: list[tuple[str, str | None]] = []
        self.http.asked = self.asked  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.says(200, {"data": [{"id": "org/model-a", "max_model_len": 65536}]})

    def says(self, status: int, answer: Any, **headers: str) -> None:
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.http.answer = (status, headers, body)  # type: ignore[attr-defined]


@pytest.fixture
def server() -> Iterator[Running]:
    running = Running()
    thread = threading.Thread(target=running.http.serve_forever, args=(0.01,))
    thread.start()
    yield running
    running.http.shutdown()
    thread.join()
    running.http.server_close()


def test_clients_are_listed_without_one(tmp_path: Path) -> None:
    listed = done(tmp_path).stdout
    for client in CLIENTS:
        assert f"{client.name} " in listed
        assert client.title in listed
    rows = json.loads(done(tmp_path, "--json").stdout)["clients"]
    assert [row["client"] for row in rows] == [client.name for client in CLIENTS]


def test_unknown_client_is_one_sentence_that_names_the_known_ones(tmp_path: Path) -> None:
    line = refused(tmp_path, "nosuch")
    assert "nosuch" in line
    assert "claude, codex" in line


@pytest.mark.parametrize("client", [client.name for client in CLIENTS])
def test_every_client_is_shown_and_nothing_is_written(client: str, tmp_path: Path) -> None:
    shown = done(tmp_path, client, "--model", "org/model-b").stdout
    assert "host.docker.internal:9/v1" in shown if client == "librechat" else NOWHERE in shown
    if client not in ("xcode", "vscode", "openwebui"):  # they choose the model in a list
        assert "org/model-b" in shown
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("client", FILES)
def test_files_are_written_once_and_hold_the_key_in_private(client: str, tmp_path: Path) -> None:
    first = done(tmp_path, client, "--write", "--model", "org/m", MLX_FLASH_API_KEY=KEY)
    path = tmp_path / FILES[client]
    assert f"wrote {path}" in first.stdout
    written = path.read_text()
    assert "org/m" in written
    assert f"{NOWHERE}" in written
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = contents(tmp_path)
    second = done(tmp_path, client, "--write", "--model", "org/m", "--api-key", KEY)
    assert f"already set: {path}" in second.stdout
    assert "wrote" not in second.stdout
    assert contents(tmp_path) == before
    assert KEY not in first.stdout + first.stderr + second.stdout + second.stderr


def test_file_without_a_key_has_the_usual_mode(tmp_path: Path) -> None:
    usual = put(tmp_path / "usual", "")
    done(tmp_path, "claude", "--write")
    written = tmp_path / FILES["claude"]
    assert written.stat().st_mode == usual.stat().st_mode


def test_codex_reads_the_key_from_the_environment(tmp_path: Path) -> None:
    shown = done(tmp_path, "codex", "--api-key", KEY).stdout
    assert f"export MLX_FLASH_API_KEY={KEY}" in shown
    done(tmp_path, "codex", "--api-key", KEY, "--write")
    written = (tmp_path / FILES["codex"]).read_text()
    assert KEY not in written
    provider = tomlkit.parse(written).unwrap()["model_providers"]["mlx-flash"]
    assert provider["env_key"] == "MLX_FLASH_API_KEY"
    assert provider["wire_api"] == "responses"


def test_merging_json_keeps_what_else_is_there(tmp_path: Path) -> None:
    old = '{\n    "permissions": {"allow": ["é"]},\n    "env": {"A": "1", "API_TIMEOUT_MS": "5"}\n}'
    path = put(tmp_path / FILES["claude"], old)
    os.chmod(path, 0o640)
    result = done(tmp_path, "claude", "--write", "--context", "65536")
    new = json.loads(path.read_text())
    assert new["permissions"] == {"allow": ["é"]}
    assert "é" in path.read_text()
    assert new["env"]["A"] == "1"
    assert new["env"]["API_TIMEOUT_MS"] == "3600000"
    assert new["env"]["CLAUDE_CODE_MAX_CONTEXT_TOKENS"] == "65536"
    assert "\n    " in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    backup = path.with_name("settings.json.bak")
    assert backup.read_text() == old
    assert stat.S_IMODE(backup.stat().st_mode) == 0o640
    assert str(backup) in result.stdout


def test_merging_toml_keeps_other_tables_and_comments(tmp_path: Path) -> None:
    old = (
        "# mine\n"
        'model = "old"  # the old one\n'
        'approval_policy = "never"\n\n'
        "[model_providers.other]  # keep\n"
        'name = "Other"\n\n'
        '[projects."/somewhere"]\n'
        'trust_level = "trusted"\n'
    )
    path = put(tmp_path / FILES["codex"], old)
    done(tmp_path, "codex", "--write", "--model", "new")
    text = path.read_text()
    for kept in ("# mine", "# the old one", "# keep", 'trust_level = "trusted"'):
        assert kept in text
    new = tomlkit.parse(text).unwrap()
    assert new["model"] == "new"
    assert new["approval_policy"] == "never"
    assert new["model_provider"] == "mlx-flash"
    assert new["model_providers"]["other"] == {"name": "Other"}
    assert new["model_providers"]["mlx-flash"]["base_url"] == f"{NOWHERE}/v1"
    assert new["projects"] == {"/somewhere": {"trust_level": "trusted"}}


def test_other_models_of_a_shared_list_stay_and_ours_is_replaced(tmp_path: Path) -> None:
    theirs = {"id": "theirs", "baseUrl": "https://example.org/v1"}
    path = tmp_path / FILES["qwen-code"]
    put(path, json.dumps({"modelProviders": {"openai": [theirs]}}))
    for model in ("one", "two"):
        done(tmp_path, "qwen-code", "--write", "--model", model)
    listed = json.loads(path.read_text())["modelProviders"]["openai"]
    assert [entry["id"] for entry in listed] == ["theirs", "two"]
    assert listed[0] == theirs


def test_list_at_the_top_of_a_file_is_merged(tmp_path: Path) -> None:
    done(tmp_path, "vscode", "--write")
    (path,) = (tmp_path / name for name in contents(tmp_path))
    other = {"vendor": "other", "name": "Other"}
    put(path, json.dumps([other]))
    done(tmp_path, "vscode", "--write")
    ours = {"name": "MLX-Flash", "vendor": "ollama", "url": NOWHERE}
    assert json.loads(path.read_text()) == [other, ours]


def test_no_backup_is_overwritten(tmp_path: Path) -> None:
    path = put(tmp_path / FILES["claude"], "{}")
    for model in ("a", "b", "c"):
        done(tmp_path, "claude", "--write", "--model", model)
    first, second, third = (path.with_name(f"settings.json.bak{n}") for n in ("", "1", "2"))
    assert first.read_text() == "{}"
    assert json.loads(second.read_text())["env"]["ANTHROPIC_MODEL"] == "a"
    assert json.loads(third.read_text())["env"]["ANTHROPIC_MODEL"] == "b"


def test_a_link_stays_a_link_and_its_target_is_changed(tmp_path: Path) -> None:
    target = put(tmp_path / "dotfiles" / "claude.json", '{"a": 1}')
    link = tmp_path / FILES["claude"]
    link.parent.mkdir()
    link.symlink_to(target)
    result = done(tmp_path, "claude", "--write")
    assert link.is_symlink()
    assert json.loads(target.read_text())["a"] == 1
    assert "env" in json.loads(target.read_text())
    assert target.with_name("claude.json.bak").read_text() == '{"a": 1}'
    assert str(target) in result.stdout


@pytest.mark.parametrize(
    ("client", "text", "why"),
    [
        ("claude", '{"env": ', "is not valid JSON"),
        ("claude", '{\n  // mine\n  "env": {}\n}', "has comments"),
        ("claude", '{"env": "x"}', "has no object at env"),
        ("claude", "[]", "has no object at its top"),
        ("qwen-code", '{"modelProviders": {"openai": {}}}', "no list at modelProviders.openai"),
        ("codex", "model = ", "is not valid TOML"),
        ("codex", 'model_providers = "x"', "has no object at model_providers"),
        ("codex", "a = 1\na = 2\n", "is not valid TOML"),
        ("codex", 'model_providers = {x = {name = "a"}}', "cannot be changed safely"),
        ("codex", 'model_providers.x.name = "a"', "cannot be changed safely"),
    ],
)
def test_file_that_cannot_be_merged_is_left_alone(
    client: str, text: str, why: str, tmp_path: Path
) -> None:
    path = put(tmp_path / FILES[client], text)
    before = contents(tmp_path)
    line = refused(tmp_path, client, "--write")
    assert why in line
    assert str(path) in line
    assert "nothing was written" in line
    assert contents(tmp_path) == before


def test_file_that_is_no_text_is_left_alone(tmp_path: Path) -> None:
    path = put(tmp_path / FILES["claude"], "")
    path.write_bytes(b"\xff\xfe{}")
    assert "is no UTF-8 text" in refused(tmp_path, "claude", "--write")
    assert path.read_bytes() == b"\xff\xfe{}"


def test_nothing_is_written_when_the_second_file_cannot_be(tmp_path: Path) -> None:
    put(tmp_path / ".pi/agent/settings.json", "{")
    before = contents(tmp_path)
    assert "settings.json is not valid JSON" in refused(tmp_path, "pi", "--write")
    assert contents(tmp_path) == before


def test_yaml_that_is_there_is_not_touched_but_shown_to_paste(tmp_path: Path) -> None:
    path = put(tmp_path / FILES["continue"], "name: mine\n")
    result = done(tmp_path, "continue", "--write", "--api-key", KEY)
    assert path.read_text() == "name: mine\n"
    assert "put this into it by hand" in result.stdout
    assert 'apiKey: "YOUR_API_KEY"' in result.stdout
    assert KEY not in result.stdout


def test_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    put(tmp_path / ".claude", "a file where a folder belongs")
    before = contents(tmp_path)
    line = refused(tmp_path, "claude", "--write")
    assert "cannot" in line
    assert ".claude/settings.json" in line
    assert contents(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission_is_one_sentence(tmp_path: Path) -> None:
    path = put(tmp_path / FILES["claude"], "{}")
    os.chmod(path.parent, 0o500)
    try:
        assert "Permission denied" in refused(tmp_path, "claude", "--write")
    finally:
        os.chmod(path.parent, 0o700)
    assert path.read_text() == "{}"


def test_a_key_in_a_file_that_others_may_read_is_said(tmp_path: Path) -> None:
    path = put(tmp_path / FILES["claude"], "{}")
    os.chmod(path, 0o644)
    result = done(tmp_path, "claude", "--write", "--api-key", KEY)
    assert f"others may read {path}" in result.stderr
    assert KEY in path.read_text()


def test_client_without_files_says_so_and_shows_its_variables(tmp_path: Path) -> None:
    result = done(tmp_path, "copilot-cli", "--write", "--model", "it's mine")
    assert "there is no file to write" in result.stderr
    assert "export COPILOT_MODEL='it'\"'\"'s mine'" in result.stdout
    assert contents(tmp_path) == {}


def test_folders_that_the_environment_names_are_used(tmp_path: Path) -> None:
    done(tmp_path, "codex", "--write", CODEX_HOME=str(tmp_path / "c"))
    done(tmp_path, "claude", "--write", CLAUDE_CONFIG_DIR=str(tmp_path / "d"))
    done(tmp_path, "opencode", "--write", XDG_CONFIG_HOME=str(tmp_path / "x"))
    assert set(contents(tmp_path)) == {
        "c/config.toml",
        "d/settings.json",
        "x/opencode/opencode.json",
    }


def test_json_tells_what_is_written(tmp_path: Path) -> None:
    result = done(tmp_path, "claude", "--write", "--api-key", KEY, "--json")
    report = json.loads(result.stdout)
    (file,) = report["files"]
    assert file["state"] == "written"
    assert file["path"] == str(tmp_path / FILES["claude"])
    assert report["server_running"] is False
    assert report["model"] == "mlx-flash"
    assert KEY not in result.stdout
    report = json.loads(done(tmp_path, "claude", "--json").stdout)
    assert report["files"][0]["state"] == "not written"


def test_model_and_context_come_from_the_server(server: Running, tmp_path: Path) -> None:
    result = done(tmp_path, "opencode", "--write", "--url", f"{server.url}/v1/", "--api-key", KEY)
    assert f"the server at {server.url} runs org/model-a" in result.stderr
    options = json.loads((tmp_path / FILES["opencode"]).read_text())
    assert options["model"] == "mlx-flash/org/model-a"
    provider = options["provider"]["mlx-flash"]
    assert provider["options"]["baseURL"] == f"{server.url}/v1"
    limits = provider["models"]["org/model-a"]["limit"]
    assert limits == {"context": 65536, "output": 16384}
    assert server.asked == [("/v1/models", f"Bearer {KEY}")]


@pytest.mark.parametrize("context", [2048, 65536])
def test_claude_is_told_when_its_first_question_cannot_fit(tmp_path: Path, context: int) -> None:
    shown = done(tmp_path, "claude", "--model", "m", "--context", str(context)).stdout
    assert ("first question takes up to 20,000 tokens" in shown) == (context == 2048)


def test_given_model_and_context_come_before_the_servers(server: Running) -> None:
    listed = [{"id": "a", "max_model_len": 1000}, {"id": "b", "max_model_len": 2000}]
    server.says(200, {"data": listed})
    assert discover(server.url).server.model == "a"
    chosen = discover(server.url, model="b").server
    assert (chosen.model, chosen.context) == ("b", 2000)
    other = discover(server.url, model="c", context=512).server
    assert (other.model, other.context) == ("c", 512)


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>",
        b"\xff",
        [],
        {},
        {"data": 5},
        {"data": [5, {}, {"id": 3}, {"id": ""}, {"id": "a\nb"}]},
    ],
)
def test_strange_answer_leaves_the_defaults(answer: Any, server: Running) -> None:
    server.says(200, answer)
    found = discover(server.url)
    assert not found.running
    assert (found.server.model, found.server.context) == ("mlx-flash", 32768)


@pytest.mark.parametrize("length", [None, "5", -1, 0, True, 1.5])
def test_strange_context_leaves_the_default(length: Any, server: Running) -> None:
    server.says(200, {"data": [{"id": "m", "max_model_len": length}]})
    found = discover(server.url)
    assert (found.server.model, found.server.context) == ("m", 32768)


def test_redirect_is_not_followed_and_no_proxy_is_asked(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = Running()
    elsewhere.http.server_close()
    monkeypatch.setenv("http_proxy", elsewhere.url)
    server.says(302, b"", Location=f"{server.url}/elsewhere")
    found = discover(server.url, api_key=KEY)
    assert not found.running
    assert "status 302" in found.note
    assert server.asked == [("/v1/models", f"Bearer {KEY}")]


def test_server_that_refuses_the_key_is_said(server: Running) -> None:
    server.says(401, {"error": {}})
    assert "wants another --api-key" in discover(server.url).note


def test_server_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    result = done(tmp_path, "codex")
    note, hint = result.stderr.splitlines()
    assert note.startswith(f"no server is running at {NOWHERE}; assuming model mlx-flash")
    assert "--write writes it" in hint


@pytest.mark.parametrize(
    "url",
    [
        *("", "127.0.0.1:8080", "ftp://host", "http://", "http://host:port", "http://h?a=b"),
        *("http://user:pw@host", "http://h/#x", "http://h:99999", "http://a b", "http://a`b`"),
    ],
)
def test_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(OptionError, match="--url"):
        discover(url)


@pytest.mark.parametrize(("name", "value"), [("api_key", "a\nb"), ("model", ""), ("model", " a")])
def test_key_or_model_that_breaks_a_line_is_refused(name: str, value: str) -> None:
    with pytest.raises(OptionError, match=r"--api-key|--model"):
        discover(NOWHERE, **{name: value})  # type: ignore[arg-type]


def test_claude_is_told_all_models_and_its_limits(tmp_path: Path) -> None:
    done(tmp_path, "claude", "--write", "--model", "m", "--context", "40000")
    env = json.loads((tmp_path / FILES["claude"]).read_text())["env"]
    models = {value for name, value in env.items() if name.endswith("_MODEL")}
    assert models == {"m"}
    assert env["ANTHROPIC_BASE_URL"] == NOWHERE
    assert env["ANTHROPIC_AUTH_TOKEN"] == "mlx-flash"
    assert env["CLAUDE_CODE_MAX_CONTEXT_TOKENS"] == "40000"
    assert env["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] == "10000"
    assert env["CLAUDE_CODE_ATTRIBUTION_HEADER"] == "0"


def test_help_does_not_load_the_model_side(tmp_path: Path) -> None:
    code = (
        "import sys; from mlx_flash.cli import main, connect\n"
        "from mlx_flash.cli.clients import registry, discovery, merge, write\n"
        "assert not {'mlx', 'mlx_lm', 'tomlkit'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
