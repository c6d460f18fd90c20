"""`mlx-flash bench`: what this machine does with a model, and with the kernels alone."""

import json
import sys
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table

from ..telemetry.machine import num_cores
from .options import AsJson

if TYPE_CHECKING:
    from ..bench.kernels import KernelRow

app = typer.Typer(no_args_is_help=True, help="Measure this machine.")


@app.callback()
def _root() -> None:
    """Measure this machine."""


@app.command("kernels")
def kernels(as_json: AsJson = False) -> None:
    """Measure the CPU kernels: speed, error, and the ratio to MLX. Takes about two minutes."""
    from ..kernels.dispatch import choose_kernels

    choose_kernels("cpu", on_cpu=True, num_threads=1)  # or say why they cannot run
    from ..bench.kernels import measure_kernels

    notes = Console(stderr=True, highlight=False, markup=False)
    table = Table("format", "call", "rows", "threads", "GB/s", "of copy", "error", "MLX x")
    with notes.status("measuring how fast memory is copied") as status:

        def show(row: "KernelRow") -> None:
            status.update(f"measured {row.format}, {row.call}: {row.gbps:.1f} GB/s")
            table.add_row(
                row.format,
                row.call,
                str(row.batch),
                str(row.threads),
                f"{row.gbps:.1f}",
                f"{row.share_of_copy:.0%}",
                f"{row.rel_error:.1e}",
                f"{row.speedup_vs_mlx:.0f}",
            )

        report = measure_kernels(num_cores(), show)
    if as_json:
        sys.stdout.write(json.dumps(report.to_json()) + "\n")
        return
    console = Console(highlight=False, markup=False)
    console.print(
        f"copying memory: {report.copy_gbps_one_core:.1f} GB/s on one core, "
        f"{report.copy_gbps:.1f} GB/s on {report.cores}, bytes read and written"
    )
    console.print(table)
