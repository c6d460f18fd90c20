"""Draws reports as PNG files. matplotlib, an extra, is imported when something is drawn."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OptionError
from ..folders import check_writable
from .policies import PolicyReport

if TYPE_CHECKING:
    from ..planner.speed import PlanRow

_SIZE, _DPI = (8, 5), 150


def check_can_plot(path: Path) -> None:
    """Return when a plot can be drawn to a file.

    Raises:
        OptionError: matplotlib is missing, or the file is no PNG, or cannot be written.
    """
    if find_spec("matplotlib") is None:
        raise OptionError(
            "drawing needs matplotlib: pip install 'mlx-flash[plot]', or in a clone "
            "pip install -e '.[plot]'."
        )
    if path.suffix.lower() != ".png":
        raise OptionError(f"{path} is no PNG file: give a name that ends in .png.")
    if not path.parent.is_dir():
        raise OptionError(f"{path.parent} is no folder: make it first.")
    check_writable(path)


def plot_policies(report: PolicyReport, num_experts: int, path: Path) -> None:
    """Draw hit rate by share of experts in memory, a line per policy, and the controls."""
    figure, axes = _axes("experts in memory, %", "hit rate, %", f"{report.model}: hit rate")
    shares = [100 * slots / num_experts for slots in range(len(report.lru_curve))]
    axes.plot(shares, [100 * rate for rate in report.lru_curve], "k:", label="LRU, exact")
    for policy in dict.fromkeys(row.policy for row in report.rows):
        rows = sorted(
            (row for row in report.rows if row.policy == policy), key=lambda row: row.capacity
        )
        points = [100 * row.capacity / num_experts for row in rows]
        axes.plot(points, [100 * row.hit_rate for row in rows], "o-", label=policy)
    points = [100 * control.capacity / num_experts for control in report.controls]
    rates = [100 * control.shuffled_hit_rate for control in report.controls]
    axes.plot(points, rates, "x--", color="gray", label="shuffled")
    axes.plot([0, 100], [0, 100], "--", color="lightgray", label="uniform")
    _save(figure, axes, path)


def plot_plan(model: str, rows: "Sequence[PlanRow]", path: Path) -> None:
    """Draw predicted decode speed by memory."""
    figure, axes = _axes("memory, GB", "decode, tokens/s", f"{model}: predicted speed")
    memory = [row.memory_bytes / 1e9 for row in rows]
    axes.plot(memory, [row.decode_tps for row in rows], "o-", label="tokens/s")
    _save(figure, axes, path)


def _axes(x: str, y: str, title: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, parse_math=False)  # a name may hold a $
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Any, axes: Any, path: Path) -> None:
    axes.legend(fontsize="small")
    try:
        figure.savefig(path, dpi=_DPI)
    except OSError as error:
        raise OptionError(f"cannot write {path}: {error.strerror or error}.") from error
