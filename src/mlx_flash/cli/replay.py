"""`mlx-flash replay`: compare policies on recorded routing."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..errors import OptionError
from ..planner.memory import gigabytes
from .options import AsJson

if TYPE_CHECKING:
    from ..bench.policies import PolicyReport
    from ..telemetry.trace import Trace


def command(
    traces: Annotated[list[Path], typer.Argument(help="Traces of one model, by mlx-flash trace.")],
    policy: Annotated[
        list[str] | None, typer.Option(help="Only this policy; may be given several times.")
    ] = None,
    capacity: Annotated[
        list[int] | None, typer.Option(min=1, help="Slots per layer. Default: 25, 50 and 75%.")
    ] = None,
    max_tokens: Annotated[
        int,
        typer.Option(
            min=2,
            help="Tokens of each domain to replay at most, the last ones; not of recorded passes.",
        ),
    ] = 4096,
    recorded_passes: Annotated[
        bool,
        typer.Option(
            "--recorded-passes/--as-decoded",
            help="Replay the forward passes that were recorded, or each token as one.",
        ),
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Also draw the hit rates: a PNG file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what each policy would have hit, with several numbers of slots, on recorded routing.

    "belady" knows the future: no policy can do better. "shuffled" is the same tokens in random
    order, "uniform" is capacity over experts: a policy that is no better has found nothing.
    """
    notes = Console(stderr=True, highlight=False, markup=False)
    if plot is not None:
        from ..bench.plots import check_can_plot

        check_can_plot(plot)
    with notes.status("reading the traces") as status:
        from ..bench.policies import compare_policies
        from ..engine.replay import REPLAY_NAMES

        trace = _read(traces, None if recorded_passes else max_tokens)
        experts = max(trace.routing.num_experts)
        if capacity and max(capacity) > experts:
            raise OptionError(
                f"the traced model has {experts} experts per layer: a capacity of "
                f"{max(capacity)} is more."
            )
        report = compare_policies(
            trace,
            policy or REPLAY_NAMES,
            capacity or (),
            recorded_passes=recorded_passes,
            on_row=lambda row: status.update(f"replayed {row.policy}, {row.capacity} slots"),
        )
    if plot is not None:
        from ..bench.plots import plot_policies

        plot_policies(report, experts, plot)
    if as_json:
        sys.stdout.write(json.dumps({"traces": [str(path) for path in traces], **report.to_json()}))
        sys.stdout.write("\n")
        return
    _show(report, experts)


def _read(paths: list[Path], max_tokens: int | None) -> "Trace":
    """Return what traces have of each domain in turn: all of it, or the last `max_tokens`."""
    from ..telemetry.trace import joined
    from ..telemetry.trace_file import read_trace

    parts = list(joined([read_trace(path) for path in paths]).by_domain().values())
    if max_tokens is not None:
        parts = [part.slice(part.num_tokens - max_tokens, part.num_tokens) for part in parts]
    return joined(parts)


def _show(report: "PolicyReport", experts: int) -> None:
    """Print a table: a row per policy, hit rates per capacity."""
    capacities = sorted({row.capacity for row in report.rows})
    many = len(report.tokens) > 1
    table = Table("policy")
    for capacity in capacities:
        table.add_column(f"{capacity} of {experts}", justify="right")
        if many:
            table.add_column("domains in turn", justify="right")
            table.add_column("recovery", justify="right")
        table.add_column("a token", justify="right")
    for policy in dict.fromkeys(row.policy for row in report.rows):
        cells = [policy]
        for row in sorted(report.rows, key=lambda row: row.capacity):
            if row.policy == policy:
                cells.append(f"{row.hit_rate:.1%}")
                if row.switched_hit_rate is not None and row.recovery_tokens is not None:
                    cells.append(f"{row.switched_hit_rate:.1%}")
                    cells.append(f"{row.recovery_tokens:.0f} tokens")
                cells.append(gigabytes(round(row.bytes_per_token)))
        table.add_row(*cells)
    shuffled = [control.shuffled_hit_rate for control in report.controls]
    uniform = [control.uniform_hit_rate for control in report.controls]
    for name, rates in (("shuffled", shuffled), ("uniform", uniform)):
        cells = [name]
        for rate in rates:
            cells.append(f"{rate:.1%}")
            cells.extend([""] * (3 if many else 1))
        table.add_row(*cells, style="dim")
    tokens = ", ".join(f"{name} {count}" for name, count in report.tokens.items())
    console = Console(highlight=False, markup=False)
    console.print(f"{report.model}; tokens: {tokens}", soft_wrap=True)
    console.print(table)
