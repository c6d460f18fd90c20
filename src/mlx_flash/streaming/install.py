"""Puts streaming twins into a model: finds its experts in the checkpoint and replaces them."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx.nn.layers.base import Module

from ..config import CacheOptions, ReadOptions
from ..errors import UnsupportedModelError
from ..formats.checkpoint import Checkpoint
from ..formats.layout import ExpertLayout, stacked_layout
from ..store.files import CheckpointFiles
from ..store.reader import ExpertReader
from ..telemetry.disk_temperature import disk_temperature_c
from . import adapter
from .compute import ResidentStacks, computing
from .expert_stream import ExpertStream, reads_of
from .layer_stream import LayerStream
from .prefetch import picks
from .recorder import OnInput, OnPass, Recorder
from .slots import SlotPool, dtype_named, type_name
from .switch import ResidentSwitch, StreamedSwitch

if TYPE_CHECKING:
    from ..kernels.cpu.kernels import CpuKernels


Router = Callable[[mx.array], npt.NDArray[np.integer[Any]]]
"""Returns the experts `[T, K]` that a layer asks for, given `[T, D]`."""


@dataclass(frozen=True)
class SwitchSite:
    """A switch module of a model, the path it stands at, and where its experts lie on disk."""

    path: str
    switch: Module
    layout: ExpertLayout


def survey(
    model: Module, checkpoint: Checkpoint, in_place: frozenset[str] | None = None
) -> list[SwitchSite]:
    """Return every switch module of a model with the layout of its experts; none if it has none.

    `in_place` names the parameters known to be stored just as the model uses them; None trusts
    names, shapes and types.

    Raises:
        UnsupportedModelError: an expert tensor cannot be addressed in the checkpoint.
    """
    sites = []
    for layer, (path, switch) in enumerate(adapter.find_switches(model)):
        wanted = {
            f"{name}.{tensor}": (tuple(array.shape), type_name(array.dtype))
            for name, projection in adapter.projections(switch).items()
            for tensor, array in adapter.parameters(projection).items()
        }
        layout = _layout(checkpoint, layer, path, wanted)
        for name in wanted:
            if in_place is not None and f"{path}.{name}" not in in_place:
                raise UnsupportedModelError(
                    f"mlx-lm rewrites {path}.{name} while it loads, so it cannot be read in place; "
                    "convert the model with mlx-flash pack first."
                )
        sites.append(SwitchSite(path, switch, layout))
    return sites


def _layout(
    checkpoint: Checkpoint,
    layer: int,
    path: str,
    wanted: Mapping[str, tuple[tuple[int, ...], str]],
) -> ExpertLayout:
    """Return the layout of the experts at `path`: packed where they are, otherwise stacked."""
    packed = checkpoint.packed.get(path)
    if packed is None:
        return stacked_layout(checkpoint.tensors, layer, path, wanted)
    if {name: (stack.shape, stack.dtype) for name, stack in packed.stacks.items()} != wanted:
        raise UnsupportedModelError(f"{packed.path} does not hold what the model expects: pack it.")
    return packed.layout(layer)


def packed_stacks(checkpoint: Checkpoint) -> dict[str, mx.array]:
    """Return a stand-in for each stack of experts in the packed store, for mlx-lm to load.

    They have the right names, shapes and types, take no memory, and must never be evaluated.
    """
    return {
        stack.name: mx.zeros(stack.shape, dtype_named(stack.dtype, stack.name))
        for layer in checkpoint.packed.values()
        for stack in layer.stacks.values()
    }


def expert_formats(sites: Sequence[SwitchSite], kernels: "CpuKernels") -> list[str]:
    """Return the formats of the experts' matrices that the kernels read."""
    found = {
        kernels.format_of(adapter.parameters(projection), adapter.quantization_of(projection))
        for site in sites
        for projection in adapter.projections(site.switch).values()
    }
    return sorted(name for name in found if name is not None)


def activations(sites: Sequence[SwitchSite]) -> list[str]:
    """Return the names of the experts' activations that we know."""
    found = {adapter.activation_of(site.switch) for site in sites}
    return sorted({kind.name for kind in found if kind is not None})


def install(
    model: Module,
    sites: Sequence[SwitchSite],
    capacities: Sequence[int],
    cache_options: CacheOptions,
    read_options: ReadOptions,
    kernels: "CpuKernels | None" = None,
) -> ExpertStream:
    """Replace the switch of every site by its streaming twin: all of them, or none on an error."""
    layouts = [site.layout for site in sites]
    stream = ExpertStream(layouts, capacities, cache_options, read_options)
    twins = []
    for site in sites:
        new_compute = partial(computing, site.switch, kernels=kernels)
        layer = LayerStream(stream, site.layout.layer, new_compute)
        twins.append(StreamedSwitch(site.switch, layer))
        adapter.replace_module(model, site.path, twins[-1])
    if read_options.prefetch:
        for number, twin in enumerate(twins):
            following = block = None
            if number + 1 < len(twins):
                following = twins[number + 1]
                block = adapter.routing_block(model, sites[number + 1].path)
            twin.layer_stream.guess_next = stream.prefetcher.between(number, block, following)
    else:
        stream.prefetcher.why_off = "it is switched off"
    return stream


def read_packed_experts(sites: Sequence[SwitchSite], read_options: ReadOptions) -> None:
    """Give the switch of every site all its experts, read from the packed store.

    Raises:
        FormatError, ExpertReadError: a file cannot be opened or read.
    """
    stamps = {path: stamp for site in sites for path, stamp in site.layout.files.items()}
    with contextlib.closing(CheckpointFiles(stamps)) as files:
        disk_c = partial(disk_temperature_c, next(iter(stamps)))
        reader = ExpertReader(files, read_options, disk_c=disk_c)
        with contextlib.closing(reader):
            for site in sites:
                pool = SlotPool(site.layout, site.layout.num_experts)
                experts = {expert: expert for expert in range(site.layout.num_experts)}
                reader.heat_pause.wait()
                reader.start(reads_of(site.layout, experts, pool, read_options.verify)).wait()
                for name, projection in adapter.projections(site.switch).items():
                    for tensor in adapter.parameters(projection):
                        projection[tensor] = pool.arrays[f"{name}.{tensor}"]


def install_resident(model: Module, sites: Sequence[SwitchSite], kernels: "CpuKernels") -> None:
    """Replace the switch of every site by a twin on the CPU kernels; read all experts."""
    for site in sites:
        arrays = {
            f"{name}.{tensor}": array
            for name, projection in adapter.projections(site.switch).items()
            for tensor, array in adapter.parameters(projection).items()
        }
        compute = computing(site.switch, [ResidentStacks(arrays)], kernels)
        adapter.replace_module(model, site.path, ResidentSwitch(site.switch, compute))


def stream_experts(
    model: Module,
    checkpoint: str | Path,
    *,
    capacity: int,
    policy: str = CacheOptions.policy,
    reads: ReadOptions | None = None,
) -> ExpertStream:
    """Make a lazily loaded model stream its experts from `checkpoint`; change it in place.

    `capacity` is the number of slots per layer. The experts' arrays in the model must not have
    been evaluated: they are dropped. The checkpoint must hold them under the model's own names,
    as they are: whether your loader changed them on the way is not checked here, as `load` does.
    Nor does this cast activations or cap the memory that MLX keeps of freed buffers, and MLX's
    operations compute.

    Raises:
        ModelNotFoundError, FormatError: the folder is no sound checkpoint.
        UnsupportedModelError: no experts, or experts that cannot be addressed in place.
        OptionError: a capacity below 1, an unknown policy.
    """
    options = CacheOptions(policy=policy, capacity=capacity)
    sites = survey(model, Checkpoint.open(Path(checkpoint)))
    if not sites:
        raise UnsupportedModelError("the model has no experts to stream.")
    return install(model, sites, [capacity] * len(sites), options, reads or ReadOptions())


def record_routing(
    model: Module,
    stream: ExpertStream,
    on_pass: OnPass | None,
    on_input: OnInput = lambda layer, x: None,
) -> None:
    """Hand each forward pass of a streamed model to `on_pass` from now on; None ends that."""
    if on_pass is None:
        stream.recorder = None
        return
    recorder = Recorder(len(stream.layouts), on_pass, on_input)
    for path, module in model.named_modules():
        if isinstance(module, StreamedSwitch):
            block = adapter.routing_block(model, path)
            if block is not None:
                recorder.blocks[module.layer_stream.layer] = block
    stream.recorder = recorder


def router_of(model: Module, layer: int, wide: bool = False) -> Router | None:
    """Return a function from a layer's input `[T, D]` to the experts `[T, K]` that it asks for.

    With `wide` it picks twice as many, where that can be had. None where the router is not in one
    block with its experts.
    """
    for path, module in model.named_modules():
        if isinstance(module, StreamedSwitch) and module.layer_stream.layer == layer:
            block = adapter.routing_block(model, path)
            return None if block is None else partial(_route, block, module, wide)
    return None


def _route(
    block: Module, switch: StreamedSwitch, wide: bool, x: mx.array
) -> npt.NDArray[np.integer[Any]]:
    top_k = picks(block, switch, x[None, :1]).shape[-1]
    with adapter.wider_top_k(block, top_k) if wide else contextlib.nullcontext():
        found = picks(block, switch, x[None])
    return found.reshape(len(x), -1)


def find_stream(model: Module) -> ExpertStream | None:
    """Return what stands behind a streamed model (its counters, its cache), None if resident."""
    for _, module in model.named_modules():
        if isinstance(module, StreamedSwitch):
            return module.layer_stream.stream
    return None
