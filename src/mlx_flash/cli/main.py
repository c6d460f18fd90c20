"""The `mlx-flash` command: its subcommands, and how errors become exit codes."""

import os
import sys
from typing import Annotated

import typer

from .. import __version__
from ..errors import ExpertReadError, MLXFlashError, PackError
from . import bench, browse, chat, demo, doctor, generate, pack, plan, replay, trace

_INTERRUPTED = 130  # how typer ends on Ctrl-C


def _print_version(wanted: bool) -> None:
    """Print the version and end, when it is wanted."""
    if wanted:
        sys.stdout.write(f"mlx-flash {__version__}\n")
        raise typer.Exit


app = typer.Typer(
    name="mlx-flash",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=False)
def _root(
    show_version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version."),
    ] = False,
) -> None:
    """Run Mixture-of-Experts models larger than memory, exactly: experts stream from the SSD."""


app.command("generate")(generate.command)
app.command("chat")(chat.command)
app.command("pack")(pack.command)
app.command("plan")(plan.command)
app.command("trace")(trace.command)
app.command("replay")(replay.command)
app.command("browse")(browse.command)
app.command("doctor")(doctor.command)
app.add_typer(bench.app, name="bench")
app.add_typer(demo.app, name="demo")


def run() -> None:
    """Run the command line. Exit with 0 when done, 2 on wrong input, 1 on anything else."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its notes are not for our users
    if sys.stdout is None or sys.stderr is None:  # closed by who started us
        sys.exit(1)
    try:
        app()
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:
            _end_interrupted()
        sys.exit(stop.code)
    except (ExpertReadError, PackError) as error:
        _fail(error, 1)
    except MLXFlashError as error:
        _fail(error, 2)
    except OSError as error:  # of standard output: every other is translated where it is met
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            sys.stderr.write(f"mlx-flash: cannot write the answer: {error.strerror or error}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        _end_interrupted()


def run_browse() -> None:
    """Run `mlx-flash browse` under a name of its own."""
    sys.argv[1:1] = ["browse"]
    run()


def run_chat() -> None:
    """Run `mlx-flash chat` under a name of its own."""
    sys.argv[1:1] = ["chat"]
    run()


def _end_interrupted() -> None:
    sys.stderr.write("mlx-flash: interrupted\n")
    sys.exit(1)


def _fail(error: MLXFlashError, code: int) -> None:
    sys.stderr.write(f"mlx-flash: {error}\n")
    sys.exit(code)
