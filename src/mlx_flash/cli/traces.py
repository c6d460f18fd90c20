"""How commands read recorded routing, and say what of it is missing."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from ..telemetry.trace import Trace


def read_traces(paths: Sequence[Path], notes: Console) -> "Trace":
    """Return the traces in files as one; say which were cut off.

    Raises:
        TraceError: a file is no trace, or they do not go together.
    """
    from ..telemetry.trace import joined
    from ..telemetry.trace_file import read_trace

    return joined([read_trace(path, saying_what_is_cut(path, notes)) for path in paths])


def saying_what_is_cut(path: Path, notes: Console) -> Callable[[int | None], None]:
    """Return what tells people of a trace that was cut off, given the tokens that were lost."""
    return partial(_say_cut, path, notes)


def _say_cut(path: Path, notes: Console, tokens: int | None) -> None:
    lost = f"its last {tokens} tokens" if tokens else "the tokens of its last, unfinished block"
    notes.print(f"{path} was cut off: {lost} are left out.", soft_wrap=True)
