"""The answer as it grows, with a live status line under it when a person watches."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

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

    Finished lines of the answer are printed for good; only the last, growing one is redrawn.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        """`enabled=False` prints nothing at all."""
        self._enabled = enabled
        console = Console(highlight=False, soft_wrap=False)
        self._live = (
            Live(console=console, auto_refresh=False, transient=True)
            if enabled and console.is_terminal
            else None
        )
        self._line = ""
        self._drawn = 0.0

    def __enter__(self) -> "StatusLine":
        if self._live:
            self._live.start()
        return self

    def update(self, progress: "Progress") -> None:
        """Add the text of one more token and renew the status."""
        if not self._enabled:
            return
        if self._live is None:
            sys.stdout.write(progress.text)
            sys.stdout.flush()
            return
        *finished, self._line = (self._line + progress.text).split("\n")
        for line in finished:
            self._live.console.print(Text(line))
        if finished or time.monotonic() - self._drawn > _REFRESH_S:
            self._drawn = time.monotonic()
            self._live.update(
                Group(Text(self._line), Text(describe(progress), style="dim")), refresh=True
            )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live.console.print(Text(self._line))
        elif self._enabled:
            sys.stdout.write("\n")


def describe(progress: "Progress") -> str:
    """Return the status line: speed, hit rate, bytes read, memory of the process."""
    counters = progress.counters
    parts = [f"{progress.tps:.1f} tokens/s"]
    if counters.asks:
        parts += [f"hit rate {counters.hit_rate:.1%}", f"{gigabytes(counters.bytes_read)} read"]
    return " · ".join([*parts, f"{gigabytes(rss_bytes())} of memory"])
