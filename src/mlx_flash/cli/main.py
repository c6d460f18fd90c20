"""The `mlx-flash` command: its subcommands, and how errors become exit codes."""

import os
import sys

import typer

from ..errors import ExpertReadError, MLXFlashError
from . import doctor, generate

app = typer.Typer(
    name="mlx-flash",
    help="Run Mixture-of-Experts models larger than memory, exactly: experts stream from the SSD.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("generate")(generate.command)
app.command("doctor")(doctor.command)


def run() -> None:
    """Run the command line. Exit with 0 when done, 2 on wrong input, 1 on anything else."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its notes are not for our users
    try:
        app()
    except ExpertReadError as error:
        _fail(error, 1)
    except MLXFlashError as error:
        _fail(error, 2)
    except KeyboardInterrupt:
        sys.exit(1)


def _fail(error: MLXFlashError, code: int) -> None:
    sys.stderr.write(f"mlx-flash: {error}\n")
    sys.exit(code)
