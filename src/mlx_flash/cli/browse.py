"""`mlx-flash browse`: models with experts, and how fast each would run on this machine."""

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..config import BROWSE_ORDERS, BrowseOptions
from ..folders import browse_record
from ..planner.memory import gigabytes
from ..planner.speed import CONTEXT_TOKENS
from .options import AsJson

if TYPE_CHECKING:
    from ..engine.browse import BrowsedModel, BrowseReport


def command(
    order: Annotated[
        str,
        typer.Option("--sort", help=f"What comes first: {', '.join(BROWSE_ORDERS)}."),
    ] = BrowseOptions.order,
    text: Annotated[
        str, typer.Option("--filter", help="Only models that have this in their name.")
    ] = BrowseOptions.text,
    ram: Annotated[
        str | None,
        typer.Option(
            help="Memory that a model may take, such as 48GB. Default: what can be spared."
        ),
    ] = None,
    misfits: Annotated[
        bool, typer.Option("--all", help="List what does not fit, too.")
    ] = BrowseOptions.misfits,
    local: Annotated[
        bool, typer.Option("--local", help="Never ask the network.")
    ] = BrowseOptions.local,
    limit: Annotated[
        int, typer.Option(help="Models of the Hub to list at most, the most downloaded ones.")
    ] = BrowseOptions.limit,
    as_json: AsJson = False,
) -> None:
    """List models with experts on the Hub and downloaded here, and the speed to expect of each."""
    options = BrowseOptions(
        order=order,
        text=text,
        memory_bytes=BrowseOptions.memory_of(ram),
        misfits=misfits,
        local=local,
        limit=limit,
    )
    notes = Console(stderr=True, highlight=False, markup=False)
    with notes.status("looking at this machine") as status:
        from ..engine.browse import Source, browse
        from ..engine.plan import default_curve, machine_profile

        machine = machine_profile(None, measure=True)
        status.update("looking for models")
        report = browse(
            options,
            machine,
            default_curve(),
            Source(record=browse_record()),
            lambda found: status.update(f"asking the Hub: {found} of {limit} models"),
        )
    for note in report.notes:
        notes.print(note, soft_wrap=True)
    if as_json:
        sys.stdout.write(json.dumps(report.to_json()) + "\n")
        return
    _print(report, notes)


def _print(report: "BrowseReport", notes: Console) -> None:
    """Print the models as a table, and below it for what machine and memory it is."""
    if report.models:
        Console(highlight=False, markup=False).print(_table(report.models))
    else:
        notes.print("no such model fits." if report.num_misfits else "there is no such model.")
    if report.num_misfits:
        notes.print(f"{report.num_misfits} more do not fit: --all lists them.")
    machine = report.machine
    notes.print(
        f"predicted for {gigabytes(report.memory_bytes)} of memory and a context of "
        f"{CONTEXT_TOKENS} tokens, {machine.backend}, a disk of {machine.ssd_gbps:.2f} GB/s, from "
        "sizes alone: mlx-flash plan MODEL measures one that is here.",
        soft_wrap=True,
    )
    for assumption in machine.assumed:
        notes.print(f"! {assumption}", soft_wrap=True)


def _table(models: "list[BrowsedModel]") -> Table:
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    table.add_column("model", overflow="fold")
    table.add_column("where")
    for title in ("size", "resident", "experts", "slots", "hits", "tokens/s"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("")
    for model in models:
        experts = f"{model.num_experts} x {model.num_layers} top-{model.top_k}"
        sizes = gigabytes(model.download_bytes), gigabytes(model.resident_bytes)
        row = (model.id, model.source, *sizes, experts)
        if model.hit_rate is None or model.decode_tps is None:
            needed = "" if model.needed_bytes is None else f"needs {gigabytes(model.needed_bytes)}"
            table.add_row(*row, "-", "-", "-", needed)
            continue
        pack = "pack it first" if model.why else ""
        speed = f"{model.decode_tps:.1f}"
        table.add_row(*row, str(model.capacity), f"{model.hit_rate:.0%}", speed, pack)
    return table
