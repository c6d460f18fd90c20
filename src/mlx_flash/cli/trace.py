"""`mlx-flash trace`: record the routing of a model while it reads text."""

import contextlib
import json
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from ..config import TASKS, CacheOptions, KernelOptions, MemoryLimit
from ..errors import OptionError
from ..folders import profile_folder
from .options import AsJson, Kernels, Memory, Model

if TYPE_CHECKING:
    from ..engine.load import LoadedModel
    from ..engine.trace import Text


def command(
    model: Model = None,
    text: Annotated[
        list[Path] | None, typer.Option(help="UTF-8 text to read; may be given several times.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The trace; one that is there grows.")
    ] = None,
    domain: Annotated[
        str | None, typer.Option(help="What the text is about. Default: the file's name.")
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            help="Also keep which experts the text uses, for generate --profile. Without --text "
            "there is sample text for coding, writing, math and chat; a large model takes minutes "
            "to read it."
        ),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(min=2, help="Tokens of each text to read at most.")
    ] = 16384,
    memory: Memory = None,
    kernels: Kernels = None,
    as_json: AsJson = False,
) -> None:
    """Record which experts a model asks for, and with what weights, while it reads text."""
    if out is None and profile is None:
        raise OptionError("say where the trace goes: -o FILE, or --profile NAME.")
    folder = None if profile is None else _folder_of_profiles()
    limit = MemoryLimit.parse(memory)
    kernel_options = KernelOptions(kernels=kernels)
    notes = Console(stderr=True, highlight=False, markup=False)
    with notes.status("loading the model"):
        from ..engine.find import model_name
        from ..engine.load import ModelFiles, load_model
        from ..engine.profiles import check_can_save, check_name
        from ..engine.trace import WINDOW_TOKENS, check_enough, encode_texts
        from ..telemetry.trace_file import check_can_append

        if profile is not None:
            check_name(profile)
        texts = _texts(text, domain, profile)
        files = ModelFiles.open(model)
        encoded = encode_texts(files.tokenizer, texts, max_tokens)
        name = model_name(files.checkpoint.folder)
        if profile is not None and folder is not None:
            check_enough(encoded)
            check_can_save(profile, name, folder)
        if out is not None:
            check_can_append(out, name)
        loaded = load_model(
            files.checkpoint,
            limit,
            CacheOptions(),
            context_tokens=WINDOW_TOKENS,
            kernel_options=kernel_options,
            always_stream=True,
        )
    with contextlib.closing(loaded):
        report = _record(loaded, encoded, out, profile, folder, notes)
    if as_json:
        sys.stdout.write(json.dumps(report) + "\n")
        return
    for line in _closing_lines(report, model):
        notes.print(line, soft_wrap=True)


def _folder_of_profiles() -> Path:
    """Return where profiles are kept.

    Raises:
        OptionError: the user has no home, and names no other folder.
    """
    folder = profile_folder()
    if folder is None:
        raise OptionError(
            "a user without a home keeps no profile: set MLX_FLASH_CACHE to a folder."
        )
    return folder


def _texts(files: list[Path] | None, domain: str | None, profile: str | None) -> "list[Text]":
    """Return the texts to read: the files, or the sample text of a task."""
    from ..engine.samples import sample_text
    from ..engine.trace import Text, read_text

    if files:
        return [read_text(path, domain) for path in files]
    if profile in TASKS:
        return [Text(domain or str(profile), sample_text(str(profile)))]
    raise OptionError("give some text to read: --text FILE.")


def _closing_lines(report: dict[str, Any], model: str | None) -> Iterator[str]:
    """Yield what was recorded, and what can be done with it."""
    tokens = "1 token" if report["tokens"] == 1 else f"{report['tokens']} tokens"
    yield (
        f"{tokens} in {report['seconds']:.1f} s: {report['layers']} layers, "
        f"{report['top_k']} of {report['experts_per_layer']} experts each"
    )
    if report["profile"] is not None:
        named = "" if model is None else f"{shlex.quote(model)} "
        yield f"profile kept: mlx-flash generate {named}--profile {report['profile']} -p ..."
    if report["replaced"] is not None:
        before = {"own": "your earlier one", "shipped": "the one that ships with mlx-flash"}
        yield f"it takes the place of {before[report['replaced']]}."
    if report["trace"] is not None:
        yield f"compare policies on it: mlx-flash replay {shlex.quote(report['trace'])}"


def _record(
    loaded: "LoadedModel",
    texts: list[tuple[str, list[int]]],
    out: Path | None,
    profile: str | None,
    folder: Path | None,
    notes: Console,
) -> dict[str, Any]:
    """Read the texts; write trace and profile; return what is printed as JSON."""
    from ..engine.profiles import is_there, save_profile
    from ..engine.trace import record, routing_of, trace_of_passes
    from ..telemetry.trace_file import TraceWriter

    passes: list[Any] = []
    routing = routing_of(loaded)
    start = time.perf_counter()
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with contextlib.ExitStack() as stack:
        writer = None
        if out is not None:
            writer = stack.enter_context(contextlib.closing(TraceWriter(out, routing)))
        bar = stack.enter_context(Progress(*columns, console=notes, disable=not notes.is_terminal))
        task = bar.add_task("", total=sum(len(tokens) for _, tokens in texts))

        def on_pass(domain: str, experts: Any, weights: Any) -> None:
            if writer is not None:
                writer.add(domain, experts, weights)
            if profile is not None:
                passes.append((domain, experts, weights))

        record(loaded, texts, on_pass, lambda tokens: bar.advance(task, tokens))
    replaced = None
    if profile is not None and folder is not None:
        replaced = is_there(profile, routing.model, routing.num_experts, folder)
        save_profile(profile, trace_of_passes(routing, passes), folder)
    return {
        "trace": None if out is None else str(out),
        "profile": profile,
        "replaced": replaced,
        "tokens": sum(len(tokens) for _, tokens in texts),
        "domains": sorted({domain for domain, _ in texts}),
        "layers": len(routing.num_experts),
        "experts_per_layer": max(routing.num_experts),
        "top_k": routing.top_k,
        "seconds": time.perf_counter() - start,
    }
