"""An answer as it comes: plain into a pipe; on a terminal rendered, with a status line under it."""

import re
import sys
import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.text import Text

from .status import describe

if TYPE_CHECKING:
    from ..engine.conversation import Piece

_REFRESH_S = 0.1
_STATUS_ROWS = 3  # that a growing block leaves to the status and what the terminal adds
_CONTROLS = {code: None for code in [*range(32), *range(127, 160)] if chr(code) not in "\n\t"}
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")


class AnswerView(AbstractContextManager["AnswerView"], Protocol):
    """Shows the pieces of one answer while it is open."""

    def add(self, piece: "Piece") -> None:
        """Show one more piece."""


class PlainView:
    """Writes an answer to standard output as it is; thoughts are left out."""

    def __enter__(self) -> "PlainView":
        return self

    def add(self, piece: "Piece") -> None:
        """Write one more piece."""
        if not piece.thought:
            sys.stdout.write(piece.text)
            sys.stdout.flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not isinstance(error, OSError):
            sys.stdout.write("\n")
            sys.stdout.flush()


class TerminalView:
    """Renders an answer block by block, Markdown or plain, and thoughts dim.

    Finished blocks are printed for good; of the last, growing one as many rows are redrawn as the
    terminal has. Control characters of the model never reach the terminal.
    """

    def __init__(self, console: Console, *, markdown: bool) -> None:
        """Show nothing yet."""
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._console = console
        self._markdown = markdown
        self._thought = False
        self._block = ""
        self._printed = False
        self._drawn = 0.0

    def __enter__(self) -> "TerminalView":
        self._live.start()
        self._live.update(Text("reading", style="dim"), refresh=True)
        return self

    def add(self, piece: "Piece") -> None:
        """Show one more piece."""
        if piece.thought != self._thought:
            self._print(self._block)
            self._thought, self._block = piece.thought, ""
        split = split_block if self._markdown and not self._thought else split_lines
        finished, self._block = split(self._block + piece.text.translate(_CONTROLS))
        self._print(finished)
        if finished or time.monotonic() - self._drawn > _REFRESH_S:
            self._drawn = time.monotonic()
            status = Text(describe(piece), style="dim", no_wrap=True, overflow="ellipsis")
            growing = _LastRows(self._rendered(self._block), self._console.height - _STATUS_ROWS)
            self._live.update(Group(*self._gap(), growing, status), refresh=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()
        self._print(self._block)

    def _print(self, block: str) -> None:
        """Print a finished block for good."""
        if block.strip():
            self._console.print(*self._gap(), self._rendered(block.rstrip("\n")), sep="\n")
            self._printed = True

    def _gap(self) -> list[RenderableType]:
        """Return the empty row between two blocks of Markdown, if there is to be one."""
        return [Text("")] if self._printed and self._markdown and not self._thought else []

    def _rendered(self, block: str) -> RenderableType:
        if self._thought:
            return Text(block, style="dim")
        return Markdown(block, hyperlinks=False) if self._markdown else Text(block)


class _LastRows:
    """The last rows of what another renderable draws."""

    def __init__(self, whole: RenderableType, num_rows: int) -> None:
        self._whole, self._num_rows = whole, max(1, num_rows)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = console.render_lines(self._whole, options.update(height=None), pad=False)
        for row in rows[-self._num_rows :]:
            yield from row
            yield Segment.line()


def split_lines(text: str) -> tuple[str, str]:
    """Return the whole lines of a text, and the line that still grows."""
    end = text.rfind("\n") + 1
    return text[:end], text[end:]


def split_block(text: str) -> tuple[str, str]:
    """Return the finished blocks of Markdown, and the one that still grows.

    A block ends with an empty line outside fenced code, where the next line is not indented:
    that would belong to a list.
    """
    fence, after_empty, end, position = "", False, 0, 0
    for line in text.splitlines(keepends=True):
        if not fence and after_empty and line.strip() and line[0] not in " \t":
            end = position
        mark = _FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1].startswith(fence) and not mark[2].strip():
            fence = ""
        after_empty = not line.strip()
        position += len(line)
    return text[:end], text[end:]
