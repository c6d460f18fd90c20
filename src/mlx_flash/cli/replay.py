"""`mlx-flash replay`: compare policies on recorded routing."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..errors import OptionError
from ..planner.memory import gigabytes
from .options import AsJson
from .traces import read_traces

if TYPE_CHECKING:
    from ..bench.policies import PolicyReport, PolicyRow
    from ..telemetry.trace import Trace

_OF_CHANGES = ["in turn", "recovery"]
_CHANGES_EXPLAINED = (
    "in turn: of the domains one after the other. recovery: until the hit rate is within 2 points "
    "of steady state after a change of domain."
)


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

    With several domains, hit rates are means over them, each from an empty cache; "in turn" is
    that of one after the other, and "recovery" the tokens after a change of domain until the hit
    rate is within 2 points of steady state.

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

        trace = _read(traces, None if recorded_passes else max_tokens, notes)
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


def _read(paths: list[Path], max_tokens: int | None, notes: Console) -> "Trace":
    """Return what traces have of each domain in turn: all of it, or the last `max_tokens`."""
    from ..telemetry.trace import joined

    parts = list(read_traces(paths, notes).by_domain().values())
    if max_tokens is not None:
        parts = [part.slice(part.num_tokens - max_tokens, part.num_tokens) for part in parts]
    return joined(parts)


def _show(report: "PolicyReport", experts: int) -> None:
    """Print a table: a block per capacity, in it a row per policy and the controls."""
    many = len(report.tokens) > 1
    table = Table("slots", "policy", "hit rate", *_OF_CHANGES * many, "read a token")
    for column in table.columns:
        column.overflow = "fold"  # nothing is cut off, however narrow the terminal
    for column in table.columns[2:]:
        column.justify = "right"
    for control in report.controls:
        slots = f"{control.capacity} of {experts}"
        for row in report.rows:
            if row.capacity == control.capacity:
                table.add_row(slots, row.policy, *_cells(row))
                slots = ""
        table.add_row("", "shuffled", f"{control.shuffled_hit_rate:.1%}", style="dim")
        table.add_row("", "uniform", f"{control.uniform_hit_rate:.1%}", style="dim")
        table.add_section()
    tokens = ", ".join(f"{name} {count}" for name, count in report.tokens.items())
    console = Console(highlight=False, markup=False)
    console.print(f"{report.model}; tokens: {tokens}", soft_wrap=True)
    console.print(table)
    if many:
        console.print(_CHANGES_EXPLAINED, soft_wrap=True)


def _cells(row: "PolicyRow") -> Iterator[str]:
    """Yield what a policy reached."""
    yield f"{row.hit_rate:.1%}"
    if row.switched_hit_rate is not None and row.recovery_tokens is not None:
        yield f"{row.switched_hit_rate:.1%}"
        yield f"{row.recovery_tokens:.0f} tokens"
    yield gigabytes(round(row.bytes_per_token))
