"""`mlx-flash generate`: one answer, streamed, with a summary of what it took."""

import contextlib
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.status import Status

from ..config import READERS, CacheOptions, KernelOptions, MemoryLimit, ReadOptions, check_either
from ..errors import MemoryPlanError
from ..folders import warm_start_folder
from ..planner.memory import gigabytes
from .loading import read_profile, show_compiling
from .options import (
    AsJson,
    Capacity,
    ChatTemplate,
    Kernels,
    MaxTokens,
    Memory,
    Model,
    Policy,
    Prefetch,
    Profile,
    Prompt,
    Reader,
    Seed,
    SplitBy,
    SsdMaxGbps,
    SsdMaxTemp,
    Temperature,
    TraceTo,
    Verify,
    WarmStart,
)
from .remarks import remarks
from .status import StatusLine

if TYPE_CHECKING:
    from ..engine.generate import GenerateOptions, GenerationReport
    from ..engine.load import LoadedModel
    from ..streaming.tokens import TokenizerWrapper


def command(
    prompt: Prompt,
    model: Model = None,
    max_tokens: MaxTokens = 256,
    memory: Memory = None,
    temperature: Temperature = 0.0,
    seed: Seed = None,
    capacity: Capacity = None,
    policy: Policy = CacheOptions.policy,
    split_by: SplitBy = None,
    kernels: Kernels = None,
    warm_start: WarmStart = True,
    profile: Profile = None,
    trace: TraceTo = None,
    reader: Reader = READERS[0],
    prefetch: Prefetch = ReadOptions.prefetch,
    verify: Verify = False,
    ssd_max_gbps: SsdMaxGbps = None,
    ssd_max_temp: SsdMaxTemp = None,
    chat_template: ChatTemplate = True,
    as_json: AsJson = False,
) -> None:
    """Answer one prompt, streamed; most experts may stay on disk."""
    limit = MemoryLimit.parse(memory)
    folder = warm_start_folder() if warm_start and profile is None else None
    cache_options = CacheOptions(policy=policy, capacity=capacity, warm_start=folder)
    kernel_options = KernelOptions(kernels=kernels)
    read_options = ReadOptions(
        direct=ReadOptions.direct_by(reader),
        prefetch=prefetch,
        verify=verify,
        max_gbps=ssd_max_gbps,
        max_temperature_c=ssd_max_temp,
    )
    check_either(limit, cache_options)
    notes = Console(stderr=True, highlight=False, markup=False)
    text = _text_of(prompt)
    loading = notes.status("loading the model") if notes.is_terminal else None
    with loading or contextlib.nullcontext():
        from ..engine.generate import GenerateOptions

        options = GenerateOptions(
            max_tokens=max_tokens, temperature=temperature, seed=seed, chat_template=chat_template
        )
        loaded, tokenizer, tokens = _load(
            model,
            text,
            options,
            limit,
            cache_options,
            kernel_options,
            read_options,
            loading,
            trace,
            split_by,
        )
        if profile is not None:
            read_profile(loaded, profile, loading)
    for line in remarks(loaded, cache_options, read_options, profile, split_by):
        notes.print(line, soft_wrap=True)
    domain = profile or "generated"
    report = _answer(loaded, tokenizer, tokens, options, trace, domain, quiet=as_json)
    if as_json:
        sys.stdout.write(json.dumps(report.to_json()) + "\n")
    else:
        notes.print(_summary(report, profile), soft_wrap=True)
    if report.finish_reason == "interrupted":
        raise typer.Exit(1)


def _text_of(prompt: str) -> str:
    """Return the prompt itself, or what standard input says."""
    if prompt != "-":
        return prompt
    return sys.stdin.read() if sys.stdin else ""


def _load(
    model: str | None,
    text: str,
    options: "GenerateOptions",
    limit: MemoryLimit,
    cache_options: CacheOptions,
    kernel_options: KernelOptions,
    read_options: ReadOptions,
    loading: Status | None,
    trace: Path | None,
    split_by: Path | None,
) -> "tuple[LoadedModel, TokenizerWrapper, list[int]]":
    """Return a model with room for an answer to `text`, its tokenizer, and the text's tokens."""
    from ..engine.find import model_name
    from ..engine.generate import encode, room_for
    from ..engine.load import ModelFiles, load_model
    from ..engine.need import steps_for
    from ..engine.replay import splitting_by
    from ..engine.trace import routing_of
    from ..telemetry.trace_file import check_can_append

    files = ModelFiles.open(model)
    if trace is not None:
        check_can_append(trace, model_name(files.checkpoint.folder))
    tokens = encode(files.tokenizer, text, options)
    room = room_for(len(tokens), files.checkpoint.context_tokens, options)
    try:
        loaded = load_model(
            files.checkpoint,
            limit,
            cache_options,
            context_tokens=len(tokens) + room,
            prefill_steps=steps_for(len(tokens)),
            kernel_options=kernel_options,
            read_options=read_options,
            always_stream=trace is not None,
            split=splitting_by(split_by, cache_options.policy),
            on_compile=partial(show_compiling, loading),
        )
    except MemoryPlanError as error:
        raise error.advised("A shorter prompt or --max-tokens takes less.") from error
    if trace is not None:
        routing_of(loaded)  # a model without experts is refused before anything is said
    return loaded, files.tokenizer, tokens


def _answer(
    loaded: "LoadedModel",
    tokenizer: "TokenizerWrapper",
    tokens: list[int],
    options: "GenerateOptions",
    trace: Path | None,
    domain: str,
    quiet: bool,
) -> "GenerationReport":
    """Generate, close the model, return what it took; show the answer and record its routing."""
    from ..engine.generate import generate
    from ..engine.trace import recording_to

    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(loaded))
        if trace is not None:
            stack.enter_context(recording_to(loaded, trace, domain))
        status = stack.enter_context(StatusLine(enabled=not quiet))
        return generate(loaded, tokenizer, tokens, options, status.update)


def _summary(report: "GenerationReport", profile: str | None) -> str:
    """Return the closing lines for people."""
    speed = f" at {report.generation_tps:.1f} tokens/s" if report.generation_tokens > 1 else ""
    lines = [
        f"{_tokens(report.generation_tokens)}{speed} "
        f"(prompt: {_tokens(report.prompt_tokens)}, first token after {report.ttft_s:.2f} s, "
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
    if report.resized:
        lines.append(
            f"slots changed {report.resized} times because the machine was short of memory: "
            f"{report.capacity_now} per layer in the end"
        )
    if report.restored:
        came = f"warm start: {report.restored} experts of the last run put back"
        if profile is not None:
            came = f"profile {profile}: {report.restored} experts read before the first token"
        lines.append(f"{came}, {gigabytes(report.restored_bytes)}")
    if report.finish_reason == "interrupted":
        lines.append("interrupted")
    return "\n".join(lines)


def _tokens(number: int) -> str:
    return "1 token" if number == 1 else f"{number} tokens"
