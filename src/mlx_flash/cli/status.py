"""The answer as it grows, with a live status line under it when a person watches."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from ..planner.memory import gigabytes
from ..telemetry.machine import rss_bytes

if TYPE_CHECKING:
    from ..engine.generate import Progress

_REFRESH_S = 0.1


class StatusLine:
    """Writes text to standard output as it comes; on a terminal, keeps a status line below it.

    Finished rows of the answer are printed for good; only the last, growing one is redrawn.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        """`enabled=False` prints nothing at all."""
        self._enabled = enabled
        self._live = (
            Live(console=Console(highlight=False, markup=False), auto_refresh=False, transient=True)
            if enabled and sys.stdout is not None and sys.stdout.isatty()
            else None
        )
        self._row = ""
        self._drawn = 0.0

    def __enter__(self) -> "StatusLine":
        if self._live:
            self._live.start()
        return self

    def update(self, progress: "Progress") -> None:
        """Add the text of one more token and renew the status."""
        if not self._enabled:
            return
        if self._live is None and sys.stdout is None:
            return
        if self._live is None:
            sys.stdout.write(progress.text)
            sys.stdout.flush()
            return
        console = self._live.console
        *finished, self._row = (self._row + progress.text).split("\n")
        rows = [row for line in finished for row in _wrapped(line, console)]
        *full, self._row = _wrapped(self._row, console)
        for row in rows + full:
            console.print(Text(row), no_wrap=True, overflow="ignore", crop=False)
        if rows or full or time.monotonic() - self._drawn > _REFRESH_S:
            self._drawn = time.monotonic()
            status = Text(describe(progress), style="dim", no_wrap=True, overflow="ellipsis")
            self._live.update(Group(Text(self._row, no_wrap=True), status), refresh=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live.console.print(Text(self._row))
        elif self._enabled and error is None:
            sys.stdout.write("\n")


def _wrapped(line: str, console: Console) -> list[str]:
    """Return the rows that a line takes in the terminal, at least one; the last may grow."""
    text = line.rstrip(" ")
    if cell_len(text) <= console.width:
        return [line]
    *full, last = [row.plain for row in Text(text).wrap(console, console.width)]
    return [*full, last + line[len(text) :]]


def describe(progress: "Progress") -> str:
    """Return the status line: speed, hit rate, bytes read, memory of the process."""
    counters = progress.counters
    parts = [f"{progress.tps:.1f} tokens/s"]
    if counters.asks:
        parts += [f"hit rate {counters.hit_rate:.1%}", f"{gigabytes(counters.bytes_read)} read"]
    return " · ".join([*parts, f"{gigabytes(rss_bytes())} of memory"])
