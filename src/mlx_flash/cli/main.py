"""The `mlx-flash` command: its subcommands, and how errors become exit codes."""

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from .. import __version__
from ..errors import ExpertReadError, MLXFlashError, PackError, WorkerError
from . import (
    bench,
    browse,
    chat,
    connect,
    demo,
    doctor,
    generate,
    pack,
    plan,
    replay,
    serve,
    trace,
)

_OF_SERVE = ("--port", "--host", "--memory", "--api-key")
_INTERRUPTED = 130  # how typer ends on Ctrl-C
_WrongUsage: type[Exception] = typer.BadParameter.__mro__[1]  # of the click that typer is built on


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
app.command("serve")(serve.command)
app.command("pack")(pack.command)
app.command("plan")(plan.command)
app.command("trace")(trace.command)
app.command("replay")(replay.command)
app.command("browse")(browse.command)
app.command("connect")(connect.command)
app.command("doctor")(doctor.command)
app.add_typer(bench.app, name="bench")
app.add_typer(demo.app, name="demo")


def run() -> None:
    """Run the command line. Exit with 0 when done, 2 on wrong input, 1 on anything else."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its notes are not for our users
    if sys.stdout is None or sys.stderr is None:  # closed by who started us
        sys.exit(1)
    if _means_serve(sys.argv[1:]):
        sys.argv.insert(1, "serve")
    try:
        code = app(prog_name="mlx-flash", standalone_mode=False)
        if code == _INTERRUPTED:
            _end_interrupted()
        sys.exit(code)
    except _WrongUsage as error:
        _fail_by_usage(error)
    except typer.Abort:
        _end_interrupted()
    except (ExpertReadError, PackError, WorkerError) as error:
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


def _means_serve(arguments: Sequence[str]) -> bool:
    """Return whether a command line has options of `serve` and no command: `mlx-flash --port N`."""
    return bool(arguments) and arguments[0].split("=")[0] in _OF_SERVE


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


def _fail_by_usage(error: Any) -> None:
    """End with the sentence of an error that typer found; without a command, it has shown help."""
    sentence = " ".join(error.format_message().split())
    if sentence:
        command = "mlx-flash" if error.ctx is None else error.ctx.command_path
        sys.stderr.write(f"mlx-flash: {sentence.rstrip('.')} (see {command} --help).\n")
    sys.exit(2)


def _fail(error: MLXFlashError, code: int) -> None:
    sys.stderr.write(f"mlx-flash: {error}\n")
    sys.exit(code)
