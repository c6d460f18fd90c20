"""`mlx-flash bench`: what this machine does with a model, and with the kernels alone."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from ..config import (
    READERS,
    TASKS,
    CacheOptions,
    KernelOptions,
    MemoryLimit,
    ReadOptions,
    check_either,
)
from ..errors import OptionError
from ..folders import warm_start_folder
from ..planner.memory import gigabytes
from ..telemetry.machine import num_cores
from .options import (
    AsJson,
    Capacity,
    Kernels,
    MaxTokens,
    Memory,
    Model,
    Policy,
    Predictor,
    Prefetch,
    SplitBy,
    WarmStart,
)
from .progress import ByteBar
from .remarks import remarks

if TYPE_CHECKING:
    from ..bench.kernels import KernelRow
    from ..bench.model import BenchReport
    from ..bench.predictors import PredictorRow
    from ..engine.trace import Text
    from ..streaming.tokens import TokenizerWrapper


class _ModelUnlessNamed(TyperGroup):
    """Takes `bench MODEL` for `bench model MODEL`."""

    def parse_args(self, context: Any, args: list[str]) -> list[str]:
        """Put the name of the command in front where there is none."""
        if not args or (args[0] not in self.commands and args[0] != "--help"):
            args = ["model", *args]
        rest: list[str] = super().parse_args(context, args)
        return rest


app = typer.Typer(
    cls=_ModelUnlessNamed,
    help="Measure this machine: `bench MODEL` a model, `bench kernels` the CPU kernels.",
)


@app.callback()
def _root() -> None:
    """Measure this machine."""


@app.command("model")
def model(
    model: Model = None,
    memory: Memory = None,
    capacity: Capacity = None,
    policy: Policy = CacheOptions.policy,
    split_by: SplitBy = None,
    kernels: Kernels = None,
    reader: Annotated[
        str, typer.Option(help=f"How experts are read: {', '.join(READERS)}, or mmap to compare.")
    ] = READERS[0],
    overlap: Annotated[bool, typer.Option(help="Compute while experts are read.")] = True,
    prefetch: Prefetch = ReadOptions.prefetch,
    predictor: Predictor = ReadOptions.predictor,
    warm_start: WarmStart = False,
    prompt_tokens: Annotated[int, typer.Option(min=2, help="Tokens of each prompt.")] = 512,
    prefill_step: Annotated[
        int | None,
        typer.Option(min=1, help="Prompt tokens to compute at once. Default: as memory allows."),
    ] = None,
    max_tokens: MaxTokens = 500,
    text: Annotated[
        Path | None,
        typer.Option(help="UTF-8 text to read, prompts and what follows. Default: Python code."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a model: speed, hit rate, bytes, and how near that is to what the machine allows."""
    limit = MemoryLimit.parse(memory)
    folder = warm_start_folder() if warm_start else None
    cache_options = CacheOptions(policy=policy, capacity=capacity, warm_start=folder)
    kernel_options = KernelOptions(kernels=kernels)
    check_either(limit, cache_options)
    notes = Console(stderr=True, highlight=False, markup=False)
    with notes.status("loading the model") as status:
        from ..bench.model import (
            COLD_TOKENS,
            measure_model,
            read_options_of,
            settings_of,
            use_reader,
        )
        from ..engine.load import ModelFiles, load_model
        from ..engine.need import steps_for
        from ..engine.replay import splitting_by
        from ..engine.trace import read_text

        content = None if text is None else read_text(text).content
        files = ModelFiles.open(model)
        reads = read_options_of(reader, overlap, prefetch, predictor)
        loaded = load_model(
            files.checkpoint,
            limit,
            cache_options,
            context_tokens=prompt_tokens + max(max_tokens, COLD_TOKENS),
            prefill_steps=[prefill_step] if prefill_step else steps_for(prompt_tokens),
            read_options=reads,
            kernel_options=kernel_options,
            split=splitting_by(split_by, policy),
        )
        use_reader(loaded, reader)
        for line in remarks(loaded, cache_options, reads, split_by=split_by):
            notes.print(line, soft_wrap=True)
        settings = {
            "reader": reader,
            "split": loaded.is_split,
            **settings_of(cache_options, reads),
        }
        report = measure_model(
            loaded, files.tokenizer, prompt_tokens, max_tokens, settings, status.update, content
        )
    if as_json:
        sys.stdout.write(json.dumps(report.to_json()) + "\n")
        return
    _show(report)


def _show(report: "BenchReport") -> None:
    """Print a report for people."""
    console = Console(highlight=False, markup=False)
    table = Table("", "tokens/s", "of the bound", "bound", "computing alone", "bytes read")
    table.add_row(
        "prefill",
        f"{report.prefill_tps:.1f}",
        f"{report.bound_prefill_fraction:.0%}",
        f"{report.bound_prefill_tps:.1f}",
        f"{report.compute_only_prefill_tps:.1f}",
        gigabytes(report.prefill_bytes),
    )
    table.add_row(
        "decode",
        f"{report.decode_tps:.1f}",
        f"{report.bound_decode_fraction:.0%}",
        f"{report.bound_decode_tps:.1f}",
        f"{report.compute_only_tps:.1f}",
        f"{gigabytes(round(report.bytes_per_token))} a token",
    )
    console.print(table)
    for line in _closing_lines(report):
        console.print(line, soft_wrap=True)


def _closing_lines(report: "BenchReport") -> Iterator[str]:
    """Yield what the table does not say."""
    yield (
        f"decode: half of the tokens within {report.tpot_p50_s * 1e3:.1f} ms, 99% within "
        f"{report.tpot_p99_s * 1e3:.1f} ms, of which {report.stall_s * 1e3:.1f} ms waiting for "
        f"experts; hit rate {report.hit_rate:.1%}; first token after {report.ttft_s:.2f} s"
    )
    if report.settings["capacity"] is not None:
        through = "" if report.settings["direct"] else " through the page cache"
        yield (
            f"reading: {report.read_gbps:.2f} GB/s{through} where the disk gives "
            f"{report.disk_gbps:.2f}; prefetch: {_prefetched(report)}"
        )
    if report.beats_the_disk:
        yield "more than 100% of the bound: the bound is the disk's, and the page cache is faster"
    yield f"cold: {report.cold['decode_tps']:.1f} tokens/s after {report.cold['ttft_s']:.2f} s"


def _prefetched(report: "BenchReport") -> str:
    """Return what was read ahead, and why no more."""
    found, why = report.prefetch, report.prefetch["why_off"]
    if not found["experts_per_token"]:
        return f"nothing, {why}" if why else "nothing, none was missing and sure enough"
    used = (
        f"{found['experts_per_token']:.1f} experts a token, {found['precision']:.0%} of them used"
    )
    return f"{used}, then no more: {why}" if why else used


@app.command("predictors")
def predictors(
    model: Model = None,
    text: Annotated[
        list[Path] | None, typer.Option(help="UTF-8 text. Default: sample text of four tasks.")
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(min=64, help="Tokens of each text; the last third is measured on.")
    ] = 1536,
    as_json: AsJson = False,
) -> None:
    """Measure what could guess the next layer's experts: the share of its top-k that is found.

    Predictors are fitted on the first two thirds of each text. "@k" is among as many guesses as
    experts are used, "@2k" among twice as many. The true router must find all.
    """
    notes = Console(stderr=True, highlight=False, markup=False)
    table = Table("predictor", "@k", "@2k", "@k in the first layer guessed")
    with notes.status("loading the model") as status:
        from ..bench.predictors import compare_predictors
        from ..engine.load import ModelFiles, load_model
        from ..engine.trace import WINDOW_TOKENS

        texts = _texts(text)
        files = ModelFiles.open(model)
        train, test = _train_and_test(files.tokenizer, texts, max_tokens)
        loaded = load_model(
            files.checkpoint,
            MemoryLimit(),
            CacheOptions(),
            context_tokens=WINDOW_TOKENS,
            always_stream=True,
        )
        status.update("reading the text")

        def show(row: "PredictorRow") -> None:
            status.update(f"measured {row.predictor}")
            first = f"{row.by_layer[0]:.1%}"
            table.add_row(row.predictor, f"{row.recall_k:.1%}", f"{row.recall_2k:.1%}", first)

        report = compare_predictors(loaded, train, test, show)
    if as_json:
        sys.stdout.write(json.dumps(report.to_json()) + "\n")
        return
    Console(highlight=False, markup=False).print(table)


def _texts(paths: list[Path] | None) -> "list[Text]":
    """Return the texts in files, or sample text of every task."""
    from ..engine.samples import sample_text
    from ..engine.trace import Text, read_text

    if paths:
        return [read_text(path) for path in paths]
    return [Text(task, sample_text(task)) for task in TASKS]


def _train_and_test(
    tokenizer: "TokenizerWrapper", texts: "list[Text]", max_tokens: int
) -> tuple[list[int], list[int]]:
    """Return the first two thirds of each text's tokens, and the rest of each."""
    from ..engine.trace import check_enough, encode_texts

    train: list[int] = []
    test: list[int] = []
    encoded = encode_texts(tokenizer, texts, max_tokens)
    check_enough(encoded)
    for _, tokens in encoded:
        end = 2 * len(tokens) // 3
        train += tokens[:end]
        test += tokens[end:]
    return train, test


@app.command("inflate")
def inflate(
    out: Annotated[Path, typer.Argument(help="The folder to write; must be new or empty.")],
    expert_bytes: Annotated[str, typer.Option(help="Size of an expert, such as 2.6MB.")] = "2.6MB",
    model: Annotated[
        str | None, typer.Option(help="A folder or a Hub id; left out, the bundled model.")
    ] = None,
) -> None:
    """Write a model with the same answers and far larger experts, to measure with."""
    from ..bench.inflate import inflate as write
    from ..engine.find import find_model

    wanted = _expert_bytes(expert_bytes)
    notes = Console(stderr=True, highlight=False, markup=False)
    with ByteBar(notes) as on_bytes:
        found = write(find_model(model), out, wanted, on_bytes)
    notes.print(
        f"each expert has {gigabytes(found)} now: mlx-flash bench {out} --memory 50%",
        soft_wrap=True,
    )


def _expert_bytes(text: str) -> int:
    """Return the bytes that a size such as 2.6MB names.

    Raises:
        OptionError: it is no size of an expert.
    """
    try:
        return MemoryLimit.bytes_of(text)
    except OptionError as error:
        raise OptionError(
            f"{text!r} is no size of an expert: give bytes, such as 2.6MB."
        ) from error


@app.command("kernels")
def kernels(as_json: AsJson = False) -> None:
    """Measure the CPU kernels: speed, error, and the ratio to MLX. Takes about two minutes.

    GB/s count bytes of weights, which are only read; "of copy" compares them with copying memory,
    where bytes read and written count. The error is relative to float64. "MLX x" is how many times
    as fast as MLX's own operation the kernel is. "rows" are the tokens that are computed at once.
    """
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
