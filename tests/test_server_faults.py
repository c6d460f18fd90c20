"""Processes that die, clients that leave, disks that fail: who is hurt, and that nobody else is."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from running import COMMAND, RunningServer, running, stream_lines

QUESTION = "What does shutil.copytree do?"
OPTIONS = ("--capacity", "12", "--max-context", "1024", "--prompt-cache-gb", "0")


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running(*OPTIONS) as started:
        yield started


def long_answer(**options: Any) -> dict[str, Any]:
    """Return a request whose answer goes on and on: its end is forbidden."""
    return {
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 900,
        "stream": True,
        "logit_bias": {"4": -100},
        **options,
    }


def under_way(server: RunningServer) -> int:
    return sum(slot["is_processing"] for slot in server.get("/slots"))


def test_a_killed_worker_ends_its_streams_at_once_and_the_next_request_works(
    server: RunningServer,
) -> None:
    expected = server.chat(QUESTION, max_tokens=20)
    starts = len([line for line in server.lines if "ready after" in line])
    with server.connected(long_answer()) as connection:
        lines = stream_lines(connection)
        pieces = 0
        for line in lines:
            pieces += '"content":' in line
            if pieces == 3:
                break
        server.worker.kill()
        killed_s = time.monotonic()
        error = next(line for line in lines if "error" in line)
        assert time.monotonic() - killed_s < 2
        assert "the worker died" in error
    assert server.get("/health")["error"]["message"] == "Loading model"
    assert server.chat(QUESTION, max_tokens=20) == expected  # waits for the new worker
    server.wait_for("ready after", starts + 1)
    assert server.get("/health") == {"status": "ok"}


def test_a_request_that_said_nothing_yet_is_begun_again(server: RunningServer) -> None:
    expected = server.chat(QUESTION, max_tokens=20)
    os.kill(server.worker.pid, signal.SIGSTOP)
    body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 20}
    with server.connected(body) as connection:
        server.worker.kill()
        assert expected.split(".")[0] in "".join(stream_lines(connection))


def test_a_killed_gateway_leaves_no_worker_behind() -> None:
    with running(*OPTIONS) as started:
        worker = started.worker
        with started.connected(long_answer()) as connection:
            next(line for line in stream_lines(connection) if '"content":' in line)
            started.process.kill()
            started.process.wait(10)
            psutil.wait_procs([worker], timeout=10)
            assert not worker.is_running()


def test_a_client_that_leaves_a_stream_is_forgotten(server: RunningServer) -> None:
    with server.connected(long_answer()) as connection:
        next(line for line in stream_lines(connection) if '"content":' in line)
    server.until(lambda: under_way(server) == 0, 5)


def test_a_client_that_leaves_while_it_waits_for_a_whole_answer_is_forgotten(
    server: RunningServer,
) -> None:
    with server.connected(long_answer(stream=False)):
        server.until(lambda: under_way(server) == 1, 10)
    server.until(lambda: under_way(server) == 0, 5)


def test_a_client_that_does_not_read_holds_up_nobody(server: RunningServer) -> None:
    expected = server.chat(QUESTION, max_tokens=20)
    with server.connected(long_answer()):
        assert server.chat(QUESTION, max_tokens=20) == expected


def test_half_a_request_holds_up_nobody(server: RunningServer) -> None:
    expected = server.chat(QUESTION, max_tokens=20)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b'Content-Length: 1000\r\n\r\n{"messages": '
        )
        assert server.chat(QUESTION, max_tokens=20) == expected
    assert server.get("/health") == {"status": "ok"}


def test_a_stopped_server_lets_an_answer_end(server: RunningServer) -> None:
    with running(*OPTIONS) as started:
        worker = started.worker
        with started.connected(long_answer(max_tokens=60)) as connection:
            lines = stream_lines(connection)
            next(line for line in lines if '"content":' in line)
            started.process.send_signal(signal.SIGTERM)
            rest = list(lines)
        assert any("[DONE]" in line for line in rest)
        assert started.process.wait(20) in (0, -signal.SIGTERM)
        psutil.wait_procs([worker], timeout=10)
        assert not worker.is_running()


def test_a_model_that_cannot_be_loaded_ends_the_server_with_a_sentence() -> None:
    command = [*COMMAND, "serve", "/no/such/model", "--port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2
    assert "/no/such/model" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
