"""Puts streaming twins into a model: finds its experts in the checkpoint and replaces them."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx.nn.layers.base import Module

from ..cache.expert_cache import ExpertCache
from ..cache.policies import POLICIES
from ..config import CacheOptions, ReadOptions
from ..errors import UnsupportedModelError
from ..formats.checkpoint import Checkpoint
from ..formats.layout import ExpertLayout, stacked_layout
from ..store.files import CheckpointFiles
from ..store.reader import ExpertReader
from ..telemetry.counters import StreamCounters
from . import adapter
from .layer_stream import LayerStream
from .slots import SlotPool, type_name
from .switch import SlotLinear, StreamedSwitch


@dataclass(frozen=True)
class SwitchSite:
    """A switch module of a model, the path it stands at, and where its experts lie on disk."""

    path: str
    switch: Module
    layout: ExpertLayout


class ExpertStream:
    """What stands behind a streamed model: its cache, slots, files and counters.

    Threads and files are released by `close()`, or when the model is no longer used.
    """

    def __init__(
        self,
        layouts: Sequence[ExpertLayout],
        capacities: Sequence[int],
        cache_options: CacheOptions,
        read_options: ReadOptions,
    ) -> None:
        """Open the files and allocate the slots.

        Raises:
            FormatError: a file cannot be opened.
            UnsupportedModelError: a type that cannot be streamed, or an unknown policy.
        """
        if cache_options.policy not in POLICIES:
            raise UnsupportedModelError(
                f"there is no policy {cache_options.policy!r}: take one of {', '.join(POLICIES)}."
            )
        self.layouts = tuple(layouts)
        self.counters = StreamCounters()
        self.cache = ExpertCache(
            [layout.num_experts for layout in layouts], capacities, POLICIES[cache_options.policy]
        )
        self.pools = [
            SlotPool(layout, capacity)
            for layout, capacity in zip(layouts, self.cache.capacities, strict=True)
        ]
        files = CheckpointFiles(path for layout in layouts for path in layout.paths)
        self.reader = ExpertReader(files, read_options)
        self.close = weakref.finalize(self, _release, self.reader, files)

    @property
    def slot_bytes(self) -> int:
        """Memory that the slots of all layers take."""
        return sum(pool.num_bytes for pool in self.pools)

    @property
    def expert_bytes(self) -> int:
        """Bytes of all experts of all layers on disk."""
        return sum(layout.num_experts * layout.expert_bytes for layout in self.layouts)


def _release(reader: ExpertReader, files: CheckpointFiles) -> None:
    reader.close()
    files.close()


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
        layout = stacked_layout(checkpoint.tensors, layer, path, wanted)
        for name in wanted:
            if in_place is not None and f"{path}.{name}" not in in_place:
                raise UnsupportedModelError(
                    f"mlx-lm rewrites {path}.{name} while it loads, so it cannot be read in place; "
                    "convert the model with mlx_lm.convert first."
                )
        sites.append(SwitchSite(path, switch, layout))
    return sites


def install(
    model: Module,
    sites: Sequence[SwitchSite],
    capacities: Sequence[int],
    cache_options: CacheOptions,
    read_options: ReadOptions,
) -> ExpertStream:
    """Replace the switch of every site by its streaming twin: all of them, or none on an error."""
    layouts = [site.layout for site in sites]
    stream = ExpertStream(layouts, capacities, cache_options, read_options)
    for site, pool in zip(sites, stream.pools, strict=True):
        for name, projection in adapter.projections(site.switch).items():
            tensors = tuple(adapter.parameters(projection))
            quantization = adapter.quantization_of(projection)
            adapter.replace_module(site.switch, name, SlotLinear(pool, name, tensors, quantization))
        layer_stream = LayerStream(site.layout, pool, stream.cache, stream.reader, stream.counters)
        adapter.replace_module(model, site.path, StreamedSwitch(site.switch, layer_stream))
    return stream


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
    been evaluated: they are dropped. The checkpoint must hold them under the model's own names.

    Raises:
        ModelNotFoundError, FormatError: the folder is no sound checkpoint.
        UnsupportedModelError: no experts, or experts that cannot be addressed in place.
        MemoryPlanError: a capacity below 1.
    """
    options = CacheOptions(policy=policy, capacity=capacity)
    sites = survey(model, Checkpoint.open(Path(checkpoint)))
    if not sites:
        raise UnsupportedModelError("the model has no experts to stream.")
    return install(model, sites, [capacity] * len(sites), options, reads or ReadOptions())
