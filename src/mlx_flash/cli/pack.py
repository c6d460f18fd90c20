"""`mlx-flash pack`: a model whose experts are read in one piece each."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..config import QUANTIZATIONS, QuantizeOptions
from ..errors import OptionError
from .options import AsJson
from .progress import ByteBar


def command(
    model: Annotated[str, typer.Argument(help="A folder or a Hub id.")],
    out: Annotated[
        Path | None,
        typer.Argument(help="The folder to write: new, empty, or a pack to go on with."),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--check", help="Compare all weights of MODEL, which is packed, with their checksums."
        ),
    ] = False,
    bits: Annotated[int | None, typer.Option(help="Quantize to so many bits on the way.")] = None,
    group_size: Annotated[
        int | None, typer.Option(help="Weights that share a scale. Default: that of the mode.")
    ] = None,
    mode: Annotated[
        str | None, typer.Option(help=f"How to quantize: {', '.join(QUANTIZATIONS)}.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write MODEL to OUT so that each expert is one read; go on where one was interrupted.

    MODEL may be any that mlx-lm loads, its experts stored one by one too. It needs the memory of
    one layer.
    """
    if verify == (out is not None):
        raise OptionError("give MODEL and OUT to pack a model, or a packed MODEL and --check.")
    options = {"--bits": bits, "--group-size": group_size, "--mode": mode}
    useless = [name for name, value in options.items() if verify and value is not None]
    if useless:
        raise OptionError(f"--check does not quantize: leave {' and '.join(useless)} out.")
    sizes = QuantizeOptions(bits=bits, group_size=group_size, mode=mode).sizes
    notes = Console(stderr=True, highlight=False, markup=False)
    with ByteBar(notes) as on_bytes:
        from ..engine.check_pack import check
        from ..engine.find import find_model
        from ..engine.pack import pack
        from ..kernels.reference import Quantization

        folder = find_model(model)
        num_records, written = None, False
        if out is None:
            num_records = check(folder, on_bytes)
        else:
            written = pack(folder, out, Quantization(*sizes) if sizes else None, on_bytes)
    if as_json:
        report = {"records": num_records} if out is None else {"folder": str(out)}
        sys.stdout.write(json.dumps(report) + "\n")
    elif out is None:
        notes.print(f"all {num_records} experts and all other weights are as they were written.")
    else:
        done = "packed" if written else "already packed"
        notes.print(f"{done}: mlx-flash generate {out} -p ...", soft_wrap=True)
