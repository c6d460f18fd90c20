"""`mlx-flash demo`: what streaming does, shown with the real engine."""

import contextlib
import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ..config import (
    READERS,
    CacheOptions,
    MemoryLimit,
    ReadOptions,
    WarmupOptions,
    check_either,
)
from ..folders import profile_folder
from .options import AsJson, Memory, Model, Policy, Profile, Reader
from .remarks import remarks
from .warmup_view import Setting, WarmupView, summary_lines

if TYPE_CHECKING:
    from ..engine.load import LoadedModel
    from ..engine.warmup import TokenMeasurement

app = typer.Typer(help="See what streaming does: `demo warmup` shows a cache that warms up.")

_DOMAINS = "coding, writing, math or chat"


@app.callback()
def _root() -> None:
    """See what streaming does."""


@app.command("warmup")
def warmup(
    model: Model = None,
    memory: Memory = None,
    capacity: Annotated[
        int | None,
        typer.Option(help="Slots per layer. Default: a quarter of the experts of a layer."),
    ] = None,
    policy: Policy = CacheOptions.policy,
    first: Annotated[str, typer.Option(help=f"Text to begin with: {_DOMAINS}.")] = (
        WarmupOptions.first
    ),
    second: Annotated[str, typer.Option(help="Text to change to.")] = WarmupOptions.second,
    num_tokens: Annotated[
        int, typer.Option("-n", "--num-tokens", help="Tokens to read before each change.")
    ] = WarmupOptions.num_tokens,
    profile: Profile = None,
    reader: Reader = READERS[0],
    prefetch: Annotated[
        bool, typer.Option(help="Also read what the next layer may ask for.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show hit rate and token time from a cold cache, over a change of domain, and back."""
    options = WarmupOptions(first=first, second=second, num_tokens=num_tokens)
    limit = MemoryLimit.parse(memory)
    cache_options = CacheOptions(policy=policy, capacity=capacity)
    read_options = ReadOptions(direct=ReadOptions.direct_by(reader), prefetch=prefetch)
    check_either(limit, cache_options)
    notes = Console(stderr=True, highlight=False, markup=False)
    with notes.status("loading the model"):
        from ..engine.profiles import load_profile
        from ..engine.warmup import report_of

        loaded, phases = _load(model, options, limit, cache_options, read_options)
        if profile is not None:
            load_profile(loaded, profile, profile_folder())
    with contextlib.closing(loaded):
        for line in remarks(loaded, cache_options, read_options):
            notes.print(line, soft_wrap=True)
        setting = Setting(options.domains, num_tokens, _title(loaded, policy, profile))
        measured = _follow(loaded, phases, None if as_json else setting)
        report = report_of(loaded, options, policy, profile, measured)
    if as_json:
        sys.stdout.write(json.dumps(report.to_json()) + "\n")
    else:
        sys.stdout.write("\n".join(["", *summary_lines(report.summary)]) + "\n")
    if report.interrupted:
        notes.print("interrupted")
        raise typer.Exit(1)


def _load(
    model: str | None,
    options: WarmupOptions,
    limit: MemoryLimit,
    cache_options: CacheOptions,
    read_options: ReadOptions,
) -> "tuple[LoadedModel, list[list[int]]]":
    """Return a streamed model with nothing in its slots, and the tokens of each phase."""
    from ..engine.load import ModelFiles, load_model
    from ..engine.need import steps_for
    from ..engine.warmup import encode_phases, quarter_of_experts, streamed

    files = ModelFiles.open(model)
    phases = encode_phases(files.tokenizer, options, files.checkpoint.context_tokens)
    if limit == MemoryLimit() and cache_options.capacity is None:
        cache_options = replace(cache_options, capacity=quarter_of_experts(files.checkpoint))
    loaded = load_model(
        files.checkpoint,
        limit,
        cache_options,
        context_tokens=options.num_tokens,
        prefill_steps=steps_for(1),
        read_options=read_options,
        always_stream=True,
    )
    streamed(loaded)  # or say why not
    return loaded, phases


def _title(loaded: "LoadedModel", policy: str, profile: str | None) -> str:
    """Return what is measured with, as a line."""
    from ..engine.find import model_name
    from ..engine.warmup import streamed

    experts = max(layout.num_experts for layout in loaded.layouts)
    start = "empty at the start" if profile is None else f"profile {profile} at the start"
    return (
        f"{model_name(loaded.checkpoint.folder)}: {streamed(loaded).capacity} slots for {experts} "
        f"experts per layer, {start}, policy {policy}"
    )


def _follow(
    loaded: "LoadedModel", phases: list[list[int]], shown: Setting | None
) -> "list[TokenMeasurement]":
    """Return what each token took; show it meanwhile. Ctrl-C ends it early."""
    from ..engine.warmup import follow

    measured: list[TokenMeasurement] = []
    console = Console(highlight=False, markup=False)
    view = WarmupView(console, shown) if shown else contextlib.nullcontext()
    with view as drawn, contextlib.suppress(KeyboardInterrupt):
        for token in follow(loaded, phases):
            measured.append(token)
            if drawn is not None:
                drawn.update(token)
    return measured
