"""`mlx-flash generate`: one answer, streamed, with a summary of what it took."""

import contextlib
import json
import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.status import Status

from ..config import (
    KERNEL_NAMES,
    POLICY_NAMES,
    CacheOptions,
    KernelOptions,
    MemoryLimit,
    check_either,
)
from ..planner.memory import gigabytes
from .status import StatusLine

if TYPE_CHECKING:
    from ..engine.generate import GenerationReport


def command(
    prompt: Annotated[
        str, typer.Option("-p", "--prompt", help="The prompt; - reads it from standard input.")
    ],
    model: Annotated[
        str | None, typer.Argument(help="A folder or a Hub id; left out, the bundled model.")
    ] = None,
    max_tokens: Annotated[
        int, typer.Option("-n", "--max-tokens", min=1, help="Tokens to generate at most.")
    ] = 256,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Memory for the whole model: 6GB, 40% of its need, or all. "
            "Default: what the machine can spare."
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option("--temp", min=0.0, help="Sampling temperature; 0 is greedy.")
    ] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling.")] = None,
    capacity: Annotated[
        int | None, typer.Option(min=1, help="Fix the slots per layer instead of the memory.")
    ] = None,
    policy: Annotated[
        str, typer.Option(help=f"Which expert leaves first: {', '.join(POLICY_NAMES)}.")
    ] = CacheOptions.policy,
    kernels: Annotated[
        str | None,
        typer.Option(
            help=f"What computes: {' or '.join(KERNEL_NAMES)}. Default: the best for the device."
        ),
    ] = None,
    chat_template: Annotated[
        bool, typer.Option(help="Put the prompt into the model's chat template.")
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object as the last line.")
    ] = False,
) -> None:
    """Answer one prompt, streamed; most experts may stay on disk."""
    limit = MemoryLimit.parse(memory)
    cache_options = CacheOptions(policy=policy, capacity=capacity)
    kernel_options = KernelOptions(kernels=kernels)
    check_either(limit, cache_options)
    notes = Console(stderr=True, highlight=False, markup=False)
    text = prompt
    if prompt == "-":
        text = sys.stdin.read() if sys.stdin else ""
    loading = notes.status("loading the model") if notes.is_terminal else None
    with loading or contextlib.nullcontext():
        from ..engine.generate import GenerateOptions, encode, generate, room_for
        from ..engine.load import ModelFiles, load_model
        from ..engine.need import steps_for

        options = GenerateOptions(
            max_tokens=max_tokens, temperature=temperature, seed=seed, chat_template=chat_template
        )
        files = ModelFiles.open(model)
        tokens = encode(files.tokenizer, text, options)
        room = room_for(len(tokens), files.checkpoint.context_tokens, options)
        loaded = load_model(
            files.checkpoint,
            limit,
            cache_options,
            context_tokens=len(tokens) + room,
            prefill_steps=steps_for(len(tokens)),
            kernel_options=kernel_options,
            on_compile=partial(_show_compiling, loading),
        )
    if loaded.kernels.why:
        notes.print(loaded.kernels.why)
    if loaded.plan.why_resident:
        notes.print(f"Running resident, nothing is streamed: {loaded.plan.why_resident}.")
    with StatusLine(enabled=not as_json) as status:
        report = generate(loaded, files.tokenizer, tokens, options, status.update)
    if as_json:
        sys.stdout.write(json.dumps(report.to_json()) + "\n")
    else:
        notes.print(_summary(report), soft_wrap=True)
    if report.finish_reason == "interrupted":
        raise typer.Exit(1)


def _show_compiling(status: Status | None, number: int, of: int) -> None:
    """Say which kernel is being compiled, on a terminal."""
    if status is not None:
        status.update(f"preparing CPU kernels, {number} of {of} (compiled once per machine)")


def _summary(report: "GenerationReport") -> str:
    """Return the closing lines for people."""
    lines = [
        f"{report.generation_tokens} tokens at {report.generation_tps:.1f} tokens/s "
        f"(prompt: {report.prompt_tokens} tokens, first token after {report.ttft_s:.2f} s, "
        f"{report.backend}, {report.kernels} kernels)",
        f"memory: {gigabytes(report.peak_model_bytes)} used of "
        f"{gigabytes(report.memory_limit_bytes)} allowed "
        f"(whole process: {gigabytes(report.peak_rss_bytes)})",
    ]
    if report.slot_bytes:
        share = report.capacity / report.experts_per_layer
        lines.append(
            f"experts: {report.capacity} of {report.experts_per_layer} per layer in memory "
            f"({share:.0%} of {gigabytes(report.expert_bytes)}), hit rate {report.hit_rate:.1%}, "
            f"{gigabytes(report.expert_bytes_read)} read, waited {report.stall_s:.2f} s for them"
        )
    if report.finish_reason == "interrupted":
        lines.append("interrupted")
    return "\n".join(lines)
