"""Loads a model so that it stays under a memory limit: streamed, or resident when it fits."""

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
from mlx.nn.layers.base import Module

from ..config import (
    DEFAULT_CONTEXT_TOKENS,
    CacheOptions,
    KernelOptions,
    MemoryLimit,
    ReadOptions,
    check_either,
)
from ..errors import MemoryPlanError, OptionError
from ..formats.checkpoint import Checkpoint
from ..formats.layout import ExpertLayout
from ..kernels.dispatch import KernelChoice, choose_kernels
from ..planner.memory import MemoryPlan, ModelNeed, limit_in_bytes, plan_capacity, plan_memory
from ..streaming import adapter
from ..streaming.expert_stream import ExpertStream
from ..streaming.install import (
    SwitchSite,
    activations,
    expert_formats,
    install,
    install_resident,
    packed_stacks,
    read_packed_experts,
    survey,
)
from ..streaming.swap import swap_modules
from ..streaming.tokens import TokenizerWrapper, open_tokenizer
from ..telemetry import machine
from .backend import Memory, backend_name, computes_on_cpu, model_memory
from .find import find_model
from .guard import MemoryGuard
from .need import PREFILL_STEPS, freed_buffers_bytes, measure_need, use_float32_on_cpu
from .quantized_kv import use_quantized_kv
from .warm_start import ResidentRecord, start_warm


@dataclass(frozen=True)
class ModelFiles:
    """A checkpoint and its tokenizer, opened; no weight has been read."""

    checkpoint: Checkpoint
    tokenizer: TokenizerWrapper

    @classmethod
    def open(cls, model: str | Path | None) -> "ModelFiles":
        """Return the files of a model: a folder, a Hub id (downloaded), or None for the bundled.

        Raises:
            ModelNotFoundError, FormatError, UnsupportedModelError: as their names say.
        """
        checkpoint = Checkpoint.open(find_model(model))
        adapter.check_supported(checkpoint.folder)
        return cls(checkpoint, open_tokenizer(checkpoint.folder))


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, with the plan it was loaded by.

    `layouts` says where each layer's experts lie, `top_k` of which compute a token; `stream` is
    None when the model runs resident.
    The plan set memory aside for `prefill_step` prompt tokens at once. `kernels` compute it.
    Slots are split among layers by a trace when `is_split`, else evenly.
    `needs` are what it could have been planned by, those of larger prefill steps first.
    """

    model: Module
    checkpoint: Checkpoint
    plan: MemoryPlan
    layouts: tuple[ExpertLayout, ...]
    top_k: int
    stream: ExpertStream | None
    prefill_step: int
    kernels: KernelChoice
    needs: tuple[ModelNeed, ...]
    is_split: bool

    def close(self) -> None:
        """End the stream's threads and close its files: the model can run no more.

        With a warm start, remember who is resident. May be called again; happens by itself when
        the model is no longer used, or the program ends.
        """
        if self.stream is not None:
            self.stream.close()


def load(
    model: str | Path | None = None,
    memory: str | int | None = None,
    *,
    capacity: int | None = None,
    policy: str = CacheOptions.policy,
    kernels: str | None = None,
    warm_start: str | Path | None = None,
    context_tokens: int = DEFAULT_CONTEXT_TOKENS,
) -> tuple[Module, TokenizerWrapper]:
    """Return `(model, tokenizer)` for mlx-lm's generate, stream_generate and batch_generate.

    `model` is a folder, a Hub id, or None for the bundled model. `memory` limits the whole
    footprint: bytes ("6GB", 6_000_000_000), a share of what the model would need resident
    ("40%"), "all", or None for what the machine can spare. `capacity` fixes the slots per layer;
    give one of the two. `kernels` computes matrix products: "reference" is MLX, "cpu" are our
    own, None the best for the device. `warm_start` is a folder, such as
    "~/.cache/mlx-flash/warm-start", that remembers which experts were in memory when the model was
    last used, so that they are read back in the background; None writes nothing and starts cold.

    The plan sets memory aside for `context_tokens` tokens of KV cache in all, and for computing
    2048 of them at once, which is mlx-lm's default: on the CPU that takes more than a small model
    itself, so ask for no more context than you need. Caps the memory that MLX keeps of freed
    buffers, for the whole process.

    Raises:
        ModelNotFoundError, FormatError, UnsupportedModelError, MemoryPlanError, OptionError.
    """
    if context_tokens < 1:
        raise OptionError(f"a context of {context_tokens} tokens holds nothing: give 1 or more.")
    folder = None if warm_start is None else Path(os.path.expanduser(warm_start))
    cache_options = CacheOptions(policy=policy, capacity=capacity, warm_start=folder)
    limit = MemoryLimit.parse(memory)
    check_either(limit, cache_options)
    files = ModelFiles.open(model)
    try:
        loaded = load_model(
            files.checkpoint,
            limit,
            cache_options,
            context_tokens=context_tokens,
            prefill_steps=PREFILL_STEPS[:1],
            kernel_options=KernelOptions(kernels=kernels),
        )
    except MemoryPlanError as error:
        raise error.advised(
            f"That is for {context_tokens} tokens of context: a smaller context_tokens takes less."
        ) from error
    if loaded.kernels.why:
        warnings.warn(loaded.kernels.why, stacklevel=2)
    return loaded.model, files.tokenizer


def expert_counts(checkpoint: Checkpoint) -> list[int]:
    """Return the experts of each layer that has some. Reads no weight.

    Raises:
        UnsupportedModelError: mlx-lm cannot load the model, or we cannot stream it.
    """
    lazy = adapter.load_lazily(checkpoint.folder, packed_stacks(checkpoint))
    return [site.layout.num_experts for site in survey(lazy.model, checkpoint, lazy.in_place)]


def load_model(
    checkpoint: Checkpoint,
    limit: MemoryLimit,
    cache_options: CacheOptions,
    *,
    context_tokens: int,
    prefill_steps: Sequence[int] = PREFILL_STEPS,
    read_options: ReadOptions | None = None,
    kernel_options: KernelOptions | None = None,
    always_stream: bool = False,
    kv_tokens: int | None = None,
    kv_bits: int | None = None,
    split: Callable[[int, Sequence[int]], Sequence[int] | None] = lambda capacity, experts: None,
    on_compile: Callable[[int, int], None] = lambda number, of: None,
) -> LoadedModel:
    """Plan the memory and load the model by that plan; read no expert that is streamed.

    With a warm start, experts are being read in the background when this returns. Unless the
    capacity is fixed, slots are given back from now on while the machine is short of memory.

    A model that fits has a slot for each expert with `always_stream`, and else no slots.
    KV cache is planned for one text of `context_tokens`, or for `kv_tokens` of several, which may
    be longer than the model was trained for; `kv_bits` keeps it in 8 or 4 bits.
    `split(capacity, experts)` may return slots for each layer of so many experts, `capacity` on the
    mean; these are kept.
    `prefill_steps` are the numbers of prompt tokens to compute at once to choose from, descending.
    `on_compile(number, of)` is called before each of the kernels that the model needs is compiled,
    or loaded from the cache on disk.

    Raises:
        FormatError, UnsupportedModelError, MemoryPlanError, OptionError: before any weight was
            read.
    """
    if kv_tokens is None:
        context_tokens = min(context_tokens, checkpoint.context_tokens or context_tokens)
    wanted = (kernel_options or KernelOptions()).kernels
    kernels = choose_kernels(wanted, computes_on_cpu(), machine.num_cores())
    lazy = adapter.load_lazily(checkpoint.folder, packed_stacks(checkpoint))
    sites = survey(lazy.model, checkpoint, lazy.in_place)
    swapped = None
    if kernels.cpu is not None:
        swapped = swap_modules(lazy.model, kernels.cpu)
        formats = [*swapped.formats, *expert_formats(sites, kernels.cpu)]
        kernels.cpu.compile(formats, activations(sites), on_compile)
    needs = measure_need(
        lazy.model, sites, checkpoint, context_tokens, prefill_steps, swapped, kv_tokens, kv_bits
    )
    memory = model_memory()
    plan, step = _plan(needs, limit, cache_options.capacity, memory)
    need = needs[0][1]
    if always_stream and plan.capacity is None and need.layouts:
        plan = plan_capacity(need, need.num_experts, memory.total_bytes)
    if kv_bits is not None:
        use_quantized_kv(lazy.model, kv_bits)
    mx.set_cache_limit(freed_buffers_bytes(need.resident_bytes + need.expert_bytes))
    reads = _decide_reads(read_options or ReadOptions(), plan, need)
    capacities: list[int] = []
    layer_slots = None
    if plan.capacity is None:
        stream = None
        _make_resident(lazy.model, checkpoint, sites, reads, kernels)
    else:
        layer_slots = split(plan.capacity, [layout.num_experts for layout in need.layouts])
        capacities = list(layer_slots or [plan.capacity] * len(sites))
        stream = install(lazy.model, sites, capacities, cache_options, reads, kernels.cpu)
        if cache_options.warm_start is not None:
            record = ResidentRecord(cache_options.warm_start, checkpoint.folder, need.layouts)
            start_warm(stream, record)
    use_float32_on_cpu(lazy.model, swapped)
    for array in adapter.parameters(lazy.model).values():
        mx.eval(array)  # one at a time: a cast holds two copies of one array, not of all
    may_resize = cache_options.capacity is None and len(set(capacities)) == 1
    if stream is not None and may_resize and backend_name() != "cuda":
        MemoryGuard(stream, plan, memory).start()
    return LoadedModel(
        lazy.model,
        checkpoint,
        plan,
        need.layouts,
        need.top_k,
        stream,
        step,
        kernels,
        tuple(need for _, need in needs),
        layer_slots is not None,
    )


def _make_resident(
    model: Module,
    checkpoint: Checkpoint,
    sites: Sequence[SwitchSite],
    reads: ReadOptions,
    kernels: KernelChoice,
) -> None:
    """Give a model that fits its packed experts, and all of them to the CPU kernels."""
    if checkpoint.packed:
        read_packed_experts(sites, reads)
    if kernels.cpu is not None:
        install_resident(model, sites, kernels.cpu)


def _decide_reads(reads: ReadOptions, plan: MemoryPlan, need: ModelNeed) -> ReadOptions:
    """Return the options with `direct` and `prefetch` decided.

    The page cache helps where it can hold most. On a GPU guesses take longer than they hide.
    """
    if reads.prefetch is None:
        reads = replace(reads, prefetch=computes_on_cpu())
    if reads.direct is not None:
        return reads
    spare = machine.available_memory_bytes() - plan.total_bytes
    return replace(reads, direct=spare < need.expert_bytes)


def _plan(
    needs: Sequence[tuple[int, ModelNeed]],
    limit: MemoryLimit,
    capacity: int | None,
    memory: Memory,
) -> tuple[MemoryPlan, int]:
    """Return the plan with the largest prefill step that works, and that step."""
    limit_bytes = limit_in_bytes(limit, needs[0][1], *memory)
    for step, need in needs:
        try:
            if capacity is None:
                return plan_memory(need, limit_bytes), step
            return plan_capacity(need, capacity, memory.total_bytes), step
        except MemoryPlanError as error:
            refusal = error
    raise refusal
