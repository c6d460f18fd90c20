"""A progress bar for bytes that are written or read."""

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


class ByteBar:
    """Shows bytes on `console` from the first report on: an error before that stands alone.

    Call it with the bytes done and those in all. What the first call brings counts for no speed.
    """

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> "ByteBar":
        return self

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` bytes of `total` are done."""
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task("", total=total, completed=done)
        else:
            self._bar.update(self._task, completed=done)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._task is not None:
            self._bar.stop()
