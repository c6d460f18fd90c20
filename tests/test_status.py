"""What a terminal shows while an answer grows: every word once, the status below, nothing lost."""

import io
import re
import sys

import pytest

from mlx_flash.cli.status import StatusLine
from mlx_flash.engine.generate import Progress
from mlx_flash.telemetry.counters import StreamCounters


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def rows_of(output: str) -> list[str]:
    """Return the rows that a terminal without end shows after `output`."""
    rows, row, column = [""], 0, 0
    for control, text in re.findall(r"(\x1b\[[0-9;?]*[A-Za-z]|\r|\n)|([^\x1b\r\n]+)", output):
        if control == "\n":
            row, column = row + 1, 0
            rows += [""] * (row + 1 - len(rows))
        elif control == "\r":
            column = 0
        elif control.endswith("A"):
            row -= int(control[2:-1] or 1)
        elif control.endswith("K"):
            rows[row] = ""
        elif text:
            rows[row] = rows[row][:column].ljust(column) + text + rows[row][column + len(text) :]
            column += len(text)
    return rows


@pytest.mark.parametrize(("width", "height"), [(40, 8), (80, 24), (10, 5)])
def test_a_paragraph_taller_than_the_window_is_printed_once(
    monkeypatch: pytest.MonkeyPatch, width: int, height: int
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("LINES", str(height))
    monkeypatch.setenv("TERM", "xterm")
    words = [f"w{number}" for number in range(300)]
    with StatusLine() as status:
        for word in words:
            status.update(Progress(f"{word} ", 1, 12.5, StreamCounters(asks=1, hits=1)))
    rows = rows_of(screen.getvalue())
    assert " ".join(rows).split() == words
    assert max(map(len, rows)) <= width
    assert "12.5 tok" in screen.getvalue()


def test_text_that_is_piped_is_untouched(capsys: pytest.CaptureFixture[str]) -> None:
    with StatusLine() as status:
        status.update(Progress("a\tb\n  c", 1, 1.0, StreamCounters()))
    assert capsys.readouterr().out == "a\tb\n  c\n"
