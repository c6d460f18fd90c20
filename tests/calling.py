"""Calls the command line in this process: a test need not wait for another interpreter."""

import contextlib
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mlx_flash.cli.main import run


@dataclass(frozen=True)
class Called:
    """What a call has left: its exit code and what it printed."""

    code: int
    stdout: str
    stderr: str


def call(*arguments: str | Path, columns: int = 120) -> Called:
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mlx-flash", *map(str, arguments)])
        patch.setenv("COLUMNS", str(columns))
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            try:
                run()
            except SystemExit as stop:
                code = int(stop.code or 0)
    return Called(code, stdout.getvalue(), stderr.getvalue())


def refusal(*arguments: str | Path) -> str:
    """Call what must be refused; return its one sentence."""
    called = call(*arguments)
    assert (called.code, called.stdout) == (2, ""), called
    (line,) = called.stderr.splitlines()
    assert line.startswith("mlx-flash: ")
    return line


def report(*arguments: str | Path) -> dict[str, Any]:
    """Call with --json; return what was printed."""
    called = call(*arguments, "--json")
    assert called.code == 0, called
    found: dict[str, Any] = json.loads(
        called.stdout.splitlines()[-1], parse_constant=lambda name: pytest.fail(name)
    )
    return found
