"""`mlx-flash plan`: what a model will do on this machine, before it runs."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..config import CacheOptions, MemoryLimit
from ..errors import OptionError
from ..planner.memory import gigabytes
from .options import AsJson, Model
from .traces import read_traces

if TYPE_CHECKING:
    from ..engine.plan import PlanReport
    from ..telemetry.trace import Trace

_GB = 10**9


def command(
    model: Model = None,
    ram: Annotated[
        str | None,
        typer.Option(
            help="Plan for a machine with so much free memory, such as 48GB, not for what is free "
            "here."
        ),
    ] = None,
    total_ram: Annotated[
        float | None, typer.Option(help="The same in GB, with --model-gb.")
    ] = None,
    model_gb: Annotated[
        float | None, typer.Option(help="Plan for a model of so many GB, without having one.")
    ] = None,
    ssd_gbps: Annotated[
        float | None,
        typer.Option(help="The rate of the disk, 10^9 bytes a second. Default: measured."),
    ] = None,
    trace: Annotated[
        list[Path] | None, typer.Option(help="Routing of this model, recorded by mlx-flash trace.")
    ] = None,
    domain: Annotated[
        str | None, typer.Option(help="Only what the trace has under this label.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the speeds: a PNG file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show, for a row of memory limits, the speed to expect, which to take, and what would help.

    Memory is for a context of 2048 tokens, the first token for a prompt of 512 from a cold start; a
    tenth of the free memory is left to other programs, as when a model is loaded without --memory.
    A model that is here computes a few tokens to be measured; one on the Hub is not downloaded.
    """
    ram_bytes = _ram(ram, total_ram)
    if ssd_gbps is not None and not 0 < ssd_gbps < math.inf:
        raise OptionError(f"{ssd_gbps} GB/s is no rate of a disk: give more than 0.")
    if plot is not None:
        from ..bench.plots import check_can_plot

        check_can_plot(plot)
    notes = Console(stderr=True, highlight=False, markup=False)
    with notes.status("measuring this machine and the model"):
        recorded = _recorded(trace, domain, notes)
        report = _plan(model, model_gb, ram_bytes, ssd_gbps, recorded)
    if plot is not None:
        from ..bench.plots import plot_plan

        plot_plan(str(report.model["name"]), report.rows, plot)
    if as_json:
        sys.stdout.write(json.dumps(report.to_json()) + "\n")
        return
    _show(report)


def _ram(ram: str | None, total_ram: float | None) -> int | None:
    """Return the memory to plan for in bytes, None for this machine's."""
    if total_ram is not None:
        if ram is not None:
            raise OptionError("give the memory once: --ram 48GB or --total-ram 48.")
        if not 0 < total_ram < 10**6:
            raise OptionError(f"{total_ram:g} GB is no memory of a machine: give more than 0.")
        return int(total_ram * _GB)
    return None if ram is None else MemoryLimit.bytes_of(ram)


def _recorded(files: list[Path] | None, domain: str | None, notes: Console) -> "Trace | None":
    """Return recorded routing, all of it or what is under a label; None without a file."""
    if not files:
        if domain is not None:
            raise OptionError("--domain picks a part of a trace: give --trace too.")
        return None
    whole = read_traces(files, notes)
    parts = whole.by_domain()
    if domain is not None and domain not in parts:
        raise OptionError(f"the trace has no {domain!r}: take one of {', '.join(parts)}.")
    return whole if domain is None else parts[domain]


def _plan(
    model: str | None,
    model_gb: float | None,
    ram_bytes: int | None,
    ssd_gbps: float | None,
    trace: "Trace | None",
) -> "PlanReport":
    from ..engine.find import find_local
    from ..engine.hub import shape_on_hub
    from ..engine.plan import (
        check_trace,
        check_trace_early,
        default_curve,
        imagined_shape,
        machine_profile,
        plan_from_shape,
        plan_local,
    )
    from ..engine.replay import curve_of

    if model_gb is not None and model is not None:
        raise OptionError("give a model or --model-gb, not both.")
    folder = find_local(model) if model_gb is None else None
    if folder is not None:
        if trace is not None:
            check_trace_early(trace.routing, folder)
    elif model_gb is not None:
        shape = imagined_shape(model_gb)
    else:
        shape = shape_on_hub(str(model))
        if trace is not None:
            check_trace(trace.routing, shape)
    curve = curve_of(trace, CacheOptions.policy) if trace else default_curve()
    if folder is not None:
        return plan_local(folder, curve, ram_bytes, ssd_gbps, trace)
    machine = machine_profile()
    if ssd_gbps is not None:
        machine = replace(machine, ssd_gbps=ssd_gbps, assumed=())
    return plan_from_shape(shape, machine, curve, ram_bytes)


def _show(report: "PlanReport") -> None:
    """Print the rows, which to take, and what would help."""
    table = Table("", "memory", "experts", "hit rate", "read a token", "tokens/s", "first token")
    for column in table.columns[1:]:
        column.justify = "right"
    for number, row in enumerate(report.rows):
        table.add_row(
            "→" if number == report.recommended else "",
            gigabytes(row.memory_bytes),
            f"{row.capacity} of {report.model['num_experts']}",
            f"{row.hit_rate:.1%}",
            gigabytes(round(row.bytes_per_token)),
            f"{row.decode_tps:.3g}",
            f"{row.ttft_s:,.0f} s" if row.ttft_s >= 100 else f"{row.ttft_s:.3g} s",
        )
    console = Console(highlight=False, markup=False)
    model = report.model
    experts = (
        f"{model['num_layers']} layers of {model['num_experts']} experts, {model['top_k']} used"
    )
    console.print(
        f"{model['name']}: {experts}, {gigabytes(model['expert_bytes'])} each; "
        f"{report.machine.backend}, a disk of {report.machine.ssd_gbps:.2f} GB/s",
        soft_wrap=True,
    )
    console.print(table)
    console.print(f"→ {report.why}", soft_wrap=True)
    if report.rows[-1].memory_bytes > report.spare_bytes:
        console.print("  the last row takes more than can be spared.")
    if any(row.layer_slots for row in report.rows):
        console.print("  slots split among layers by the trace hit more: --split-by it.")
    for idea in report.advice:
        console.print(f"  {idea}", soft_wrap=True)
    console.print(
        f"  memory: for a context of {report.context_tokens} tokens, less takes less; first token: "
        f"of a prompt of {report.prompt_tokens}, from a cold start.",
        soft_wrap=True,
    )
    for assumption in report.assumptions:
        console.print(f"! {assumption}", soft_wrap=True)
