"""Loads the model that a worker serves, with room for the answers to several clients."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...config import CacheOptions, KernelOptions, MemoryLimit, ReadOptions, check_either
from ...engine.find import model_name
from ...engine.load import LoadedModel, ModelFiles, load_model
from ...engine.profiles import find_profile, load_experts
from ...engine.prompt_store import PromptStore
from ...engine.sampling import SamplingOptions
from ...errors import MemoryPlanError
from ...planner.memory import gigabytes
from ...streaming.tokens import TokenizerWrapper
from ..messages import ModelCard
from ..options import WorkerOptions
from .limits import KV_STEP, Limits
from .report import card_of, exact_together, max_batch

DEFAULT_CONTEXT_TOKENS = 16384


@dataclass(frozen=True)
class Served:
    """A loaded model with what it takes to serve it.

    `vocabulary` is the number of its logits; `sampling` is for requests that do not say.
    """

    loaded: LoadedModel
    tokenizer: TokenizerWrapper
    vocabulary: int
    card: ModelCard
    limits: Limits
    store: PromptStore
    sampling: SamplingOptions
    remarks: list[str]

    def close(self) -> None:
        """Close the model."""
        self.loaded.close()


def load_served(options: WorkerOptions, notice: Callable[[str], None]) -> Served:
    """Load the model by the options; tell `notice` what takes time.

    Raises:
        MLXFlashError: it cannot be loaded so; the message says what to do.
    """
    limit = MemoryLimit.parse(options.memory)
    folder = Path(options.warm_start) if options.warm_start and not options.profile else None
    cache_options = CacheOptions(
        policy=options.policy, capacity=options.capacity, warm_start=folder
    )
    check_either(limit, cache_options)
    notice(f"loading {options.model or 'the bundled model'}")
    files = ModelFiles.open(options.model)
    context = _context_tokens(options, files)
    kv_tokens = context + KV_STEP
    try:
        loaded = load_model(
            files.checkpoint,
            limit,
            cache_options,
            context_tokens=context,
            kv_tokens=kv_tokens,
            kv_bits=options.kv_bits,
            kernel_options=KernelOptions(kernels=options.kernels),
            read_options=ReadOptions(
                direct=ReadOptions.direct_by(options.reader), prefetch=options.prefetch
            ),
            always_stream=options.trace is not None,
            on_compile=_once(notice, "preparing CPU kernels (compiled once per machine)"),
        )
    except MemoryPlanError as error:
        raise error.advised("A smaller --max-context takes less.") from error
    name = model_name(files.checkpoint.folder)
    if options.profile is not None:
        _read_profile(loaded, name, options)
    token_bytes = max(1, loaded.plan.kv_bytes // kv_tokens)
    limits = Limits(
        max_batch=max_batch(loaded, options),
        kv_bytes=loaded.plan.kv_bytes,
        token_bytes=token_bytes,
        prefill_step=loaded.prefill_step,
    )
    store = PromptStore(
        loaded.model,
        f"{_identity(loaded)} {loaded.kernels.name}",
        Path(options.prompt_cache) if options.prompt_cache and not options.kv_bits else None,
        options.prompt_cache_bytes,
    )
    sampling = _sampling(options, files.checkpoint.folder)
    card = card_of(loaded, files.tokenizer, name, context, options, sampling)
    vocabulary = _vocabulary(files)
    return Served(
        loaded,
        files.tokenizer,
        vocabulary,
        card,
        limits,
        store,
        sampling,
        _remarks(loaded, card, options),
    )


def _once(notice: Callable[[str], None], what: str) -> Callable[[int, int], None]:
    """Return what tells of many steps when the first begins."""

    def tell(number: int, of: int) -> None:
        if number == 1:
            notice(what)

    return tell


def _context_tokens(options: WorkerOptions, files: ModelFiles) -> int:
    trained = files.checkpoint.context_tokens or DEFAULT_CONTEXT_TOKENS
    return options.max_context or min(trained, DEFAULT_CONTEXT_TOKENS)


def _read_profile(loaded: LoadedModel, name: str, options: WorkerOptions) -> None:
    assert options.profile is not None
    counts = [layout.num_experts for layout in loaded.layouts]
    folder = Path(options.profile_folder) if options.profile_folder else None
    ranking = find_profile(options.profile, name, counts, folder)
    if loaded.stream is not None:
        load_experts(loaded.stream, ranking)


def _identity(loaded: LoadedModel) -> str:
    """Return what changes when the weights do: the folder, and each file's size and time."""
    stamps = {tensor.path: tensor.stamp for tensor in loaded.checkpoint.tensors.values()}
    files = [f"{path} {stamp.size} {stamp.mtime_ns}" for path, stamp in sorted(stamps.items())]
    return "\n".join([str(loaded.checkpoint.folder.resolve()), *files])


def _vocabulary(files: ModelFiles) -> int:
    config = files.checkpoint.config
    text = config.get("text_config")
    size = config.get("vocab_size") or (text.get("vocab_size") if isinstance(text, dict) else None)
    return size if isinstance(size, int) and size > 0 else len(files.tokenizer)


def _sampling(options: WorkerOptions, folder: Path) -> SamplingOptions:
    """Return how to draw when a request does not say: as the options do, or the model's authors."""
    try:
        config = json.loads((folder / "generation_config.json").read_text())
    except (OSError, ValueError, RecursionError):
        config = {}
    config = config if isinstance(config, dict) and config.get("do_sample", True) else {}

    def of(name: str, chosen: float | None, otherwise: float, most: float) -> float:
        value = config.get(name) if chosen is None else chosen
        good = isinstance(value, (int, float)) and 0 <= value <= most
        return value if good and value is not None else otherwise

    return SamplingOptions(
        temperature=of("temperature", options.temperature, 0.0, 10.0),
        top_p=of("top_p", options.top_p, 1.0, 1.0),
        top_k=int(of("top_k", options.top_k, 0, 1e6)),
        min_p=of("min_p", options.min_p, 0.0, 1.0),
    )


def _remarks(loaded: LoadedModel, card: ModelCard, options: WorkerOptions) -> list[str]:
    remarks = [loaded.kernels.why] if loaded.kernels.why else []
    if loaded.plan.why_resident:
        unused = ", and --profile not used" if options.profile else ""
        why = loaded.plan.why_resident
        remarks.append(f"running resident, nothing is streamed{unused}: {why}.")
    else:
        slots, experts = card.capacity, card.experts_per_layer
        remarks.append(
            f"{slots} of {experts} experts per layer in memory; the model takes "
            f"{gigabytes(loaded.plan.total_bytes)} of {gigabytes(loaded.plan.limit_bytes)}."
        )
    trained = card.trained_context_tokens
    if trained and card.context_tokens > trained:
        remarks.append(
            f"the model was trained for {trained} tokens of context: beyond that its answers are "
            "poor."
        )
    remarks += [f"not exact: {what}." for what in card.lossy]
    if not options.fast_batch and not exact_together(loaded):
        remarks.append(
            "answers are computed one after the other, each as if alone: --fast-batch computes "
            "several together, which is faster and not exact."
        )
    if not card.has_tools:
        remarks.append("the model has no tools of its own: it calls one only when it must.")
    return remarks
