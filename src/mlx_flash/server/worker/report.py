"""What the worker tells of itself: the model it holds, and what it is doing."""

import math
import time
from typing import Any

import mlx.core as mx

from ...engine.backend import backend_name
from ...engine.load import LoadedModel
from ...engine.plan import default_curve
from ...engine.sampling import SamplingOptions
from ...streaming.expert_stream import ExpertStream
from ...telemetry import machine
from ...telemetry.counters import StreamCounters
from ..messages import LayerHits, ModelCard, Sampling, Snapshot
from ..options import WorkerOptions
from .scheduler import Scheduler

_GAIN_SHARES = (0.25, 0.5, 0.75, 1.0)


def card_of(
    loaded: LoadedModel,
    tokenizer: Any,
    name: str,
    context_tokens: int,
    options: WorkerOptions,
    sampling: SamplingOptions,
) -> ModelCard:
    """Return what clients may know of a model."""
    config, plan = loaded.checkpoint.config, loaded.plan
    quantization = config.get("quantization")
    bits = quantization.get("bits") if isinstance(quantization, dict) else None
    stream = loaded.stream
    num_parameters, size_bytes = _size(loaded)
    return ModelCard(
        name=name,
        model_type=str(config.get("model_type", "")),
        context_tokens=context_tokens,
        trained_context_tokens=loaded.checkpoint.context_tokens,
        num_parameters=num_parameters,
        size_bytes=size_bytes,
        quantization=f"{bits}-bit" if bits else "none",
        chat_template=str(tokenizer.chat_template or ""),
        has_tools=bool(tokenizer.has_tool_calling),
        has_thinking=bool(tokenizer.has_thinking),
        layers=len(loaded.layouts) if stream else 0,
        experts_per_layer=max((layout.num_experts for layout in loaded.layouts), default=0),
        top_k=loaded.top_k,
        capacity=stream.capacity if stream else 0,
        memory_limit_bytes=plan.limit_bytes,
        resident_bytes=plan.resident_bytes,
        slot_bytes=plan.slot_bytes,
        kv_bytes=plan.kv_bytes,
        backend=backend_name(),
        kernels=loaded.kernels.name,
        max_batch=max_batch(loaded, options),
        sampling=Sampling(temperature=sampling.temperature, top_p=sampling.top_p),
        lossy=_lossy(loaded, options),
    )


def exact_together(loaded: LoadedModel) -> bool:
    """Return whether a sequence in a batch has the bits it has alone, as by our CPU kernels."""
    return loaded.kernels.name == "cpu"


def max_batch(loaded: LoadedModel, options: WorkerOptions) -> int:
    """Return how many answers may be under way at once."""
    return options.max_batch if exact_together(loaded) or options.fast_batch else 1


def _lossy(loaded: LoadedModel, options: WorkerOptions) -> list[str]:
    """Return what makes answers differ from the model's own."""
    lossy = [f"the KV cache is kept in {options.kv_bits} bits"] if options.kv_bits else []
    if options.fast_batch and not exact_together(loaded):
        lossy.append("answers beside others are computed in one batch, which changes last bits")
    return lossy


def _size(loaded: LoadedModel) -> tuple[int, int]:
    """Return how many numbers a model was trained to, and its bytes on disk."""
    checkpoint = loaded.checkpoint
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    num_bytes = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    for layout in loaded.layouts if checkpoint.packed else ():
        for tensor in layout.tensors:
            shapes[f"{layout.prefix}.{tensor.name}"] = (layout.num_experts, *tensor.shape)
        num_bytes += layout.num_experts * layout.expert_bytes
    quantization = checkpoint.config.get("quantization")
    group = quantization.get("group_size") if isinstance(quantization, dict) else None
    num_parameters = 0
    for name, shape in shapes.items():
        stem, _, kind = name.rpartition(".")
        scales = shapes.get(f"{stem}.scales")
        if kind == "weight" and scales is not None:
            num_parameters += math.prod(scales) * (group or 64)
        elif kind not in ("scales", "biases"):
            num_parameters += math.prod(shape)
    return num_parameters, num_bytes


class Reporter:
    """Takes snapshots of a worker. Any thread."""

    def __init__(self, loaded: LoadedModel, scheduler: Scheduler, kv_limit_bytes: int) -> None:
        self._loaded = loaded
        self._scheduler = scheduler
        self._kv_limit_bytes = kv_limit_bytes
        self._written_before = machine.written_bytes()
        self._gains = _gains(loaded)

    def snapshot(self) -> Snapshot:
        """Return where the worker stands."""
        stream, scheduler = self._loaded.stream, self._scheduler
        counters = stream.counters.snapshot() if stream else StreamCounters()
        running, waiting = scheduler.counts
        written = machine.written_bytes()
        before = self._written_before
        return Snapshot(
            time_s=time.time(),
            running=running,
            waiting=waiting,
            prompt_tokens=scheduler.prompt_tokens,
            cached_tokens=scheduler.cached_tokens,
            generation_tokens=scheduler.generation_tokens,
            kv_bytes=scheduler.kv_bytes,
            remembered_bytes=scheduler.remembered_bytes,
            kv_limit_bytes=self._kv_limit_bytes,
            model_bytes=int(mx.get_active_memory()),
            peak_model_bytes=int(mx.get_peak_memory()),
            rss_bytes=machine.rss_bytes(),
            memory_limit_bytes=self._loaded.plan.limit_bytes,
            capacity=stream.capacity if stream else 0,
            asks=counters.asks,
            hits=counters.hits,
            bytes_read=counters.bytes_read,
            stall_s=counters.stall_s,
            busy_s=counters.busy_s,
            prefetched=counters.prefetched,
            prefetch_hits=counters.prefetch_hits,
            resized=counters.resized,
            ssd_bytes_written=None if written is None or before is None else written - before,
            direct_io=stream.reader.direct if stream else False,
            disk_temperature_c=stream.reader.heat_pause.temperature_c if stream else None,
            layers=_layers(stream) if stream else [],
            more_memory_gains=self._gains,
            prefilled_tokens=scheduler.prefilled_tokens,
        )


def _layers(stream: ExpertStream) -> list[LayerHits]:
    """Return the asks and hits of each layer."""
    layers = sorted(stream.layer_streams.items())
    return [
        LayerHits(layer.asks, layer.hits, stream.cache.capacities[number])
        for number, layer in layers
    ]


def _gains(loaded: LoadedModel) -> list[tuple[int, float]]:
    """Return pairs of bytes more and the hit rate to expect with them, by the default curve."""
    stream = loaded.stream
    if stream is None or not loaded.layouts:
        return []
    curve = default_curve()
    experts = max(layout.num_experts for layout in loaded.layouts)
    slot = sum(layout.expert_bytes for layout in loaded.layouts)
    now = stream.capacity
    gains = []
    for share in _GAIN_SHARES:
        capacity = now + round((experts - now) * share)
        if capacity > now:
            gains.append(((capacity - now) * slot, curve.hit_rate(capacity, experts)))
    return gains
