"""`mlx-flash doctor`: what this machine has, and what stands in the way."""

import json
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..planner.memory import gigabytes
from .options import AsJson


def command(
    model: Annotated[
        str | None,
        typer.Argument(help="The model whose disk is measured; left out, the bundled one."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show versions, back end, memory and the speed of the disk."""
    from ..engine.doctor import examine
    from ..engine.find import find_model

    report = examine(find_model(model))
    if as_json:
        sys.stdout.write(json.dumps(report.to_json()) + "\n")
        return
    table = Table(show_header=False, box=None)
    for name, found in report.versions.items():
        table.add_row(name, found or "not installed")
    table.add_row("back end", report.backend)
    table.add_row("cores", str(report.cores))
    free = gigabytes(report.memory_available_bytes)
    table.add_row("memory", f"{gigabytes(report.memory_bytes)}, {free} free")
    if report.backend == "cuda":
        table.add_row("GPU memory", f"{gigabytes(report.model_memory_bytes)} free")
    if report.kernel_gbps is not None:
        table.add_row(
            "CPU kernels",
            f"{report.kernel_gbps:.1f} GB/s of 4-bit weights, compiled for {report.processor}",
        )
    if report.ssd_gbps is not None and report.ssd_latency_s is not None:
        way = "past the page cache" if report.direct_io else "through the page cache"
        table.add_row(
            "disk",
            f"{report.ssd_gbps:.2f} GB/s, {report.ssd_latency_s * 1e6:.0f} µs per small read "
            f"({gigabytes(report.ssd_read_bytes)} read {way})",
        )
    celsius = report.ssd_temperature_c
    warmth = "not told by this machine" if celsius is None else f"{celsius:.0f} °C"
    table.add_row("disk temperature", warmth)
    console = Console(highlight=False, markup=False)
    console.print(table)
    for problem in report.problems:
        console.print(f"! {problem}")
