"""A cache that warms up, as a person sees it: drawn live in a terminal, else as lines of text."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from ..planner.memory import gigabytes
from .bars import BLOCKS, PLAIN, bars, columns, round_above

if TYPE_CHECKING:
    from ..engine.warmup import PhaseSummary, TokenMeasurement

_REFRESH_S = 0.1
_LABEL_WIDTH = 8
_MAX_ROWS, _OTHER_ROWS = 6, 8  # of a chart; of all that is no chart


@dataclass(frozen=True)
class Setting:
    """What is measured: the domain and tokens of each phase, and a line that says with what."""

    domains: Sequence[str]
    num_tokens: int
    title: str


class WarmupView:
    """Shows tokens as they are measured; what was drawn stays when it ends.

    In a terminal there are two charts. Elsewhere a line is printed every 16 tokens.
    """

    def __init__(self, console: Console, setting: Setting) -> None:
        self._console = console
        self._setting = setting
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._drawn_s = 0.0
        self._measured: list[TokenMeasurement] = []
        self._rates: list[list[float]] = [[] for _ in setting.domains]
        self._times_ms: list[list[float]] = [[] for _ in setting.domains]

    def __enter__(self) -> "WarmupView":
        if self._live is not None:
            self._live.start()
        else:
            self._print(self._setting.title)
        return self

    def update(self, token: "TokenMeasurement") -> None:
        """Add a token, and show it when it is time to."""
        from ..engine.warmup import WINDOW_TOKENS, hit_rate, median_s

        self._measured.append(token)
        last = self._measured[-WINDOW_TOKENS:]
        self._rates[token.phase].append(hit_rate(last))
        self._times_ms[token.phase].append(median_s(last) * 1e3)
        if self._live is None:
            if len(self._measured) % WINDOW_TOKENS == 0:
                self._print(self._numbers())
        elif time.monotonic() - self._drawn_s > _REFRESH_S:
            self._draw(self._live)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            if self._measured:
                self._draw(self._live)
            self._live.stop()

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)

    def _draw(self, live: Live) -> None:
        live.update(self._picture(), refresh=True)
        self._drawn_s = time.monotonic()

    def _picture(self) -> Group:
        """Return the charts with their titles, and the current numbers below."""
        height = min(max((self._console.height - _OTHER_ROWS) // 2, 1), _MAX_ROWS)
        rates = self._drawn([[rate * 100 for rate in phase] for phase in self._rates])
        times = self._drawn(self._times_ms)
        slowest = round_above(max(max(phase, default=0.0) for phase in times))
        return Group(
            _line(self._setting.title, "bold"),
            _line(" " * _LABEL_WIDTH + self._joined([*self._setting.domains])),
            _line("hit rate of the last 16 tokens, %"),
            *self._chart(rates, 100.0, height, "green"),
            _line("ms per token, median of the last 16"),
            *self._chart(times, slowest, height, "cyan"),
            _line(self._numbers(), "bold"),
        )

    def _drawn(self, phases: Sequence[Sequence[float]]) -> list[list[float]]:
        """Return what the columns of each phase show of one number per token."""
        return [columns(values, self._setting.num_tokens, self._width) for values in phases]

    def _chart(
        self, phases: Sequence[Sequence[float]], top: float, height: int, style: str
    ) -> list[Text]:
        """Return the rows of a chart, an axis on the left, a mark where the domain changes."""
        parts = PLAIN if self._console.options.ascii_only else BLOCKS
        rows = [bars(values, top, height, parts) for values in phases]
        labels = [f"{top:g}", *[""] * (height - 2), "0"] if height > 1 else [f"{top:g}"]
        return [
            Text.assemble(f"{label:>{_LABEL_WIDTH - 1}} ", (self._joined(of_row), style))
            for label, of_row in zip(labels, zip(*rows, strict=True), strict=True)
        ]

    @property
    def _width(self) -> int:
        """The columns of each phase."""
        of_all = self._console.width - _LABEL_WIDTH - len(self._setting.domains)
        return max(1, min(of_all // len(self._setting.domains), self._setting.num_tokens))

    def _joined(self, parts: Sequence[str]) -> str:
        """Return what is in a row of each phase, side by side."""
        between = "|" if self._console.options.ascii_only else "│"
        return between.join(part[: self._width].ljust(self._width) for part in parts)

    def _numbers(self) -> str:
        """Return where it stands, in numbers."""
        setting, phase = self._setting, self._measured[-1].phase
        read = sum(token.bytes_read for token in self._measured)
        total = setting.num_tokens * len(setting.domains)
        return (
            f"token {len(self._measured):>{len(str(total))}} of {total}, {setting.domains[phase]}: "
            f"hit rate {self._rates[phase][-1]:.1%}, {self._times_ms[phase][-1]:.1f} ms per token, "
            f"{gigabytes(read)} read"
        )


def _line(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def summary_lines(phases: "Sequence[PhaseSummary]") -> list[str]:
    """Return the closing lines: a row for each phase, and what the change cost."""
    widths = (16, 17, 9, 20, 14)
    titles = ("", "first 16 tokens", "steady", "near steady after", "ms per token")
    lines = ["".join(title.rjust(width) for title, width in zip(titles, widths, strict=True))]
    for number, phase in enumerate(phases):
        after = "never" if phase.tokens_to_steady is None else f"{phase.tokens_to_steady} tokens"
        cells = (
            f"{phase.first_hit_rate:.1%}",
            f"{phase.steady_hit_rate:.1%}",
            after,
            f"{phase.steady_token_s * 1e3:.1f}",
        )
        name = f"back in {phase.domain}" if number == 2 else phase.domain
        row = zip(cells, widths[1:], strict=True)
        lines.append(name.ljust(widths[0]) + "".join(cell.rjust(width) for cell, width in row))
    if len(phases) > 1:
        before, after_change = phases[0], phases[1]
        lines.append(
            f"the change to {after_change.domain} took the hit rate from "
            f"{before.steady_hit_rate:.1%} to {after_change.first_hit_rate:.1%}"
        )
    return lines
